"""Sections on their way through a crew: read, judged one after the other, and written, many at once.

A section is written as soon as it is judged, while others are still being read, so that no worker waits for the
slowest of them. Only judging keeps to an order, that of the slide_ids: which of two twins stays, and which number a new
gene gets, must not depend on who was read first.

The slide that was read for judging is handed over to those who write it (`handover`), as long as what waits in the
object store stays within `ROOM` of it; one for which there is no room is read again by each worker that writes it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from histolake.ingestion.crew import Call, Crew, Progress
from histolake.ingestion.discover import Candidate
from histolake.ingestion.runs import cut
from histolake.ingestion.worker import Look, Work, Written, add_pyramid
from histolake.platform.errors import SourceError
from histolake.platform.lake import Attempt, Fragment, Lake

__all__ = ["Flow", "Section"]

ROOM = 0.6  # of the object store, for judged slides that wait to be written
AHEAD = 3  # sections under way for each worker


@dataclass(eq=False)
class Section:
    """A section under way."""

    candidate: Candidate
    attempt: Attempt
    is_known: bool  # the lake has a slide of this name, whose content is replaced by this one
    told: Look | SourceError | None = None
    room_bytes: int = 0  # of the object store that are kept for it
    slide: list[Any] = field(default_factory=list)  # a reference to the judged slide, where it was handed over
    runs: int = 0
    written: dict[int, Written] = field(default_factory=dict)

    @property
    def slide_id(self) -> str:
        """Its name in the lake."""
        return self.candidate.slide_id

    @property
    def fragments(self) -> list[Fragment]:
        """What was written, in the order of the spots."""
        found = [self.written[start].fragment for start in sorted(self.written)]
        return [fragment for fragment in found if fragment is not None]

    @property
    def problem(self) -> SourceError | None:
        """Why it is refused after all, if it is: the first reason in the order of the spots."""
        found = [self.written[start].problem for start in sorted(self.written)]
        return next((problem for problem in found if problem is not None), None)


class Decides(Protocol):
    """Who decides what becomes of sections, on the driver."""

    def forget(self, sections: Sequence[Section]) -> None:
        """Sections that the lake knows are read: what it knew under their names no longer counts."""

    def judge(self, section: Section) -> Look | None:
        """What is to be written of a section that was read, None if nothing. Asked in the order of the slide_ids."""

    def stage(self, section: Section, told: Look) -> None:
        """A section has been written to its last spot, or turned out to be of no use."""

    def refuse(self, section: Section, problem: SourceError) -> None:
        """A section's image turned out to be of no use before it was written."""


class Flow:
    """Takes sections through a crew. Those that the lake knows come first, so that judging knows what is replaced."""

    def __init__(self, crew: Crew, lake: Lake, sections: Sequence[Section], decides: Decides, tell: Progress) -> None:
        self._crew, self._lake, self._decides, self._tell = crew, lake, decides, tell
        by_name = sorted(sections, key=lambda section: section.slide_id)
        self._unread = deque(sorted(by_name, key=lambda section: not section.is_known))
        self._unjudged = deque(by_name)
        self._known = [section for section in sections if section.is_known]
        self._known_left = len(self._known)
        self._ready: deque[Call] = deque()
        self._open = 0  # sections read or being read, and not yet whole
        self._room_bytes = int(_object_store_bytes() * ROOM)
        self._counts = {"reading": [0, len(sections)], "tiling spots": [0, 0], "pyramids": [0, 0]}

    def run(self) -> None:
        """All of them to their end."""
        while True:
            self._hand_out()
            if not self._crew.is_busy:
                break
            self._crew.settle()
        assert not self._unjudged and not self._open, "every section comes to an end"

    def _hand_out(self) -> None:
        """Give the crew all that it can take: what is ready to be written first, then more to read."""
        while self._crew.is_free:
            if self._ready:
                self._crew.ask(self._ready.popleft())
            elif self._unread and (self._known_left or self._open < AHEAD * self._crew.most):
                self._read(self._unread.popleft())
            else:
                return

    def _read(self, section: Section) -> None:
        self._open += 1
        section.room_bytes = self._room_bytes // max(2, self._crew.most // 2)
        self._room_bytes -= section.room_bytes

        def then(told: Look | SourceError, slide: Any) -> None:
            self._count("reading", 1)
            section.told = told
            used = 0 if isinstance(told, SourceError) else told.packed_bytes
            section.slide = [slide] if used else []
            self._room_bytes += section.room_bytes - used
            section.room_bytes = used
            if section.is_known:
                self._known_left -= 1
                if not self._known_left:
                    self._decides.forget(self._known)
            self._judge_in_order()

        given = (section.candidate, section.attempt.ingest_id, section.room_bytes)
        self._crew.ask(Call(method="look", given=given, then=then, about=section.slide_id, answers=2))

    def _judge_in_order(self) -> None:
        if self._known_left:
            return
        while self._unjudged and self._unjudged[0].told is not None:
            section = self._unjudged.popleft()
            told = self._decides.judge(section)
            if told is None:
                self._close(section)
                continue
            self._count("tiling spots", 0, more=told.n_kept)
            if told.wants_pyramid:
                self._add_pyramid(section, told)
            else:
                self._write(section, told)

    def _add_pyramid(self, section: Section, told: Look) -> None:
        """Turn a large plain image into a pyramid, once, before patches are cut from it."""
        self._count("pyramids", 0, more=1)

        def then(problem: SourceError | None) -> None:
            self._count("pyramids", 1)
            if problem is None:
                self._write(section, told)
            else:
                self._decides.refuse(section, problem)
                self._close(section)

        image = (section.candidate, told.record["image"], self._lake.root, section.attempt.ingest_id)
        self._ready.append(Call(method="call", given=(add_pyramid, image), then=then))

    def _write(self, section: Section, told: Look) -> None:
        pyramid = self._lake.images.pyramid(section.attempt.ingest_id) if told.wants_pyramid else None
        runs = cut(told.n_kept, workers=self._crew.most, sections=1 + len(self._unread) + len(self._unjudged))
        section.runs = len(runs)
        if not runs:
            self._close(section)
            self._decides.stage(section, told)

        def then(written: Written) -> None:
            section.written[written.start] = written
            self._count("tiling spots", written.spots)
            if len(section.written) == section.runs:
                self._close(section)
                self._decides.stage(section, told)

        for start, stop in runs:
            work = Work(
                candidate=section.candidate, writer=section.attempt.pairs, start=start, stop=stop, pyramid=pyramid
            )
            self._ready.append(Call(method="write", given=(work, section.slide), then=then, about=section.slide_id))

    def _close(self, section: Section) -> None:
        """Let go of what was kept for a section."""
        self._open -= 1
        self._room_bytes += section.room_bytes
        section.room_bytes = 0
        section.slide = []

    def _count(self, what: str, done: int, more: int = 0) -> None:
        count = self._counts[what]
        count[0] += done
        count[1] += more
        self._tell(what, *count)


def _object_store_bytes() -> float:
    import ray

    return float(ray.cluster_resources().get("object_store_memory", 0))
