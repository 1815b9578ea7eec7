"""News from the workers to the one who waits: an actor that holds rows until they are fetched.

Workers may be on other machines, where a file of theirs cannot be seen; an actor can. It needs no CPU slot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

from histolake.training.loop import BEST_BY

__all__ = ["Board", "Told", "Watcher", "make_board"]

POLL_S = 0.5


class Board:
    """Rows posted by workers, in order, until somebody takes them."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def post(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        """All rows since the last call."""
        rows, self._rows = self._rows, []
        return rows


def make_board() -> Any:
    """A board as a Ray actor; give the handle to the workers."""
    import ray

    return ray.remote(num_cpus=0)(Board).remote()


class Watcher:
    """Calls `on_rows` with what is posted, from a thread of its own, for the length of a `with` block.

    An error of `on_rows` ends the watching and is raised when the block ends without one of its own.
    """

    def __init__(self, board: Any, on_rows: Callable[[list[dict[str, Any]]], None]) -> None:
        self._board = board
        self._on_rows = on_rows
        self._done = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _watch(self) -> None:
        import ray

        try:
            last = False
            while not last:
                last = self._done.wait(POLL_S)  # what was posted before the end is still fetched
                rows = ray.get(self._board.take.remote())
                if rows:
                    self._on_rows(rows)
        except BaseException as error:  # raised in the thread that waits
            self._error = error


class Told:
    """What the workers of a run have told: a row a step (the last one, where a step was done twice), lines, and why
    they stopped."""

    def __init__(
        self, steps: int, say: Callable[[str], None], log: Callable[[Sequence[Mapping[str, Any]]], None]
    ) -> None:
        """`say` is given lines for people, `log` every row."""
        self._steps, self._say, self._log = steps, say, log
        self._rows: dict[int, dict[str, Any]] = {}
        self.stopped: str | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Of all steps, in their order."""
        return [self._rows[step] for step in sorted(self._rows)]

    def take(self, news: Sequence[dict[str, Any]]) -> None:
        """What came since the last call."""
        done = []
        for row in news:
            if "said" in row:
                self._say(row["said"])
            elif "stopped" in row:
                self.stopped = self.stopped or row["stopped"]
            else:
                done.append(row)
        if not done:
            return
        self._rows.update({int(row["step"]): row for row in done})
        self._log(done)
        last = done[-1]
        held_out = f"  held-out Recall@10% {last[BEST_BY]:.3f}" if BEST_BY in last else ""
        pace = f"{last['pairs_per_s']:.0f} pairs/s"
        self._say(f"step {int(last['step']) + 1}/{self._steps}  loss {last['loss']:.3f}  {pace}{held_out}")
