"""The ingest: many sections at once on Ray, each published whole or not at all.

1. Digests of the sources are taken; sections that the lake holds unchanged stop there.
2. The others are read and judged by the crew's workers, which also write the overviews of their images. Refused ones
   are recorded, genes that the lake lacks get their numbers before the section is written.
3. A large image that cannot be read in parts is turned into a tiled pyramid, once.
4. Runs of spots are written by the crew. A worker keeps its slide open and writes its own fragments of `pairs.lance`,
   so that neither images nor counts pass through the driver; a fragment of a run that was asked for twice is never
   named by anybody. As soon as the last run of a section is in, the section is staged; staged sections are published
   together every few seconds.

Steps 2 to 4 overlap from section to section (`flow`). Sections go through in waves, so that memory does not grow with
the cohort. One section's failure stops no other.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice

from histolake.ingestion.crew import Crew, Progress, crew_size
from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import KnownSlides
from histolake.ingestion.estimate import survey
from histolake.ingestion.flow import Flow, Section
from histolake.ingestion.genes import table_digest
from histolake.ingestion.housekeeping import housekeeping_symbols
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
from histolake.ingestion.runs import SMALLEST
from histolake.ingestion.twins import Live, Twin, known_slides, tell_apart, tell_one, twin_digest
from histolake.ingestion.worker import Look, source_digest
from histolake.platform.errors import SourceError
from histolake.platform.lake import Attempt, Lake
from histolake.platform.schemas import PAIRS, schema_version
from histolake.platform.settings import Settings

__all__ = ["ingest", "ingest_settings", "plan", "settings_digest", "workers_for"]

FORMAT = 2  # raise it when the same files under the same settings come out as other rows
WAVE = 256  # sections under way at once
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
    live = Live(()) if lake is None else Live.of(lake)
    known = known_slides(lake)
    with Crew(None if lake is None else lake.root, settings) as crew:
        return [outcome for wave in _waves(candidates) for outcome in _planned(wave, lake, live, known, crew, tell)]


def _planned(
    wave: Sequence[Candidate], lake: Lake | None, live: Live, known: KnownSlides, crew: Crew, tell: Progress
) -> list[Outcome]:
    """The plan of one wave."""
    settings, digest = crew.settings, settings_digest(crew.settings)
    digests = crew.all(source_digest, [(c,) for c in wave], "looking at files", tell)
    found: dict[str, Outcome] = {c.slide_id: o for c, d in zip(wave, digests, strict=True) if (o := left(c, d))}
    for c, d in zip(wave, digests, strict=True):
        row = None if isinstance(d, SourceError) else live.row(c.slide_id, d, digest)
        if row is not None and lake is not None and c.slide_id not in found:
            found[c.slide_id] = unchanged(c, row, lake)
    fresh = [c for c in wave if c.slide_id not in found]
    surveys = crew.all(survey, [(c, settings) for c in fresh], "reading", tell)
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
    order: list[str] = []
    with Crew(lake.root, settings) as crew:
        run = _Run(lake=lake, crew=crew, tell=tell)
        for wave in _waves(candidates):
            order += [candidate.slide_id for candidate in wave]
            run.wave(wave)
    return [run.outcomes[slide_id] for slide_id in order]


def workers_for(outcomes: Iterable[Outcome]) -> int:
    """How many workers would share the planned work. Ray must be running."""
    return crew_size(sum(-(-outcome.spots_kept // SMALLEST) for outcome in outcomes if outcome.status == "planned"))


class _Run:
    """One ingest under way."""

    def __init__(self, *, lake: Lake, crew: Crew, tell: Progress) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self._lake = lake
        self._crew = crew
        self._settings = crew.settings
        self._tell = tell
        self._attempts: dict[str, Attempt] = {}  # begun, not yet published
        self._staged: dict[str, Outcome] = {}  # staged, not yet published
        self._published_s = time.monotonic()
        self._known = known_slides(lake)
        self._ingest_ids: dict[str, str] = {}  # slide_id -> the ingest whose content is known under it
        self._allocated: dict[str, set[tuple[str, str | None]]] = {}  # species -> genes that got numbers in this run

    def wave(self, candidates: Sequence[Candidate]) -> None:
        """Take some sections all the way."""
        try:
            Flow(self._crew, self._lake, self._begin(candidates), self, self._tell).run()
        finally:
            # What is whole is published even if something else broke.
            self._publish()
            for attempt in self._attempts.values():
                attempt.abandon()
            self._attempts.clear()

    def _begin(self, candidates: Sequence[Candidate]) -> list[Section]:
        """Take the digests; what is left to do. Unchanged sections end here, adopted ones are staged already."""
        digests = self._crew.all(source_digest, [(c,) for c in candidates], "looking at files", self._tell)
        under = settings_digest(self._settings)
        live = Live.of(self._lake)
        self._ingest_ids |= live.published
        fresh = []
        for candidate, digest in zip(candidates, digests, strict=True):
            if (other := left(candidate, digest)) is not None:
                self.outcomes[candidate.slide_id] = other
                continue
            # A source that cannot even be hashed is refused under a digest of its problem.
            found = hashlib.sha256(str(digest).encode()).hexdigest() if isinstance(digest, SourceError) else digest
            row = live.row(candidate.slide_id, found, under)
            if row is not None:
                self.outcomes[candidate.slide_id] = unchanged(candidate, row, self._lake)
                continue
            attempt = self._lake.begin(
                candidate.slide_id, source_digest=found, settings_digest=under, source=candidate.uri
            )
            if attempt.state == "unchanged":  # another writer published it a moment ago
                assert attempt.live is not None
                self.outcomes[candidate.slide_id] = unchanged(candidate, attempt.live, self._lake)
                continue
            self._attempts[candidate.slide_id] = attempt
            section = Section(candidate, attempt, is_known=candidate.slide_id in live.published)
            if attempt.state == "adopted":
                self._staged[candidate.slide_id] = adopted(candidate, attempt)
                self._know(attempt)
            elif isinstance(digest, SourceError):
                self.refuse(section, digest)
            else:
                fresh.append(section)
        return fresh

    # -- what the flow asks ---------------------------------------------------------------------------------------

    def forget(self, sections: Sequence[Section]) -> None:
        """What was known under the names of sections that are read again no longer counts."""
        self._known.forget([section.slide_id for section in sections if isinstance(section.told, Look)])

    def judge(self, section: Section) -> Look | None:
        """What is to be written of a section; one that is refused is staged as such."""
        assert section.told is not None, "it was read"
        told = tell_one(section.candidate, section.told, self._known, self._settings.duplicates)
        if isinstance(told, SourceError):
            self.refuse(section, told)
            return None
        if isinstance(told, Twin):
            self._refuse_twin(section, told)
            return None
        self._ingest_ids[section.slide_id] = section.attempt.ingest_id
        genes = sorted(set(told.unknown_genes) - self._allocated.setdefault(told.species, set()), key=str)
        if genes:
            symbols, ensembl_ids = [g[0] for g in genes], [g[1] for g in genes]
            self._lake.resolve_genes(symbols, ensembl_ids, species=told.species, allocate=True)
            self._allocated[told.species].update(genes)
        return told

    def stage(self, section: Section, told: Look) -> None:
        """A section that is written to its last spot, or refused while it was."""
        if (problem := section.problem) is not None:
            self.refuse(section, problem)
        else:
            rejections = rejections_of_spots(section.candidate.uri, told.refused)
            section.attempt.stage(told.record, section.fragments, rejections)
            padded = sum(written.padded_patches for written in section.written.values())
            outcome = as_read(section.candidate, told, "published")
            self._staged[section.slide_id] = replace(outcome, padded_patches=padded)
        if time.monotonic() - self._published_s > PUBLISH_EVERY_S:
            self._publish()

    def refuse(self, section: Section, problem: SourceError) -> None:
        """A section that is refused as a whole."""
        candidate = section.candidate
        section.attempt.refuse(bare_record(candidate, problem), rejections_of_slide(candidate.uri, problem))
        self._staged[section.slide_id] = as_read(candidate, problem, "refused")

    # -- the rest -------------------------------------------------------------------------------------------------

    def _refuse_twin(self, section: Section, twin: Twin) -> None:
        attempt = section.attempt
        attempt.source_digest = twin_digest(attempt.source_digest, self._ingest_ids[twin.of])
        attempt.refuse(twin.record, rejections_of_slide(section.candidate.uri, twin.problem))
        self._staged[section.slide_id] = as_read(section.candidate, twin.problem, "refused")

    def _know(self, attempt: Attempt) -> None:
        """An adopted section was never looked at in this run; its content is known from its plan."""
        assert attempt.plan is not None
        if attempt.plan["status"] == "published":
            self._known.replace(attempt.slide_id, attempt.plan["record"])
            self._ingest_ids[attempt.slide_id] = attempt.ingest_id

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


def _waves(candidates: Iterable[Candidate]) -> Iterator[Sequence[Candidate]]:
    """Some sections at a time, taken as they are found."""
    rest = iter(candidates)
    while wave := list(islice(rest, WAVE)):
        yield wave
