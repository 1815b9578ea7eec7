"""How a section is cut into runs of spots, each of which one worker writes as one fragment.

A fragment more makes the table's manifest longer for ever, and a worker more has to open the section; a run too few
lets workers idle at the end. So a section stays whole as long as there are others for the other workers.
"""

from __future__ import annotations

from itertools import pairwise

__all__ = ["LARGEST", "SMALLEST", "cut"]

SMALLEST = 1024  # spots; below that a second worker has opened the section when the first is done with it
LARGEST = 8192  # spots; what is lost with a worker that dies
PLENTY = 3  # sections still to be written for each worker, above which none is shared


def cut(n_spots: int, *, workers: int, sections: int) -> list[tuple[int, int]]:
    """Runs [start, stop) of nearly equal length that make up a section; `sections` are still to be written, with this
    one."""
    if n_spots == 0:
        return []
    fewest = max(1, -(-n_spots // LARGEST))
    shared = 1 if sections > PLENTY * workers else workers
    most = max(1, n_spots // SMALLEST)
    # As many for each worker, so that none is left with one more than the others.
    runs = max(fewest, most // shared * shared if most > shared else most)
    runs = runs if shared > 1 else fewest
    edges = [n_spots * i // runs for i in range(runs + 1)]
    return list(pairwise(edges))
