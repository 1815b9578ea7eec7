"""What a split does to a version of a lake, before anyone trains: who is on which side, who is left out, and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histolake.platform.splits.blocks import OUT
from histolake.platform.splits.marks import marks
from histolake.platform.splits.placing import LEFT_OUT, SIDES, unit_of
from histolake.platform.splits.selection import codes_of
from histolake.platform.splits.split import BLOCKS, Split

if TYPE_CHECKING:
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["SideTable", "side_table"]

WHY = {
    "both_sides": "kin on several sides",
    "against_group": "kin on another side",
    "no_group": "group not known",
    "look_alike": "looks like a slide that is cut",
    "no_gap": "niche of unknown or too large a width",
    "unlisted": "on no list",
    "band": "pairs between blocks of two sides",
}


@dataclass(frozen=True, kw_only=True)
class SideTable:
    """A split over a version: one row a side and reason, and one a slide."""

    sides: list[dict[str, Any]] = field(default_factory=list)
    slides: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # what figures from it have to be marked with


def side_table(
    snapshot: Snapshot, split: Split, watch: Callable[[Iterable[Any], int], Iterable[Any]] = lambda items, total: items
) -> SideTable:
    """Count what a split does. Of a split by blocks the places of all spots are read once, under `watch(items, total)`.

    Raises `SplitError` for a split that cannot be.
    """
    table = snapshot.slides()
    placings = split.placings(table)
    rows = {row["slide_id"]: row for row in table.to_pylist()}
    cut = sorted(slide_id for slide_id, placing in placings.items() if placing.side == BLOCKS)
    counts = _pairs_of_blocks(snapshot, split, cut, watch)
    for slide_id, placing in placings.items():
        if placing.side != BLOCKS:
            counts[slide_id][placing.side, placing.rule] = rows[slide_id]["n_pairs"] or 0
    each = [
        {
            "slide_id": slide_id,
            "side": side,
            "pairs": pairs,
            "study": rows[slide_id]["study"],
            "patient": rows[slide_id]["patient"],
            "organ": rows[slide_id]["organ"],
            "technology": rows[slide_id]["technology"],
            "why": placings[slide_id].why or WHY.get(rule, ""),
            "rule": rule,
        }
        for slide_id in sorted(counts)
        for (side, rule), pairs in sorted(counts[slide_id].items(), key=lambda item: _place(item[0][0]))
    ]
    return SideTable(sides=_by_side(each, rows), slides=each, said=_said(split, placings, rows))


def _pairs_of_blocks(
    snapshot: Snapshot, split: Split, cut: list[str], watch: Callable[[Iterable[Any], int], Iterable[Any]]
) -> defaultdict[str, Counter[tuple[str, str]]]:
    """slide_id -> (side, rule) -> pairs."""
    counts: defaultdict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    if cut:
        for chunk, codes_N in watch(codes_of(snapshot, split, cut), len(cut)):
            for code, count in Counter(codes_N.tolist()).items():
                counts[chunk.slide_id][(LEFT_OUT, "band") if code == OUT else (SIDES[code], "")] += count
    return counts


def _by_side(each: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    groups: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in each:
        groups[row["side"], row["rule"]].append(row)
    found = []
    for (side, rule), mine in sorted(groups.items(), key=lambda item: (_place(item[0][0]), item[0][1])):
        organs = Counter(row["organ"] or "not known" for row in mine)
        found.append(
            {
                "side": side,
                "slides": len(mine),
                "pairs": sum(row["pairs"] for row in mine),
                "units": len({unit_of(rows[row["slide_id"]]) for row in mine}),
                "organs": ", ".join(f"{organ} {count}" for organ, count in organs.most_common()),
                "why": WHY.get(rule, ""),
            }
        )
    return found


def _place(side: str) -> int:
    return SIDES.index(side) if side in SIDES else len(SIDES)


def _said(split: Split, placings: dict[str, Any], rows: dict[str, dict[str, Any]]) -> list[str]:
    """One sentence for each side whose figures are marked."""
    on: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for slide_id, placing in placings.items():
        for side in SIDES if placing.side == BLOCKS else [placing.side]:
            on[side].append(rows[slide_id])
    said = []
    for side in ("validation", "test"):
        found = Counter(mark for marked in marks(on[side], on["train"]).values() for mark in marked)
        if split.cuts_units and found and (split.kind != BLOCKS or split.fractions.get(side)):
            told = ", ".join(f"{mark} ({count} of {len(on[side])} slides)" for mark, count in found.items())
            said.append(f"Every figure from {side} is marked: {told}.")
    return said
