"""The ingest: many sections at once on Ray, each published whole or not at all.

1. Digests of the sources are taken in tasks; sections that the lake holds unchanged stop there.
2. The others go through a pipeline of Ray Data (`workforce`): they are read and their spots judged, with the overviews
   of their images written and pyramids made of large ones that cannot be read in parts; they are judged among each
   other, in order (`judging`), and genes that the lake lacks get their numbers; runs of their spots are written as
   fragments of `pairs.lance`, each by a worker that keeps its slide open.
3. As soon as the last run of a section is in, the section is staged; staged sections are published together every few
   seconds. Refused ones are recorded.

Sections go through in waves, so that memory does not grow with the cohort. One section's failure stops no other.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import KnownSlides
from histolake.ingestion.estimate import survey
from histolake.ingestion.genes import table_digest
from histolake.ingestion.housekeeping import housekeeping_symbols
from histolake.ingestion.judging import Begun, Judge, Judged, in_order
from histolake.ingestion.outcome import (
    Outcome,
    adopted,
    as_read,
    bare_record,
    left,
    rejections_of_slide,
    rejections_of_spots,
    unchanged,
)
from histolake.ingestion.rows import IngestSettings
from histolake.ingestion.runs import RunSizes
from histolake.ingestion.shelf import put_up
from histolake.ingestion.twins import Live, Twin, known_slides, tell_apart, twin_digest
from histolake.ingestion.worker import Look, Written, source_digest
from histolake.ingestion.workforce import Progress, in_tasks, pool_size, through_pipeline
from histolake.platform.errors import IntegrityError, SourceError
from histolake.platform.lake import Attempt, Fragment, Lake
from histolake.platform.schemas import PAIRS, schema_version
from histolake.platform.settings import Settings

__all__ = ["ingest", "ingest_settings", "plan", "settings_digest", "workers_for"]

FORMAT = 3  # raise it when the same files under the same settings come out as other rows
WAVE = 256  # sections begun at once
RUN_SPOTS = RunSizes()  # in a fragment
AHEAD = 3  # sections that are read or written at once, for each worker that writes
PUBLISH_EVERY_S = 30.0  # what is staged and not yet published when a run dies is adopted by the next one


def ingest_settings(settings: Settings) -> IngestSettings:
    """The sections of the settings that decide what is written."""
    sections = ("quality", "scale", "patches", "sentences", "genes", "duplicates", "images")
    parts = {name: settings.section(name) for name in sections}
    return IngestSettings(
        **parts,
        housekeeping=housekeeping_symbols(parts["sentences"].housekeeping),
        gene_table=table_digest(parts["genes"]),
    )


def settings_digest(settings: IngestSettings) -> str:
    """A hash of all settings that decide what is written, and of the format of the rows. Lists and tables that a
    setting names count by what they hold, not by where they lie."""
    versions = {"format": FORMAT, "pairs": schema_version(PAIRS)}
    settings = replace(
        settings,
        sentences=replace(settings.sentences, housekeeping=""),
        genes=replace(settings.genes, table=""),
    )
    deciding = {name: value for name, value in asdict(settings).items() if name != "images"}
    return hashlib.sha256(json.dumps([versions, deciding], sort_keys=True).encode()).hexdigest()


def plan(candidates: Iterable[Candidate], lake: Lake | None, settings: IngestSettings, tell: Progress) -> list[Outcome]:
    """What `ingest` would do and what it would cost (see `estimate`), without writing. Ray must be running."""
    known = known_slides(lake)
    planned = (_planned(wave, lake, known, settings, tell) for wave in _waves(candidates))
    return [outcome for outcomes in planned for outcome in outcomes]


def _planned(
    wave: Sequence[Candidate],
    lake: Lake | None,
    known: KnownSlides,
    settings: IngestSettings,
    tell: Progress,
) -> list[Outcome]:
    """The plan of one wave."""
    digest = settings_digest(settings)
    digests = in_tasks(source_digest, [(c,) for c in wave], "looking at files", tell)
    found: dict[str, Outcome] = {c.slide_id: o for c, d in zip(wave, digests, strict=True) if (o := left(c, d))}
    if lake is not None:
        live = Live.of(lake, [c.slide_id for c in wave])
        there = [
            (c, row)
            for c, d in zip(wave, digests, strict=True)
            if c.slide_id not in found and not isinstance(d, SourceError)
            if (row := live.row(c.slide_id, d, digest)) is not None
        ]
        found |= unchanged(there, lake)
    fresh = [c for c in wave if c.slide_id not in found]
    surveys = in_tasks(survey, [(c, settings) for c in fresh], "reading", tell)
    looks = [told if isinstance(told, SourceError) else told[0] for told in surveys]
    costs = {c.slide_id: told[1] for c, told in zip(fresh, surveys, strict=True) if isinstance(told, tuple)}
    for c, told in zip(fresh, tell_apart(fresh, looks, known, settings.duplicates), strict=True):
        found[c.slide_id] = as_read(c, told.problem if isinstance(told, Twin) else told, "planned")
        if isinstance(told, Look):
            cost = costs[c.slide_id]
            found[c.slide_id] = replace(found[c.slide_id], estimated_bytes=cost.bytes, estimated_seconds=cost.seconds)
    return [found[c.slide_id] for c in wave]


def ingest(candidates: Iterable[Candidate], lake: Lake, settings: IngestSettings, tell: Progress) -> list[Outcome]:
    """Bring sections into a lake as they are found; one outcome a section, in their order. Ray must be running.

    Safe to run again: what is published stays, what was cut short starts anew or is adopted.
    """
    run = _Run(lake=lake, settings=settings, tell=tell)
    order: list[str] = []
    for wave in _waves(candidates):
        order += [candidate.slide_id for candidate in wave]
        run.wave(wave)
    return [run.outcomes[slide_id] for slide_id in order]


def workers_for(outcomes: Iterable[Outcome]) -> int:
    """How many workers would share the planned work. Ray must be running."""
    return pool_size(
        sum(-(-outcome.spots_kept // RUN_SPOTS.smallest) for outcome in outcomes if outcome.status == "planned")
    )


class _Run:
    """One ingest under way."""

    def __init__(self, *, lake: Lake, settings: IngestSettings, tell: Progress) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._lake = lake
        self._settings = settings
        self._tell = tell
        self._attempts: dict[str, Attempt] = {}  # begun, not yet published
        self._staged: dict[str, Outcome] = {}  # staged, not yet published
        self._published_s = time.monotonic()
        self._known = known_slides(lake)
        self._ingest_ids: dict[str, str] = {}  # slide_id -> the ingest whose content is known under it

    def wave(self, candidates: Sequence[Candidate]) -> None:
        """Take some sections all the way."""
        try:
            self._take(self._begin(candidates))
        finally:
            # What is whole is published even if something else broke.
            self._publish()
            for attempt in self._attempts.values():
                attempt.abandon()
            self._attempts.clear()

    def _begin(self, candidates: Sequence[Candidate]) -> list[Begun]:
        """Take the digests; what is left to do, in the order of judging. Unchanged sections end here, adopted ones are
        staged already."""
        digests = in_tasks(source_digest, [(c,) for c in candidates], "looking at files", self._tell)
        under = settings_digest(self._settings)
        live = Live.of(self._lake, [candidate.slide_id for candidate in candidates])
        there, fresh = [], []
        for candidate, digest in zip(candidates, digests, strict=True):
            if (other := left(candidate, digest)) is not None:
                self.outcomes[candidate.slide_id] = other
                continue
            # A source that cannot even be hashed is refused under a digest of its problem.
            found = hashlib.sha256(str(digest).encode()).hexdigest() if isinstance(digest, SourceError) else digest
            row = live.row(candidate.slide_id, found, under)
            if row is not None:
                there.append((candidate, row))
                continue
            attempt = self._lake.begin(
                candidate.slide_id, source_digest=found, settings_digest=under, source=candidate.uri
            )
            if attempt.state == "unchanged":  # another writer published it a moment ago
                assert attempt.live is not None
                there.append((candidate, attempt.live))
                continue
            self._attempts[candidate.slide_id] = attempt
            if attempt.state == "adopted":
                self._staged[candidate.slide_id] = adopted(candidate, attempt)
                self._know(attempt)
            elif isinstance(digest, SourceError):
                self._refuse(candidate, digest)
            else:
                is_known = candidate.slide_id in live.published
                fresh.append(Begun(candidate=candidate, writer=attempt.pairs, is_known=is_known))
        self.outcomes |= unchanged(there, self._lake)
        return in_order(fresh)

    def _know(self, attempt: Attempt) -> None:
        """An adopted section was never looked at in this run; its content is known from its plan."""
        assert attempt.plan is not None
        if attempt.plan["status"] == "published":
            self._known.replace(attempt.slide_id, attempt.plan["record"])
            self._ingest_ids[attempt.slide_id] = attempt.ingest_id

    def _take(self, sections: Sequence[Begun]) -> None:
        """Everything through the pipeline, and each section staged when its last run is in."""
        if not sections:
            return
        workers = pool_size()
        shelf = put_up(ahead=AHEAD * workers)
        rules = self._settings.duplicates
        judge = Judge(self._lake.root, self._known, rules, sections=sections, workers=workers, sizes=RUN_SPOTS)
        candidates = {section.slide_id: section.candidate for section in sections}
        counts = {"reading": [0, len(sections)], "tiling spots": [0, 0]}
        waiting: dict[str, _Waiting] = {}
        try:
            for came in through_pipeline(sections, judge, shelf, self._lake.root, self._settings, workers):
                again = isinstance(came, Judged) and came.slide_id in waiting
                if again or came.slide_id in self._staged or came.slide_id in self.outcomes:
                    continue  # told again, by a worker that did a dead one's work anew
                if isinstance(came, Judged):
                    self._count(counts, "reading", 1)
                    section = self._verdict(candidates[came.slide_id], came)
                    if section is not None:
                        waiting[came.slide_id] = section
                        self._count(counts, "tiling spots", 0, section.look.n_kept)
                else:
                    waiting[came.slide_id].take(came)
                    self._count(counts, "tiling spots", came.spots)
                if came.slide_id not in waiting:
                    shelf.done(came.slide_id)
                elif waiting[came.slide_id].complete:
                    shelf.done(came.slide_id)
                    self._stage(waiting.pop(came.slide_id))
                if time.monotonic() - self._published_s > PUBLISH_EVERY_S:
                    self._publish()
        finally:
            shelf.take_down()
        missing = sorted(candidates.keys() - self._staged.keys() - self.outcomes.keys())
        if missing:
            raise IntegrityError(f"Not every run of spots of {', '.join(missing)} came back; run it again.")

    def _count(self, counts: dict[str, list[int]], what: str, done: int, more: int = 0) -> None:
        counts[what][0] += done
        counts[what][1] += more
        self._tell(what, *counts[what])

    def _verdict(self, candidate: Candidate, judged: Judged) -> _Waiting | None:
        """A section of which something is to be written; one that is refused is staged as such."""
        told = judged.told
        if isinstance(told, SourceError):
            self._refuse(candidate, told)
            return None
        if isinstance(told, Twin):
            self._refuse_twin(candidate, told)
            return None
        self._ingest_ids[candidate.slide_id] = self._attempts[candidate.slide_id].ingest_id
        self._known.replace(candidate.slide_id, told.record)
        return _Waiting(candidate, told, judged.runs)

    def _stage(self, section: _Waiting) -> None:
        candidate, told = section.candidate, section.look
        if section.problem is not None:
            self._refuse(candidate, section.problem)
            return
        fragments = section.counted()
        rejections = rejections_of_spots(candidate.uri, told.refused)
        self._attempts[candidate.slide_id].stage(told.record, fragments, rejections)
        outcome = as_read(candidate, told, "published")
        self._staged[candidate.slide_id] = replace(outcome, padded_patches=section.padded_patches)

    def _refuse(self, candidate: Candidate, problem: SourceError) -> None:
        attempt = self._attempts[candidate.slide_id]
        attempt.refuse(bare_record(candidate, problem), rejections_of_slide(candidate.uri, problem))
        self._staged[candidate.slide_id] = as_read(candidate, problem, "refused")

    def _refuse_twin(self, candidate: Candidate, twin: Twin) -> None:
        attempt = self._attempts[candidate.slide_id]
        attempt.source_digest = twin_digest(attempt.source_digest, self._ingest_of(twin.of))
        attempt.refuse(twin.record, rejections_of_slide(candidate.uri, twin.problem))
        self._lake.images.pyramid(attempt.ingest_id).delete()  # nothing is cut from it
        self._known.forget([candidate.slide_id])
        self._staged[candidate.slide_id] = as_read(candidate, twin.problem, "refused")

    def _ingest_of(self, slide_id: str) -> str:
        """The ingest whose content is known under a name: of this run, or else the one that the lake holds."""
        if slide_id not in self._ingest_ids:
            self._ingest_ids |= Live.of(self._lake, [slide_id]).published
        return self._ingest_ids.get(slide_id, "")  # "": forgotten meanwhile, so that the twin is let in next time

    def _publish(self) -> None:
        """One commit of the catalogue for all that is staged."""
        self._published_s = time.monotonic()
        if not self._staged:
            return
        version = self._lake.publish([self._attempts[slide_id] for slide_id in self._staged])
        for slide_id, outcome in self._staged.items():
            corrected = self._attempts.pop(slide_id).corrected
            self.outcomes[slide_id] = replace(outcome, lake_version=version, corrected=corrected)
        self._staged.clear()


@dataclass
class _Waiting:
    """A section whose fragments are being written."""

    candidate: Candidate
    look: Look
    runs: int

    def __post_init__(self) -> None:
        self._written: dict[int, Written] = {}

    def take(self, written: Written) -> None:
        """Note what came of one run."""
        self._written[written.start] = written

    @property
    def problem(self) -> SourceError | None:
        """Why the section is refused after all, if it is: the first reason in the order of its spots."""
        found = [written.problem for _, written in sorted(self._written.items())]
        return next((problem for problem in found if problem is not None), None)

    @property
    def padded_patches(self) -> int:
        """How many of its patches leave the image."""
        return sum(written.padded_patches for written in self._written.values())

    def counted(self) -> list[Fragment]:
        """Its fragments in the order of their spots. Raises `IntegrityError` unless they hold every spot once."""
        written = [written.fragment for _, written in sorted(self._written.items())]
        fragments = [fragment for fragment in written if fragment is not None]
        rows = sum(fragment.rows for fragment in fragments)
        if rows != self.look.n_kept:
            raise IntegrityError(
                f"{rows} pairs of {self.candidate.slide_id} were written where {self.look.n_kept} spots were kept: its "
                "source changed while it was read, or a worker failed. Run it again."
            )
        return fragments

    @property
    def complete(self) -> bool:
        """Whether every run has come back."""
        return len(self._written) == self.runs


def _waves(candidates: Iterable[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Some sections at a time, taken as they are found."""
    rest = iter(candidates)
    while wave := list(islice(rest, WAVE)):
        yield wave
