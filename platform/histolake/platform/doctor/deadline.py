"""Work that may hang, and a caller that must not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

__all__ = ["TooSlow", "at_once", "within"]

T = TypeVar("T")


class TooSlow(Exception):  # noqa: N818 (it says what happened)
    """Something did not come to its end in time. What it was about goes on in a thread that the process forgets."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """What some work gives, or `TooSlow`. Errors of the work are raised here."""
    box: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            box.append(work())
        except BaseException as error:
            failure.append(error)

    # A daemon: a request that hangs (a name that is not resolved, a mount that is gone) must not keep the process.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failure:
        raise failure[0]
    if not box:
        raise TooSlow(f"no answer within {seconds:g} s")
    return box[0]


class Racers:
    """Calls that run at once, each in a thread of its own. `done` grows as they end: (index, what it gave)."""

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self.done: list[tuple[int, Any]] = []
        self._threads = []
        start = threading.Barrier(len(calls))

        def run(index: int, call: Callable[[], Any]) -> None:
            start.wait()
            try:
                result = call()
            except Exception as error:
                result = error  # the caller judges it
            self.done.append((index, result))

        for index, call in enumerate(calls):
            thread = threading.Thread(target=run, args=(index, call), daemon=True)
            self._threads.append(thread)
            thread.start()

    def wait(self, seconds: float) -> bool:
        """Wait for all of them, but not longer than that; whether all have ended."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return len(self.done) == len(self._threads)


def at_once(calls: Sequence[Callable[[], Any]]) -> Racers:
    """Start calls at the same moment."""
    return Racers(calls)
