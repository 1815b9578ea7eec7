"""Expires versions or forgets a patient, and is killed at a step: what the tests of kills run as a process.

    python -P lake_keeper.py expire|forget LAKE WHAT KILL_AFTER [CALLS]

KILL_AFTER is "module:Class.method" below `histolake.platform.lake`: the process kills itself (SIGKILL) right after that
call, or after so many of them.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys

from histolake.platform.lake import Lake
from histolake.platform.lake.expire import expire
from histolake.platform.lake.forgetting import forget


def kill_after(target: str, calls: int) -> None:
    """Make this process die, as if its machine had lost power, after so many calls of a method."""
    module, _, path = target.partition(":")
    owner, _, method = path.partition(".")
    kind = getattr(importlib.import_module(f"histolake.platform.lake.{module}"), owner)
    original = getattr(kind, method)
    seen: list[int] = []

    def dying(*args: object, **kwargs: object) -> object:
        found = original(*args, **kwargs)
        seen.append(1)
        if len(seen) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(kind, method, dying)


if __name__ == "__main__":
    what, uri, subject, step, *times = sys.argv[1:]
    opened = Lake.open(uri)
    kill_after(step, int(times[0]) if times else 1)
    if what == "expire":
        expire(opened, subject, list)
    else:
        forget(opened, patient=("study", subject))
