"""What became of each section: the lines that `histolake ingest` ends with, and the rows of its rejections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from histolake.ingestion.discover import Candidate
from histolake.ingestion.recorded import given
from histolake.ingestion.slide import METADATA_FIELDS, Spot
from histolake.ingestion.worker import Look
from histolake.platform.errors import SourceError
from histolake.platform.lake import Attempt, Lake
from histolake.platform.schemas import PROVENANCE, REJECTIONS

__all__ = [
    "Outcome",
    "adopted",
    "as_read",
    "bare_record",
    "left",
    "rejections_of_slide",
    "rejections_of_spots",
    "unchanged",
]

# "left": to be ingested again as recorded, but the source is no longer what it was
Status = Literal["published", "unchanged", "refused", "planned", "left"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One section after (or, for a plan, before) its ingest."""

    slide_id: str
    section: str
    source: str
    status: Status
    spots_read: int = 0
    spots_kept: int = 0
    spots_refused: int = 0
    refused_by_rule: dict[str, int] = field(default_factory=dict)
    rule: str | None = None  # of a section that is refused as a whole
    reason: str | None = None
    flags: tuple[str, ...] = ()
    padded_patches: int = 0  # patches that leave the image in part and were filled with white
    corrected: tuple[str, ...] = ()  # columns of the catalogue whose correction stands
    lake_version: int | None = None
    estimated_bytes: int | None = None  # of a plan: what the lake would grow by
    estimated_seconds: float | None = None  # of a plan: of one worker

    def flat(self) -> dict[str, Any]:
        """As one object of `--json`."""
        row = asdict(self)
        row["flags"] = ", ".join(self.flags)
        row["corrected"] = ", ".join(self.corrected)
        row["refused_by_rule"] = ", ".join(f"{rule} {n}" for rule, n in self.refused_by_rule.items())
        return row


def rejections_of_spots(source: str, spots: Sequence[Spot]) -> pa.Table:
    """One row a refused spot, with the columns of `schemas.REJECTIONS` but the ids, which the lake adds."""
    rows = [
        {
            "source": source,
            "barcode": spot.barcode,
            "x_px": spot.x_px,
            "y_px": spot.y_px,
            "rule": spot.rule,
            "figure": spot.figure,
            "limit": spot.limit,
            "file": spot.file,
            "reason": spot.reason,
        }
        for spot in spots
    ]
    return pa.Table.from_pylist(rows, schema=_schema())


def rejections_of_slide(source: str, problem: SourceError) -> pa.Table:
    """The one row of a section that is refused as a whole; its barcode is null."""
    row = {
        "source": source,
        "rule": problem.rule,
        "figure": problem.figure,
        "limit": problem.limit,
        "file": problem.file,
        "reason": str(problem),
    }
    return pa.Table.from_pylist([row], schema=_schema())


def _schema() -> pa.Schema:
    return pa.schema([f for f in REJECTIONS if f.name not in ("ingest_id", "slide_id")])


def as_read(candidate: Candidate, told: Look | SourceError, status: Status) -> Outcome:
    """The outcome of a section that was read now, or refused."""
    if isinstance(told, SourceError):
        return _of(candidate, "refused", rule=told.rule, reason=str(told))
    return _of(
        candidate,
        status,
        spots_read=told.record["n_spots"],
        spots_kept=told.n_kept,
        spots_refused=len(told.refused),
        refused_by_rule=dict(Counter(spot.rule for spot in told.refused).most_common()),
        flags=tuple(told.record["flags"]),
    )


def adopted(candidate: Candidate, attempt: Attempt) -> Outcome:
    """The outcome of a section that an earlier run wrote and could not publish any more."""
    assert attempt.plan is not None
    record, kept = attempt.plan["record"], sum(part["rows"] for part in attempt.plan["fragments"])
    return _of(
        candidate,
        attempt.plan["status"],
        spots_read=record["n_spots"],
        spots_kept=kept,
        spots_refused=attempt.plan["n_rejections"] if kept else 0,
        flags=tuple(record.get("flags") or ()),
    )


def unchanged(found: Sequence[tuple[Candidate, dict[str, Any]]], lake: Lake) -> dict[str, Outcome]:
    """The outcomes, by slide_id, of sections that the lake holds already in these rows. One that was refused then is
    refused now."""
    if not found:
        return {}
    version = lake.version
    refused = sorted({row["ingest_id"] for _, row in found if row["status"] == "refused"})
    why = {row["ingest_id"]: row for row in lake.catalog.rejections(refused).to_pylist()} if refused else {}
    return {c.slide_id: _unchanged(c, row, why.get(row["ingest_id"], {}), version) for c, row in found}


def _unchanged(candidate: Candidate, row: dict[str, Any], why: dict[str, Any], version: int) -> Outcome:
    if row["status"] == "refused":
        return _of(candidate, "refused", rule=why.get("rule"), reason=why.get("reason"), lake_version=version)
    return _of(
        candidate,
        "unchanged",
        spots_read=row["n_spots"],
        spots_kept=row["n_pairs"],
        spots_refused=row["n_rejections"],
        flags=tuple(row["flags"] or ()),
        corrected=tuple(entry["column"] for entry in row["corrected"] or ()),
        lake_version=version,
    )


def left(candidate: Candidate, digest: str | SourceError) -> Outcome | None:
    """The outcome of a section that is to be ingested again as recorded, where its source is not what was recorded."""
    if candidate.expects in (None, digest):
        return None
    problem = candidate.problem or (digest if isinstance(digest, SourceError) else None)
    changed = f"{candidate.uri} is not what it was when it was ingested; ingest it again with its metadata table."
    return _of(candidate, "left", rule=problem.rule if problem else "source_changed", reason=str(problem or changed))


def _of(candidate: Candidate, status: Status, **told: Any) -> Outcome:
    return Outcome(slide_id=candidate.slide_id, section=candidate.section, source=candidate.uri, status=status, **told)


_TEXT = {field.name for field in PROVENANCE if field.type == pa.string()}


def bare_record(candidate: Candidate, problem: SourceError) -> dict[str, Any]:
    """What is known of a section that is refused: by its reader, if it came that far, and by the metadata."""
    beside = candidate.source.metadata if candidate.source else {}
    said = {**beside, **candidate.metadata}
    known = {name: said[name] for name in METADATA_FIELDS if isinstance(said.get(name), str) and name in _TEXT}
    return {
        **problem.known,
        **known,
        "cohort": candidate.cohort,
        "section": candidate.section,
        "source": candidate.uri,
        "reader": candidate.source.reader if candidate.source else None,
        "given": given(candidate.metadata),
        "simulated": str(said.get("simulated", "")).lower() in ("true", "1", "yes"),
        "n_spots": 0,
    }
