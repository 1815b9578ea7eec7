"""The ingest's work on Ray: calls in tasks, and the sections of a wave through one pipeline of Ray Data.

    sections, in the order of judging
      -> read and judge the spots of each      tasks; the judged slide goes onto the shelf
      -> judge the sections among each other   one actor, in order; a section becomes runs of spots
      -> write each run as a fragment          a pool of actors

Every section and every run is a block of its own, so that all three go on at once: a section is written while later
ones are still being read. Blocks hold nothing but names and verdicts; neither images nor counts pass through them. A
task whose worker died is tried again; the fragment that the first try may have written is never named by anybody.

Within it only writers take slots of the cluster. Several ingests that share one take as many as they get, each goes on
with one, and none waits for a slot to read by while the writers of all hold them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from histolake.ingestion.judging import Begun, Judge, Judged
from histolake.ingestion.rows import IngestSettings
from histolake.ingestion.shelf import Shelf
from histolake.ingestion.worker import Look, SlideWorker, Written, add_pyramid, look_and_keep
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["Progress", "in_tasks", "pool_size", "through_pipeline"]

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


def through_pipeline(
    sections: Sequence[Begun], judge: Judge, shelf: Shelf, root: Location, settings: IngestSettings, workers: int
) -> Iterator[Judged | Written]:
    """Verdicts and written runs of sections, which are in the order of judging, as they come; a section's verdict
    comes before its runs."""
    if not sections:
        return
    import ray

    items = [{"item": pickle.dumps(section)} for section in sections]
    data: Any = ray.data.from_items(items, override_num_blocks=len(items))
    data.context.execution_options.preserve_order = True
    data.context.target_max_block_size = 1  # a row, a block
    given = (shelf, root, settings)
    one, pool = (ray.data.ActorPoolStrategy(size=size) for size in (1, workers))
    data = data.map(_read, fn_args=given, num_cpus=0, concurrency=max(1, _slots() - pool_size()))
    data = data.flat_map(_Judging, fn_constructor_args=(judge, shelf), compute=one, num_cpus=0)
    data = data.map(_Tiler, fn_constructor_args=given, compute=pool, num_cpus=1)
    for row in data.iter_rows():
        yield pickle.loads(row["item"])


def pool_size(runs: int | None = None) -> int:
    """Actors that write: one a slot, with one slot in eight, at least one, left for reading; on a machine alone, no
    more than its cores."""
    import ray

    slots = _slots()
    writers = slots - max(1, slots // 8)
    if len(ray.nodes()) == 1:
        writers = min(writers, os.cpu_count() or 1)
    return max(1, writers if runs is None else min(writers, runs))


def _slots() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def _read(row: dict[str, bytes], shelf: Shelf, root: Location, settings: IngestSettings) -> dict[str, bytes]:
    """Read a section and judge its spots; the slide goes onto the shelf."""
    section: Begun = pickle.loads(row["item"])
    if not section.is_known:  # the known ones are all read before any is written
        shelf.wait_for(section.place)
    ingest_id = section.writer.ingest_id
    told: Look | SourceError
    try:
        told, slide = look_and_keep(section.candidate, root, settings, ingest_id)
        if told.wants_pyramid:
            add_pyramid(section.candidate, told.record["image"], root, ingest_id)
        shelf.keep(section.slide_id, slide)
    except SourceError as problem:
        told = problem
    return {"item": pickle.dumps((section, told))}


class _Judging:
    """The actor's face of `Judge`. It knows what it has judged, and one that Ray puts in its place would not: where it
    dies, the ingest ends, what is whole is published, and the next run goes on."""

    def __init__(self, judge: Judge, shelf: Shelf) -> None:
        if not shelf.is_first("judge"):
            raise RuntimeError("The worker that judges sections among each other died; run the ingest again.")
        self._judge = judge

    def __call__(self, row: dict[str, bytes]) -> Iterator[dict[str, bytes]]:
        for item in self._judge.judge(*pickle.loads(row["item"])):
            yield {"item": pickle.dumps(item)}


class _Tiler:
    """The actor's face of `SlideWorker`. Verdicts pass through."""

    def __init__(self, shelf: Shelf, root: Location, settings: IngestSettings) -> None:
        self._shelf = shelf
        self._worker = SlideWorker(root, settings)

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        item = pickle.loads(row["item"])
        if isinstance(item, Judged):
            return row
        return {"item": pickle.dumps(self._worker.write(item, lambda: self._shelf.slide(item.candidate.slide_id)))}
