"""The ingest's workers on Ray: a crew of actors that take any call, reading as well as writing.

One kind of worker for everything keeps all of them busy whatever the mix of work is, and none imports or opens what
another has. They are started as there is work for them. A call is asked again where its worker died; what is asked
twice must be harmless, and is: a fragment that was written twice is named once.

Calls go to actors of Ray's core, two to a worker, so that it never waits for the driver. Ray Data's pool of actors,
which stood here before, started in 2.6 s against 0.6 s, and took 12 ms of processor time a call, most of it on the
driver, against 1 ms (docs/speed.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from histolake.ingestion.handover import PackedSlide
from histolake.ingestion.rows import IngestSettings
from histolake.ingestion.worker import SlideWorker, Work, Written
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["Call", "Crew", "Progress", "crew_size", "fetched"]

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much

DEPTH = 2  # calls a worker has, one under way and one to go on with
RETRIES = 3  # of a call whose worker died


@dataclass(frozen=True, kw_only=True)
class Call:
    """Something that any worker may do: a method of `_Tiler` and what it is given."""

    method: str
    given: tuple[Any, ...]
    then: Callable[..., None]  # is called with the answer, and with a reference to each further one
    about: str = ""  # the section; a worker that had it last is asked first
    answers: int = 1


@dataclass(eq=False)
class _Worker:
    """A worker as the driver sees it."""

    actor: Any
    busy: int = 0  # calls that it has
    about: str = ""


@dataclass(eq=False)
class Crew:
    """The workers of one ingest; use it as a context. Ray must be running."""

    lake: Location | None
    settings: IngestSettings
    most: int = 0  # workers at most; 0 takes what the cluster offers
    _workers: list[_Worker] = field(default_factory=list)
    _under_way: dict[Any, tuple[Call, _Worker, list[Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.most = self.most or crew_size()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers.clear()
        self._under_way.clear()

    @property
    def is_free(self) -> bool:
        """Whether some worker can be given another call."""
        return len(self._workers) < self.most or any(worker.busy < DEPTH for worker in self._workers)

    @property
    def is_busy(self) -> bool:
        """Whether calls are under way."""
        return bool(self._under_way)

    def ask(self, call: Call) -> None:
        """Give a call to the worker with the least to do."""
        idle = [worker for worker in self._workers if not worker.busy]
        if not idle and len(self._workers) < self.most:
            idle = [self._start()]
        chosen = min(idle or self._workers, key=lambda worker: (worker.busy, worker.about != call.about))
        refs = getattr(chosen.actor, call.method).options(num_returns=call.answers).remote(*call.given)
        first, *others = refs if call.answers > 1 else [refs]
        chosen.busy += 1
        chosen.about = call.about
        self._under_way[first] = (call, chosen, others)

    def settle(self) -> None:
        """Wait until a call is answered, and hand its answer on."""
        import ray

        (first,), _ = ray.wait(list(self._under_way), num_returns=1)
        call, worker, others = self._under_way.pop(first)
        worker.busy -= 1
        call.then(ray.get(first), *others)

    def all(self, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]], what: str, tell: Progress) -> list:
        """Answers of a function in order, with a `SourceError` standing for a refused call."""
        answers: dict[int, Any] = {}
        for number, given in enumerate(calls):
            while not self.is_free:
                self.settle()
            then = _Put(answers, number, what, len(calls), tell)
            self.ask(Call(method="call", given=(function, given), then=then))
        while self.is_busy:
            self.settle()
        return [answers[number] for number in range(len(calls))]

    def _start(self) -> _Worker:
        import ray

        tiler = ray.remote(_Tiler).options(num_cpus=1, max_restarts=-1, max_task_retries=RETRIES)
        self._workers.append(_Worker(tiler.remote(self.lake, self.settings)))
        return self._workers[-1]


@dataclass(frozen=True)
class _Put:
    """Puts an answer in its place."""

    answers: dict[int, Any]
    number: int
    what: str
    of: int
    tell: Progress

    def __call__(self, answer: Any) -> None:
        self.answers[self.number] = answer
        self.tell(self.what, len(self.answers), self.of)


def crew_size(most: int | None = None) -> int:
    """Workers: one a slot, with one slot left for the rest; on a machine alone, no more than its cores."""
    import ray

    slots = int(ray.cluster_resources().get("CPU", 1)) - 1
    if len(ray.nodes()) == 1:
        slots = min(slots, os.cpu_count() or 1)
    return max(1, slots if most is None else min(slots, most))


class _Tiler:
    """What a worker can be asked: the actor's face of `SlideWorker`."""

    def __init__(self, lake: Location | None, settings: IngestSettings) -> None:
        self._worker = SlideWorker(lake, settings)

    def call(self, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        """A function's answer, or its refusal."""
        try:
            return function(*given)
        except SourceError as problem:
            return problem

    def look(self, *given: Any) -> tuple[Any, PackedSlide | None]:
        """What reading a section told, and the slide where it fits into the room that it is given."""
        try:
            return self._worker.look(*given)
        except SourceError as problem:
            return problem, None

    def write(self, work: Work, judged: list[Any]) -> Written:
        """Write a run. `judged` holds a reference to the slide, or nothing; a slide that is lost is read again."""
        return self._worker.write(work, lambda: fetched(judged))


def fetched(judged: list[Any]) -> PackedSlide | None:
    """The slide that was handed over; None where none was, or where it is lost."""
    import ray

    try:
        return ray.get(judged[0]) if judged else None
    except (ray.exceptions.ObjectLostError, ray.exceptions.RayActorError):
        return None  # its worker or the node that held it is gone
