"""Splits never leak: the unit is (study, patient), else the study."""

from __future__ import annotations

import pyarrow as pa
import pytest

from histolake.platform.errors import SplitError
from histolake.platform.splits import Split, unit_of


def slides(*rows: tuple[str, str | None, str | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"slide_id": s, "study": study, "patient": patient, "cohort": "c"} for s, study, patient in rows],
        schema=pa.schema([(n, pa.string()) for n in ("slide_id", "study", "patient", "cohort")]),
    )


MANY = slides(
    *[
        (f"c/{study}-{patient}-{n}", f"s{study}", f"p{patient}")
        for study in range(9)
        for patient in range(9)
        for n in range(3)
    ]
)


def test_units() -> None:
    assert unit_of({"study": "A", "patient": "1", "cohort": "c"}) != unit_of(
        {"study": "B", "patient": "1", "cohort": "c"}
    )
    assert unit_of({"study": "A", "patient": None, "cohort": "c"}) == ("A", "")


def test_by_unit_keeps_units_whole_and_never_moves_a_slide() -> None:
    split = Split.by_unit({"train": 0.6, "validation": 0.2, "test": 0.2}, seed=3)
    sides = split.assign(MANY)
    by_unit: dict[tuple[str, str], set[str]] = {}
    for row in MANY.to_pylist():
        by_unit.setdefault(unit_of(row), set()).add(sides[row["slide_id"]])
    assert all(len(on) == 1 for on in by_unit.values())
    shares = [sum(on == {side} for on in by_unit.values()) / len(by_unit) for side in ("train", "validation", "test")]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.15)
    assert split.assign(MANY.slice(40)) == {
        k: v for k, v in sides.items() if k in MANY.slice(40)["slide_id"].to_pylist()
    }
    assert Split.by_unit(split.fractions, seed=4).assign(MANY) != sides


def test_named_lists_say_when_they_cut_a_patient() -> None:
    table = slides(("h/C2", "h", "C"), ("h/C5", "h", "C"), ("h/A1", "h", "A"), ("h/B1", "h", "B"))
    with pytest.raises(SplitError, match=r"h / C.*leaks"):
        Split.named(train=["h/C2"], validation=["h/C5"]).assign(table)
    split = Split.named(train=["h/C2"], validation=["h/C5"], test=["h/A1"], cuts_units=True)
    assert split.assign(table) == {"h/C2": "train", "h/C5": "validation", "h/A1": "test", "h/B1": "left_out"}
    assert split.cut_units(table) == [("h", "C")]
    assert Split.from_dict(split.to_dict()) == split
    with pytest.raises(SplitError, match="not in this version"):
        Split.named(train=["h/C9"]).assign(table)


def test_mistakes() -> None:
    with pytest.raises(SplitError, match="more than once"):
        Split.named(train=["a"], test=["a"])
    with pytest.raises(SplitError, match="at least one"):
        Split.named(train=[])
    with pytest.raises(SplitError, match="sum to 1"):
        Split.by_unit({"train": 0.5})
    with pytest.raises(SplitError, match="'named' or 'units'"):
        Split.from_dict({"kind": "magic"})
    with pytest.raises(SplitError, match="cannot be read"):
        Split.from_dict({"kind": "units", "fractions": {"train": 1.0}, "sed": 1})
