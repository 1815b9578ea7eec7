"""Twins: sections whose content the lake holds under another name, told apart one after the other.

The looks of a wave pass here in one order, those that replace a slide and then the others, each by slide_id, so that
of two twins the same one stays whichever was read first. A refused twin stands only as long as the slide that it
repeats: its row is written under a digest of its files and of that slide's ingest, so that forgetting the other, or its
failing later in the same run, lets the twin in next time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import DuplicateSettings, KnownSlides
from histolake.ingestion.worker import Look
from histolake.platform.errors import SourceError
from histolake.platform.lake import Lake
from histolake.platform.schemas import LOOK_ALIKE

__all__ = ["Live", "Twin", "known_slides", "tell_apart", "tell_one", "twin_digest"]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A section that is refused because it repeats another."""

    record: dict[str, Any]  # with the other's slide_id in look_alikes
    of: str
    problem: SourceError


def known_slides(lake: Lake | None) -> KnownSlides:
    """The content of the live slides, read once a run."""
    if lake is None:
        return KnownSlides()
    return KnownSlides.of_table(lake.at().slides().select(["slide_id", "profile_sketch", "image_hash"]))


def tell_apart(
    candidates: Sequence[Candidate],
    looks: Sequence[Look | SourceError],
    known: KnownSlides,
    settings: DuplicateSettings,
) -> list[Look | SourceError | Twin]:
    """The looks with their look-alikes, twins in the place of those that repeat a slide; `known` learns the others.

    What was known under the name of a section that is read again no longer counts; such sections are told first.
    """
    told: dict[str, Look | SourceError | Twin] = {}
    known.forget([c.slide_id for c, found in zip(candidates, looks, strict=True) if isinstance(found, Look)])
    pairs = list(zip(candidates, looks, strict=True))
    for candidate, found in sorted(pairs, key=lambda pair: (not known.has(pair[0].slide_id), pair[0].slide_id)):
        told[candidate.slide_id] = tell_one(candidate, found, known, settings)
    return [told[candidate.slide_id] for candidate in candidates]


def tell_one(
    candidate: Candidate, found: Look | SourceError, known: KnownSlides, settings: DuplicateSettings
) -> Look | SourceError | Twin:
    """The same for the next section by slide_id."""
    if isinstance(found, SourceError):
        return found
    verdict = known.judge(candidate.slide_id, found.record, settings)
    if verdict.same is not None:
        record = {**found.record, "look_alikes": [verdict.same]}
        return Twin(record=record, of=verdict.same, problem=_problem(candidate, verdict.same, verdict.shared, settings))
    flags = {*found.record["flags"], *([LOOK_ALIKE] if verdict.alike else [])}
    record = {**found.record, "look_alikes": verdict.alike, "flags": sorted(flags)}
    known.replace(candidate.slide_id, record)
    return replace(found, record=record)


def _problem(candidate: Candidate, other: str, shared: float, settings: DuplicateSettings) -> SourceError:
    return SourceError(
        f"About {shared:.0%} of the spots of {candidate.uri} have the profiles of {other}; a section that shares "
        f"{settings.max_shared:.0%} or more is taken for the same one. Leave one of the two out, or set "
        'duplicates.slides = "flag" to keep both.',
        rule="duplicate_slide",
        figure=shared,
        limit=settings.max_shared,
        file=candidate.uri,
    )


def twin_digest(source_digest: str, ingest_id: str) -> str:
    """The digest under which a twin is refused: of its files, and of the ingest that it repeats."""
    return hashlib.sha256(f"{source_digest}\0twin of {ingest_id}".encode()).hexdigest()


# What is asked of a live row, by `Live` and by the outcome of a section that is unchanged.
_COLUMNS = (
    *("slide_id", "ingest_id", "status", "source_digest", "settings_digest", "look_alikes"),
    *("n_spots", "n_pairs", "n_rejections", "flags", "corrected"),
)


class Live:
    """Live rows of a lake, to be asked whether a source is there already."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._twins: dict[str, list[dict[str, Any]]] = {}
        self.published: dict[str, str] = {}  # slide_id -> ingest_id
        for row in map(dict, rows):
            self._rows[row["slide_id"], row["source_digest"], row["settings_digest"]] = row
            if row["status"] == "published":
                self.published[row["slide_id"]] = row["ingest_id"]
            elif row["look_alikes"]:
                self._twins.setdefault(row["slide_id"], []).append(row)

    @classmethod
    def of(cls, lake: Lake, slide_ids: Iterable[str]) -> Live:
        """Those of some slides in the newest version, and of the slides for whose sake one was refused."""
        names = set(slide_ids)
        rows = [row for found in lake.catalog.live(names, _COLUMNS).values() for row in found]
        others = {other for row in rows if row["status"] == "refused" for other in row["look_alikes"] or ()} - names
        return cls([*rows, *(row for found in lake.catalog.live(others, _COLUMNS).values() for row in found)])

    def row(self, slide_id: str, source_digest: str, settings_digest: str) -> dict[str, Any] | None:
        """The live row of a source under these settings: published, refused, or refused as a twin that still is one."""
        exact = self._rows.get((slide_id, source_digest, settings_digest))
        if exact is not None:
            return exact
        for row in self._twins.get(slide_id, ()):
            others = [self.published[other] for other in row["look_alikes"] if other in self.published]
            as_twin = {(twin_digest(source_digest, ingest_id), settings_digest) for ingest_id in others}
            if (row["source_digest"], row["settings_digest"]) in as_twin:
                return row
        return None
