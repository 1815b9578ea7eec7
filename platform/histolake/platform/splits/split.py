"""Splits that never leak: which slides train, which choose, which test.

The unit is (study, patient) where the patient is known, else the study: all slides of a unit are on one side. A bare
patient name is never joined across studies. Look-alike sections are joined into one unit. A split is a pure function of
the catalogue's rows at a version and of what it declares (fractions and seed, or lists); slides that are added never
move an old one. The definition, and why it holds, stand in `placing`.

kind     what decides                                        what happens where that would leak
units    a hash of (unit, seed), by fractions of the units   a slide takes the side of its older kin, or is left out
groups   the organ, technology or study, by lists or a hash  a slide whose kin is on another side is left out
named    lists of slide_ids                                  refused, unless the split says that it `cuts_units`
blocks   a hash of (slide, block, seed), pair by pair        a band around each block is left out; see `blocks`

Splits that say `cuts_units` (blocks always do) put one patient on several sides: every figure from them is marked
(`marks`).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import SplitError
from histolake.platform.splits.blocks import block_sides
from histolake.platform.splits.placing import LEFT_OUT, SIDES, Placing, Row, place, place_apart, resembling, unit_of

__all__ = ["BLOCKS", "GROUPS", "LEFT_OUT", "SIDES", "Cut", "Split", "group_of", "read_slides", "unit_of"]

BLOCKS = "blocks"  # in the place of a side: the slide's pairs are on several (`Split.rows`)
GROUPS = ("organ", "technology", "study")
KINDS = ("named", "units", "groups", "blocks")
BLOCK_UM = 2000.0
COLUMNS = (
    *("slide_id", "cohort", "study", "patient", "organ", "technology", "look_alikes"),
    *("first_published", "published_in", "niche_um"),
)


@dataclass(frozen=True)
class Cut:
    """What stands on more than one side of a named split."""

    kind: str  # "unit" | "look_alike"
    what: tuple[str, str]  # (study, patient) | the two slides
    sides: tuple[str, ...]

    def __str__(self) -> str:
        names = " / ".join(part for part in self.what if part)
        if self.kind == "look_alike":
            return f"look-alikes ({names})"
        return f"slides of one patient ({names})" if self.what[1] else f"slides that may be of one patient ({names})"


def read_slides(slides: pa.Table) -> list[Row]:
    """What splits read of the rows of `catalog/slides`; columns that a table lacks are None."""
    rows: list[Row] = slides.select([name for name in COLUMNS if name in slides.column_names]).to_pylist()
    return rows


@dataclass(frozen=True, kw_only=True)
class Split:
    """A pure function from slides to sides. Make it with `named`, `by_unit`, `by_group`, `leave_one_out` or
    `spatial_blocks`."""

    kind: str  # one of KINDS
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # side -> slide_ids or groups
    cuts_units: bool = False  # whether it may cut through a unit or a pair of look-alikes
    fractions: Mapping[str, float] = field(default_factory=dict)  # side -> share of the units, groups or blocks
    seed: int = 0
    by: str = ""  # groups: the column
    block_um: float = BLOCK_UM  # blocks: their width
    gap_um: float | None = None  # blocks: the width of the band between sides; None: each slide's niche_um
    name: str = ""  # of one split of a series, such as "organ kidney"

    @classmethod
    def named(
        cls,
        *,
        train: Sequence[str],
        validation: Sequence[str] = (),
        test: Sequence[str] = (),
        cuts_units: bool = False,
        name: str = "",
    ) -> Split:
        """A split by lists of slide_ids; slides on no list are left out."""
        lists = _lists({"train": train, "validation": validation, "test": test})
        if not train:
            raise SplitError("No slide is named for training; name at least one.")
        return cls(kind="named", lists=lists, cuts_units=cuts_units, name=name)

    @classmethod
    def by_unit(cls, fractions: Mapping[str, float], seed: int = 0) -> Split:
        """A split by shares of the units, such as `{"train": 0.8, "validation": 0.1, "test": 0.1}`."""
        return cls(kind="units", fractions=_fractions(fractions), seed=seed)

    @classmethod
    def by_group(
        cls,
        by: str,
        *,
        train: Sequence[str] | None = None,
        validation: Sequence[str] = (),
        test: Sequence[str] = (),
        fractions: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> Split:
        """A split by organ, technology or study: all slides of one are on one side.

        Either lists (without `train`, all that are not listed train; with it they are left out) or `fractions` of the
        groups, drawn by a hash of the group and the seed. Capitals and spaces make no difference. A slide whose group
        is not known is left out, as is one whose patient or look-alike is already on another side.
        """
        if by not in GROUPS:
            raise SplitError(f"A split by {by!r} cannot be; it is by {', '.join(GROUPS[:-1])} or {GROUPS[-1]}.")
        if (fractions is None) == (train is None and not validation and not test):
            raise SplitError(f"Say which {by} is on which side either by lists or by fractions.")
        if fractions is not None:
            return cls(kind="groups", by=by, fractions=_fractions(fractions), seed=seed)
        given = {"validation": validation, "test": test} | ({} if train is None else {"train": train})
        lists = _lists({side: [_plain(name) for name in names] for side, names in given.items()})
        return cls(kind="groups", by=by, lists=lists)

    @classmethod
    def spatial_blocks(
        cls,
        fractions: Mapping[str, float],
        seed: int = 0,
        *,
        block_um: float = BLOCK_UM,
        gap_um: float | None = None,
    ) -> Split:
        """A split within slides: squares of `block_um`, each on a side by a hash of (slide, square, seed), and a band
        of `gap_um` between sides that is left out (a slide's `niche_um` if not given). It cuts through every unit."""
        if block_um <= 0 or not np.isfinite(block_um) or (gap_um is not None and not 0 <= gap_um < block_um):
            raise SplitError(
                f"Blocks of {block_um:g} um with a gap of {gap_um} um cannot be; a block is wider than the gap."
            )
        shares = _fractions(fractions)
        return cls(kind="blocks", fractions=shares, seed=seed, block_um=block_um, gap_um=gap_um, cuts_units=True)

    @staticmethod
    def leave_one_out(slides: pa.Table, by: str = "patient") -> list[Split]:
        """One named split for each patient, organ, technology or study of the slides given (see `leave_one_out`)."""
        from histolake.platform.splits.leave_one_out import leave_one_out

        return leave_one_out(read_slides(slides), by)

    # -- sides ----------------------------------------------------------------------------------------------------

    def assign(self, slides: pa.Table) -> dict[str, str]:
        """slide_id -> train, validation, test or left_out, for the rows of `catalog/slides` given: all slides of a
        version, for their kin decide with them. Of a split by blocks, `BLOCKS` where pairs are asked for (`rows`).

        Raises `SplitError` if what is named is not there, or if sides share a unit or a look-alike without
        `cuts_units`.
        """
        return {slide_id: placing.side for slide_id, placing in self.placings(slides).items()}

    def placings(self, slides: pa.Table) -> dict[str, Placing]:
        """The same with reasons: why a slide is left out, or whose side it took."""
        rows = read_slides(slides)
        if self.kind == "named":
            return self._by_lists(rows)
        if self.kind == "blocks":
            return place_apart(rows, self._in_blocks)
        if self.kind == "groups":
            self._require_groups(rows)
            return place(rows, self._by_group, fixed=lambda row: f"{self.by} {_plain(row[self.by])}")
        return place(rows, lambda row: Placing(self._drawn(*unit_of(row))))

    def rows(self, slide: Row, x_um: np.ndarray, y_um: np.ndarray) -> np.ndarray:
        """The sides of pairs of a slide that is on `BLOCKS`, at these places: int8 (N,), indices into `SIDES`, 3 for
        those left out. A pure function of the slide's id and niche_um and of the places."""
        gap_um = self._gap_of(slide)
        if self.kind != "blocks" or gap_um is None:
            raise SplitError(f"{slide['slide_id']} is not cut into blocks by a split of kind {self.kind!r}.")
        slide_id, codes = str(slide["slide_id"]), {side: code for code, side in enumerate(SIDES)}

        def side_of(i: int, j: int) -> int:
            return codes[self._drawn(slide_id, f"block {i} {j}")]

        return block_sides(x_um, y_um, side_of, block_um=self.block_um, gap_um=gap_um)

    def cuts(self, slides: pa.Table) -> list[Cut]:
        """The units and pairs of look-alikes that stand on more than one side of a named split."""
        return self._cuts(read_slides(slides)) if self.kind == "named" else []

    def _cuts(self, rows: Sequence[Row]) -> list[Cut]:
        sides = {slide_id: side for side, listed in self.lists.items() for slide_id in listed}
        units: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        studies: defaultdict[str, set[str]] = defaultdict(set)
        for row in rows:
            if row["slide_id"] in sides:
                units[unit_of(row)].add(sides[row["slide_id"]])
                studies[unit_of(row)[0]].add(sides[row["slide_id"]])
        # Slides without a patient may be of any patient of their study.
        whole = {unit: on if unit[1] else studies[unit[0]] for unit, on in units.items()}
        found = [Cut("unit", unit, _ordered(on)) for unit, on in sorted(whole.items()) if len(on) > 1]
        for one, others in sorted(resembling(rows).items()):
            for other in sorted(others):
                if one < other and one in sides and other in sides and sides[one] != sides[other]:
                    found.append(Cut("look_alike", (one, other), _ordered({sides[one], sides[other]})))
        return found

    # -- what each kind wants of a slide ---------------------------------------------------------------------------

    def _by_lists(self, rows: Sequence[Row]) -> dict[str, Placing]:
        sides = {slide_id: side for side, listed in self.lists.items() for slide_id in listed}
        missing = sorted(set(sides) - {row["slide_id"] for row in rows})
        if missing:
            raise SplitError(f"{', '.join(missing)} is named in the split but not in this version of the lake.")
        cuts = self._cuts(rows)
        if cuts and not self.cuts_units:
            more = f" (and {len(cuts) - 1} more such)" if len(cuts) > 1 else ""
            raise SplitError(
                f"The split puts {cuts[0]} on several sides{more}, which leaks; "
                "name them all on one side, or say that the split cuts units."
            )
        unlisted = Placing(LEFT_OUT, "is on no list", "unlisted")
        return {
            row["slide_id"]: Placing(sides[row["slide_id"]]) if row["slide_id"] in sides else unlisted for row in rows
        }

    def _by_group(self, row: Row) -> Placing:
        group = group_of(row, self.by)
        if not group:
            return Placing(LEFT_OUT, f"has no {self.by}, and may be of any", "no_group")
        if self.fractions:
            return Placing(self._drawn(self.by, group))
        for side, names in self.lists.items():
            if group in names:
                return Placing(side)
        if "train" in self.lists:
            return Placing(LEFT_OUT, f"is of the {self.by} {group}, which is on no list", "unlisted")
        return Placing("train")

    def _require_groups(self, rows: Sequence[Row]) -> None:
        there = {group_of(row, self.by) for row in rows} - {""}
        missing = sorted({name for names in self.lists.values() for name in names} - there)
        if missing:
            raise SplitError(
                f"No slide of this version has the {self.by} {', '.join(map(repr, missing))}; "
                f"there are {', '.join(sorted(there)) or 'none'}."
            )

    def _in_blocks(self, row: Row) -> Placing:
        gap_um = self._gap_of(row)
        if gap_um is None:
            return Placing(LEFT_OUT, "has a niche of unknown width, so the gap must be given", "no_gap")
        if gap_um >= self.block_um:
            return Placing(
                LEFT_OUT, f"has a niche of {gap_um:g} um, too wide for blocks of {self.block_um:g} um", "no_gap"
            )
        return Placing(BLOCKS)

    def _gap_of(self, row: Row) -> float | None:
        return self.gap_um if self.gap_um is not None else row.get("niche_um")

    def _drawn(self, *key: str) -> str:
        """The side that a hash of the key and the seed gives."""
        digest = hashlib.sha256("\0".join([*key, str(self.seed)]).encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        reach = 0.0
        for side in SIDES:
            reach += self.fractions.get(side, 0.0)
            if point < reach:
                return side
        return next(side for side in reversed(SIDES) if self.fractions.get(side))

    # -- JSON -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON; `from_dict` reads it."""
        lists = {side: list(names) for side, names in self.lists.items()}
        drawn = {"fractions": dict(self.fractions), "seed": self.seed}
        if self.kind == "named":
            made = {"kind": "named", **lists, "cuts_units": self.cuts_units}
            return made | ({"name": self.name} if self.name else {})
        if self.kind == "groups":
            return {"kind": "groups", "by": self.by, **(drawn if self.fractions else lists)}
        if self.kind == "blocks":
            return {"kind": "blocks", **drawn, "block_um": self.block_um, "gap_um": self.gap_um}
        return {"kind": "units", **drawn}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Split:
        """Read what `to_dict` wrote; raises `SplitError`."""
        rest = dict(data)
        kind = rest.pop("kind", None)
        make: dict[str, Callable[..., Split]] = {
            "named": cls.named,
            "units": cls.by_unit,
            "groups": cls.by_group,
            "blocks": cls.spatial_blocks,
        }
        if kind not in make:
            known = ", ".join(repr(name) for name in KINDS[:-1])
            raise SplitError(f"A split has the kind {kind!r}; it is {known} or {KINDS[-1]!r}.")
        try:
            return make[kind](**rest)
        except (TypeError, AttributeError) as error:
            raise SplitError(f"A split of kind {kind!r} cannot be read: {error}.") from error


def _fractions(fractions: Mapping[str, float]) -> dict[str, float]:
    if set(fractions) - set(SIDES) or any(f < 0 for f in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-9:
        raise SplitError(f"Fractions {dict(fractions)} must be of {', '.join(SIDES)}, not negative, and sum to 1.")
    return dict(fractions)


def _lists(lists: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    seen: set[str] = set()
    twice: set[str] = set()
    for names in lists.values():
        for name in names:
            (twice if name in seen else seen).add(name)
    if twice:
        raise SplitError(f"{', '.join(sorted(twice))} is named more than once; it has one side.")
    return {side: tuple(names) for side, names in lists.items()}


def _ordered(sides: set[str]) -> tuple[str, ...]:
    return tuple(side for side in SIDES if side in sides)


def _plain(name: str | None) -> str:
    """A group's name as groups are compared."""
    return " ".join((name or "").split()).casefold()


def group_of(row: Row, by: str) -> str:
    """The group of a slide; empty where it is not known."""
    return _plain(unit_of(row)[0] if by == "study" else row.get(by))
