"""The one judge of a wave: reads of sections in, runs of spots to be written out.

Which of two twins stays, and which number a new gene gets, must not depend on who was read first. So sections come here
in one order: those whose names the lake holds already, then the new ones, each by slide_id. The former are judged when
all of them are read, for until then it is not known which of the lake's slides stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import DuplicateSettings, KnownSlides
from histolake.ingestion.runs import RunSizes, cut
from histolake.ingestion.twins import Twin, tell_one
from histolake.ingestion.worker import Look, Work
from histolake.platform.errors import SourceError
from histolake.platform.lake import Lake, PairsWriter
from histolake.platform.lake.images import LakeImages
from histolake.platform.storage import Location

__all__ = ["Begun", "Judge", "Judged", "in_order"]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A section on its way."""

    candidate: Candidate
    writer: PairsWriter
    is_known: bool  # the lake holds a slide of this name, which this one replaces
    place: int = 0  # in the order of judging

    @property
    def slide_id(self) -> str:
        """Its name in the lake."""
        return self.candidate.slide_id


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdict on a section: what is to be written, in how many runs; or why nothing is."""

    slide_id: str
    told: Look | SourceError | Twin
    runs: int = 0


def in_order(sections: Sequence[Begun]) -> list[Begun]:
    """The sections in the order in which they are judged, each with its place."""
    ordered = sorted(sections, key=lambda section: (not section.is_known, section.slide_id))
    return [replace(section, place=place) for place, section in enumerate(ordered)]


class Judge:
    """Judges the sections of a wave, in the order of their places."""

    def __init__(
        self,
        root: Location,
        content: KnownSlides,
        settings: DuplicateSettings,
        *,
        sections: Sequence[Begun],
        workers: int,
        sizes: RunSizes,
    ) -> None:
        """`content` is that of the slides that the lake holds; `workers` will write what is judged."""
        self._root = root
        self._content = content
        self._settings = settings
        self._workers, self._sizes = workers, sizes
        self._sections_left = len(sections)
        self._known = sum(section.is_known for section in sections)
        self._next = 0  # the place that is judged next
        self._waiting: dict[int, tuple[Begun, Look | SourceError]] = {}  # by place
        self._allocated: dict[str, set[tuple[str, str | None]]] = {}  # species -> genes that got numbers from here

    def judge(self, section: Begun, read: Look | SourceError) -> Iterator[Judged | Work]:
        """The verdicts that a section allows, each followed by the runs of its section. Sections may come in any order;
        all of them are judged when the last one has come."""
        self._waiting[section.place] = (section, read)
        if self._next == 0 and self._known:
            if any(place not in self._waiting for place in range(self._known)):
                return
            # What was known under the name of a section that is read again no longer counts.
            known = [self._waiting[place] for place in range(self._known)]
            self._content.forget([section.slide_id for section, told in known if isinstance(told, Look)])
        while self._next in self._waiting:
            yield from self._verdict(*self._waiting.pop(self._next))
            self._next += 1

    def _verdict(self, section: Begun, read: Look | SourceError) -> Iterator[Judged | Work]:
        told = tell_one(section.candidate, read, self._content, self._settings)
        if not isinstance(told, Look):
            self._sections_left -= 1
            yield Judged(slide_id=section.slide_id, told=told)
            return
        self._number_genes(told)
        runs = cut(told.n_kept, self._sizes, workers=self._workers, sections=self._sections_left)
        self._sections_left -= 1
        yield Judged(slide_id=section.slide_id, told=told, runs=len(runs))
        images = LakeImages(self._root)
        pyramid = images.pyramid(section.writer.ingest_id) if told.wants_pyramid else None
        for start, stop in runs:
            yield Work(candidate=section.candidate, writer=section.writer, start=start, stop=stop, pyramid=pyramid)

    def _number_genes(self, told: Look) -> None:
        """One commit for the genes that the lake lacks, before any of them is written."""
        numbered = self._allocated.setdefault(told.species, set())
        genes = sorted(set(told.unknown_genes) - numbered, key=str)
        if genes:
            symbols, ensembl_ids = [g[0] for g in genes], [g[1] for g in genes]
            Lake.open(self._root).resolve_genes(symbols, ensembl_ids, species=told.species, allocate=True)
            numbered.update(genes)
