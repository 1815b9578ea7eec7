"""A way to cut pictures, measured alone: in a process of its own, on one core, for long enough."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.kernel import STEPS, Decoded, TiledJpeg, run_kernel
from tests.benchmarks.peer_loop import run_peer_loop

__all__ = ["Tally", "alone", "kernel_on", "loop_on"]

MAX_PX, QUALITY = 224, 90
WARM_SPOTS = 20


@dataclass
class Tally:
    """Pairs and seconds of one way to work, added up."""

    pairs: int = 0
    seconds: float = 0.0
    steps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.pairs / self.seconds

    def add(self, pairs: int, seconds: float, steps: dict[str, float] | None = None) -> None:
        """One measurement more."""
        self.pairs += pairs
        self.seconds += seconds
        for step, spent in (steps or {}).items():
            self.steps[step] += spent


def alone(what: Callable[..., Any], least_s: float, *given: Any, into: Tally | None = None) -> Tally:
    """Measure in a process of its own on one core, as often as takes long enough; once before, unmeasured, for the
    imports. Gives what was measured, and adds it to `into`."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_repeated, args=(what, least_s, given, told))
    process.start()
    here = Tally()
    for found in told.get(timeout=900):
        here.add(*found)
        if into is not None:
            into.add(*found)
    process.join()
    return here


def _repeated(what: Callable[..., Any], least_s: float, given: tuple[Any, ...], told: Any) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    image, xy_px, *rest = given
    what(image, xy_px[:WARM_SPOTS], *rest)
    found = [what(*given)]
    while sum(seconds for _, seconds, _ in found) < least_s:
        found.append(what(*given))
    told.put(found)


def kernel_on(
    image: Path, xy_px: np.ndarray, sides: tuple[int, ...], work: Path, kind: type[TiledJpeg | Decoded]
) -> tuple[int, float, dict[str, float]]:
    """Pairs, seconds and seconds a step of the bare kernel, on an image of that kind."""
    source = kind(image)
    _, clock = run_kernel(source, xy_px, sides, max_px=MAX_PX, quality=QUALITY, out=work / "kernel.bin")
    source.close()
    return len(xy_px), clock.total, clock.seconds


def loop_on(image: Path, xy_px: np.ndarray, sides: tuple[int, int], work: Path) -> tuple[int, float, dict[str, float]]:
    spots = [(float(x), float(y)) for x, y in xy_px]
    done, seconds = run_peer_loop(image, spots, sides, max_px=MAX_PX, quality=QUALITY, out=work / "loop.h5")
    return done, seconds, {}
