"""Splits that never leak: which slides train, which choose, which test.

The unit is (study, patient) where the patient is known, else the study: all slides of a unit are on one side. A bare
patient name is never joined across studies. `Split.by_unit` puts a unit on a side by a hash of (unit, seed) alone, so
that adding slides never moves an old one. `Split.named` takes lists; a list that cuts through a unit must say so
(`cuts_units`), and whoever reports a figure from it marks it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from histolake.platform.errors import SplitError

__all__ = ["SIDES", "Split", "unit_of"]

SIDES = ("train", "validation", "test")
LEFT_OUT = "left_out"


def unit_of(slide: Mapping[str, Any]) -> tuple[str, str]:
    """The unit of a slide that must not be divided: (study, patient), with "" for what is not known.

    A slide with neither is a unit of its cohort, for nothing says that its sections are of different patients.
    """
    study = slide.get("study") or ""
    patient = slide.get("patient") or ""
    return (study or f"cohort {slide['cohort']}", patient)


@dataclass(frozen=True, kw_only=True)
class Split:
    """A pure function from slides to sides. Make it with `named` or `by_unit`."""

    kind: str  # "named" | "units"
    lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # side -> slide_ids, of a named split
    cuts_units: bool = False  # a named split that is allowed to cut through a unit
    fractions: Mapping[str, float] = field(default_factory=dict)  # side -> share of the units
    seed: int = 0

    @classmethod
    def named(
        cls,
        *,
        train: Sequence[str],
        validation: Sequence[str] = (),
        test: Sequence[str] = (),
        cuts_units: bool = False,
    ) -> Split:
        """A split by lists of slide_ids; slides on no list are left out."""
        lists = {"train": tuple(train), "validation": tuple(validation), "test": tuple(test)}
        named = [slide_id for listed in lists.values() for slide_id in listed]
        twice = sorted({slide_id for slide_id in named if named.count(slide_id) > 1})
        if twice:
            raise SplitError(f"{', '.join(twice)} is named more than once; a slide has one side.")
        if not train:
            raise SplitError("No slide is named for training; name at least one.")
        return cls(kind="named", lists=lists, cuts_units=cuts_units)

    @classmethod
    def by_unit(cls, fractions: Mapping[str, float], seed: int = 0) -> Split:
        """A split by shares of the units, such as `{"train": 0.8, "validation": 0.1, "test": 0.1}`."""
        if (
            set(fractions) - set(SIDES)
            or any(f < 0 for f in fractions.values())
            or abs(sum(fractions.values()) - 1) > 1e-9
        ):
            raise SplitError(f"Fractions {dict(fractions)} must be of {', '.join(SIDES)}, not negative, and sum to 1.")
        return cls(kind="units", fractions=dict(fractions), seed=seed)

    def assign(self, slides: pa.Table) -> dict[str, str]:
        """slide_id -> train, validation, test or left_out, for the rows of `catalog/slides` given.

        Raises `SplitError` if a named slide is not there, or if sides share a unit without `cuts_units`.
        """
        rows = slides.select(["slide_id", "study", "patient", "cohort"]).to_pylist()
        if self.kind == "units":
            return {row["slide_id"]: self._side_of(unit_of(row)) for row in rows}
        sides = {slide_id: side for side, listed in self.lists.items() for slide_id in listed}
        missing = sorted(set(sides) - {row["slide_id"] for row in rows})
        if missing:
            raise SplitError(f"{', '.join(missing)} is named in the split but not in this version of the lake.")
        cut = self.cut_units(slides)
        if cut and not self.cuts_units:
            unit = " / ".join(part for part in cut[0] if part)
            raise SplitError(
                f"The split puts slides of one patient ({unit}) on several sides, which leaks; "
                "name them all on one side, or say that the split cuts units."
            )
        return {row["slide_id"]: sides.get(row["slide_id"], LEFT_OUT) for row in rows}

    def cut_units(self, slides: pa.Table) -> list[tuple[str, str]]:
        """The units that stand on more than one side of this split."""
        if self.kind == "units":
            return []
        sides = {slide_id: side for side, listed in self.lists.items() for slide_id in listed}
        seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for row in slides.select(["slide_id", "study", "patient", "cohort"]).to_pylist():
            if row["slide_id"] in sides:
                seen[unit_of(row)].add(sides[row["slide_id"]])
        return sorted(unit for unit, on in seen.items() if len(on) > 1)

    def _side_of(self, unit: tuple[str, str]) -> str:
        digest = hashlib.sha256("\0".join([*unit, str(self.seed)]).encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64
        reach = 0.0
        for side in SIDES:
            reach += self.fractions.get(side, 0.0)
            if point < reach:
                return side
        return next(side for side in reversed(SIDES) if self.fractions.get(side))

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON; `from_dict` reads it."""
        if self.kind == "units":
            return {"kind": "units", "fractions": dict(self.fractions), "seed": self.seed}
        return {"kind": "named", **{k: list(v) for k, v in self.lists.items()}, "cuts_units": self.cuts_units}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Split:
        """Read what `to_dict` wrote; raises `SplitError`."""
        rest = dict(data)
        kind = rest.pop("kind", None)
        if kind not in ("named", "units"):
            raise SplitError(f"A split has the kind {kind!r}; it is 'named' or 'units'.")
        try:
            return cls.named(**rest) if kind == "named" else cls.by_unit(**rest)
        except TypeError as error:
            raise SplitError(f"A split of kind {kind!r} cannot be read: {error}.") from error
