"""Loaders that go on for ever, each in a process of its own on its own cores, asked for their pace again and again.

A loader is a function that yields how many pairs each batch brought; what it yields first is 0, when all is imported
and it is about to open what it reads. Between two questions it stands still, so that several can take turns without
being opened anew.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

__all__ = ["Stream", "Together"]

WARM_SHARE = 0.2  # of a measurement, before it: batches that were made while nobody asked are taken
LONGEST_S = 600.0  # until an answer
ENOUGH = object()


class Stream:
    """One loader, for the length of a `with` block."""

    def __init__(self, loader: Callable[..., Iterator[int]], *given: Any, cores: Sequence[int]) -> None:
        """Start the process, and wait for the first batch."""
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, list(cores), loader, given))
        self._process.start()
        there.close()
        self.seconds_to_first_batch = float(self._answer())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()

    def ask(self, seconds: float) -> None:
        """Have it go on for some seconds."""
        self._pipe.send(seconds)

    def answer(self) -> float:
        """The pairs a second of what was asked last."""
        return float(self._answer())

    def rate(self, seconds: float) -> float:
        """Pairs a second over some seconds."""
        self.ask(seconds)
        return self.answer()

    def peak_mb(self) -> float:
        """The most memory that its process ever held, MB."""
        self._pipe.send(None)
        return float(self._answer())

    def _answer(self) -> Any:
        if not self._pipe.poll(LONGEST_S):
            raise TimeoutError("a loader gave no answer")
        return self._pipe.recv()


class Together:
    """Some loaders at once, as one."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._streams = streams

    def rate(self, seconds: float) -> float:
        """Pairs a second of all."""
        for stream in self._streams:
            stream.ask(seconds)
        return sum(stream.answer() for stream in self._streams)


def _serve(pipe: Connection, cores: list[int], loader: Callable[..., Iterator[int]], given: tuple[Any, ...]) -> None:
    os.sched_setaffinity(0, cores)
    with closing(loader(*given)) as batches:  # type: ignore[type-var]  # loaders are generators
        next(batches)
        began = time.perf_counter()
        next(batches)
        pipe.send(time.perf_counter() - began)
        while (seconds := _asked(pipe)) is not ENOUGH:
            if seconds is None:
                pipe.send(_peak_mb())
            else:
                _paced(batches, seconds * WARM_SHARE)
                pipe.send(_paced(batches, seconds))


def _asked(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:  # the one who asks has closed it
        return ENOUGH


def _paced(batches: Iterator[int], seconds: float) -> float:
    began, pairs = time.perf_counter(), 0
    while not pairs or time.perf_counter() - began < seconds:
        pairs += next(batches)
    return pairs / (time.perf_counter() - began)


def _peak_mb() -> float:
    """The most that this process held of its own and of what it maps (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kib) * 1024 / 1e6
