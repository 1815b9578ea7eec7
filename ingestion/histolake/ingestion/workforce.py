"""The ingest's work on Ray: calls in tasks, and runs of spots through a pool of actors."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from histolake.ingestion.rows import IngestSettings
from histolake.ingestion.worker import SlideWorker, Work, Written
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["Progress", "in_tasks", "pool_size", "through_actors"]

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much


def in_tasks(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], what: str, tell: Progress) -> list[Any]:
    """Call a function in Ray tasks; answers in order, with a `SourceError` standing for a refused call."""
    import ray

    task = ray.remote(_refusal_as_answer).options(num_cpus=1)
    futures = [task.remote(function, call) for call in calls]
    left = futures
    while left:
        _, left = ray.wait(left, num_returns=1)
        tell(what, len(futures) - len(left), len(futures))
    return ray.get(futures)


def _refusal_as_answer(function: Callable[..., Any], call: tuple[Any, ...]) -> Any:
    try:
        return function(*call)
    except SourceError as problem:
        return problem


def through_actors(works: Sequence[Work], root: Location, settings: IngestSettings) -> Iterator[Written]:
    """Every run of spots through the pool of actors, as they finish."""
    if not works:
        return
    import ray

    items = [{"work": pickle.dumps(work)} for work in works]
    pool = ray.data.ActorPoolStrategy(size=pool_size(len(works)))
    tiler: Any = _Tiler  # a class whose instances are the function, made once an actor
    written = ray.data.from_items(items, override_num_blocks=len(items)).map(
        tiler, fn_constructor_args=(root, settings), compute=pool, num_cpus=1
    )
    for row in written.iter_rows():
        yield pickle.loads(row["written"])


def pool_size(runs: int) -> int:
    """Actors: one a slot, with one slot left for the rest; on a machine alone, no more than its cores."""
    import ray

    slots = int(ray.cluster_resources().get("CPU", 1)) - 1
    if len(ray.nodes()) == 1:
        slots = min(slots, os.cpu_count() or 1)
    return max(1, min(slots, runs))


class _Tiler:
    """The actor's face of `SlideWorker`."""

    def __init__(self, root: Location, settings: IngestSettings) -> None:
        self._worker = SlideWorker(root, settings)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"written": pickle.dumps(self._worker.write(pickle.loads(row["work"])))}
