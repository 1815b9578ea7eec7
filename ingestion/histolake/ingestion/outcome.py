"""What became of each section: the lines that `histolake ingest` ends with, and the rows of its rejections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from histolake.ingestion.slide import Spot
from histolake.platform.errors import SourceError
from histolake.platform.schemas import REJECTIONS

__all__ = ["Outcome", "rejections_of_slide", "rejections_of_spots"]

Status = Literal["published", "unchanged", "refused", "planned"]


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
    lake_version: int | None = None

    def flat(self) -> dict[str, Any]:
        """As one object of `--json`."""
        row = asdict(self)
        row["flags"] = ", ".join(self.flags)
        row["refused_by_rule"] = ", ".join(f"{rule} {n}" for rule, n in self.refused_by_rule.items())
        return row


def counted(spots: Sequence[Spot]) -> dict[str, int]:
    """Refused spots by rule, the commonest first."""
    return dict(Counter(spot.rule for spot in spots).most_common())


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
