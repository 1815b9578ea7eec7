"""What became of the slides between two versions of a lake, told from the catalogue alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["Difference", "diff"]

Kind = Literal["added", "replaced", "corrected", "retired", "refused"]

# What is new in every row, and what stands in a difference by itself.
_PASSED_OVER = {"slide_id", "ingest_id", "published_in", "retired_in", "status", "when", "software"}
_PASSED_OVER |= {"n_pairs", "fragments", "given", "corrected", "first_published", "profile_sketch", "reverted_to"}
SHOWN = 60  # characters of a value
SHOWN_OF_DIGEST = 8


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One slide that is not in the later version as it was in the earlier one."""

    change: Kind
    slide_id: str
    pairs_before: int
    pairs_after: int
    columns: tuple[str, ...]  # whose values differ, where the slide is in both versions
    before: dict[str, Any]  # column -> value, of those
    after: dict[str, Any]

    def flat(self) -> dict[str, Any]:
        """As one object of `--json`: the columns' values as text."""
        said = "; ".join(
            f"{name}: {_text(name, self.before[name])} -> {_text(name, self.after[name])}" for name in self.columns
        )
        return {
            "change": self.change,
            "slide_id": self.slide_id,
            "pairs_before": self.pairs_before,
            "pairs_after": self.pairs_after,
            "columns": ", ".join(self.columns),
            "values": said,
        }


def diff(earlier: Snapshot, later: Snapshot) -> list[Difference]:
    """Slides added, replaced by another ingest, corrected (the same pairs, other metadata) or retired, and sources
    refused since; by kind, then by slide."""
    old, new = _by_slide(earlier), _by_slide(later)
    found = []
    for slide_id, status in sorted({*old, *new}):
        before, after = old.get((slide_id, status)), new.get((slide_id, status))
        kind = _kind(before, after, status)
        if kind is None:
            continue
        columns = _changed(before, after) if before and after else ()
        found.append(
            Difference(
                change=kind,
                slide_id=slide_id,
                pairs_before=(before or {}).get("n_pairs") or 0,
                pairs_after=(after or {}).get("n_pairs") or 0,
                columns=columns,
                before={name: before[name] for name in columns} if before else {},
                after={name: after[name] for name in columns} if after else {},
            )
        )
    order = ("added", "replaced", "corrected", "retired", "refused")
    return sorted(found, key=lambda difference: (order.index(difference.change), difference.slide_id))


def _by_slide(snapshot: Snapshot) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["slide_id"], row["status"]): row for row in snapshot.slides(include_refused=True).to_pylist()}


def _kind(before: dict[str, Any] | None, after: dict[str, Any] | None, status: str) -> Kind | None:
    if status == "refused":
        is_new = after is not None and (before is None or before["ingest_id"] != after["ingest_id"])
        return "refused" if is_new else None
    if before is None:
        return "added"
    if after is None:
        return "retired"
    if before["ingest_id"] != after["ingest_id"]:
        return "replaced"
    return "corrected" if _changed(before, after) else None  # not a row that a revert inserted again as it was


def _changed(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    return tuple(name for name in before if name not in _PASSED_OVER and before[name] != after[name])


def _text(name: str, value: Any) -> str:
    """A value as a person reads it; digests and long lists by their beginning."""
    if value is None:
        return "(none)"
    if name.endswith("_digest"):
        return str(value)[:SHOWN_OF_DIGEST]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
