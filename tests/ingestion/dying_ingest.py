"""The real command line, in a process that dies at a commit point: `python dying_ingest.py POINT ingest SOURCE ...`.

Nothing of histolake is changed but that the process kills itself right after a method was called; see `POINTS`.
"""

from __future__ import annotations

import sys

from tests.platform.killing import POINTS
from tests.platform.lake_writer import kill_after

__all__ = ["DRIVER_POINTS", "command"]

# What the driver does; genes, pictures and fragments are the workers'.
DRIVER_POINTS = {name: target for name, target in POINTS.items() if name not in ("genes", "picture", "fragment")} | {
    "fragments": "histolake.ingestion.pipeline:_Waiting.take",  # a worker's fragment is told to the driver
}


def command(point: str | None, *arguments: object) -> list[str]:
    """The words that start the command line, to die at a point if one is named."""
    if point is None:
        return [sys.executable, "-m", "histolake.platform", *map(str, arguments)]
    return [sys.executable, "-m", "tests.ingestion.dying_ingest", point, *map(str, arguments)]


if __name__ == "__main__":
    from histolake.platform.cli import main

    kill_after(DRIVER_POINTS[sys.argv[1]])
    sys.argv[1:] = sys.argv[2:]
    main()
