"""News from the workers to the one who waits: an actor that holds rows until they are fetched.

Workers may be on other machines, where a file of theirs cannot be seen; an actor can. It needs no CPU slot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["Board", "Watcher", "make_board"]

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
