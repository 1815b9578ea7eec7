"""How a section is cut into runs of spots, each of which one worker writes as one fragment.

A fragment more makes the table's manifest longer until it is compacted, and a worker more has to open the section; a
run too few lets workers idle at the end. So a section stays whole as long as there are others for the other workers,
and the last ones are cut into just so many that the end is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

__all__ = ["RunSizes", "cut"]

RUNS_LEFT = 2  # for each worker, below which sections are shared


@dataclass(frozen=True, kw_only=True)
class RunSizes:
    """Spots in a run."""

    smallest: int = 1024  # below that a second worker has opened the section when the first is done with it
    largest: int = 8192  # what is lost with a worker that dies


def cut(n_spots: int, sizes: RunSizes, *, workers: int, sections: int) -> list[tuple[int, int]]:
    """Runs [start, stop) of nearly equal length that make up a section; `sections` are still to be written, with this
    one."""
    if n_spots == 0:
        return []
    runs = -(-n_spots // sizes.largest)
    if workers > 1:
        wanted = -(-RUNS_LEFT * workers // sections)
        runs = max(runs, min(wanted, n_spots // sizes.smallest))
    edges = [n_spots * i // runs for i in range(runs + 1)]
    return list(pairwise(edges))
