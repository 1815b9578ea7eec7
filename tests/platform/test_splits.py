"""Splits never leak and never move a slide: over made-up lakes of every shape, and case by case."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histolake.platform.errors import SplitError
from histolake.platform.schemas import SLIDES
from histolake.platform.splits import LEFT_OUT, SIDES, Split, unit_of

# The same examples every time: a test that fails here fails everywhere.
EXAMPLES = settings(deadline=None, derandomize=True, database=None)
THIRDS = {"train": 0.5, "validation": 0.25, "test": 0.25}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"cohort": "c", **row} for row in rows], schema=SLIDES)


def slides(*rows: tuple[str, str | None, str | None]) -> pa.Table:
    return table([{"slide_id": s, "study": study, "patient": patient} for s, study, patient in rows])


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


# -- lakes of every shape ------------------------------------------------------------------------------------------


@st.composite
def lakes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Slides in the order in which they are published, a few in each version; each may look like any that is there."""
    rows: list[dict[str, Any]] = []
    for version in range(1, draw(st.integers(1, 8)) + 1):
        for _ in range(draw(st.integers(1, 4))):
            # Names come in no order of age, and a few studies and patients make many kin.
            name = f"c/{draw(st.integers(0, 10**6))}-{len(rows)}"
            alike = draw(st.lists(st.sampled_from(rows), max_size=2)) if rows else []
            rows.append(
                {
                    "slide_id": name,
                    "study": draw(st.sampled_from(["s1", "s2", "s3", None])),
                    "patient": draw(st.sampled_from(["p1", "p2", "p3", None])),
                    "organ": draw(st.sampled_from(["breast", "Brain ", "kidney", None])),
                    "technology": draw(st.sampled_from(["Visium", "ST"])),
                    "look_alikes": sorted({other["slide_id"] for other in alike}),
                    "published_in": version,
                    "first_published": version,
                    "niche_um": 255.0,
                }
            )
    return rows


def may_share_tissue(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Kin, by the words of the definition."""
    study = [row["study"] or f"cohort {row['cohort']}" for row in (one, other)]
    same_study = study[0] == study[1]
    patient = same_study and (not one["patient"] or not other["patient"] or one["patient"] == other["patient"])
    alike = one["slide_id"] in other["look_alikes"] or other["slide_id"] in one["look_alikes"]
    return bool(patient or alike)


SPLITS = st.one_of(
    st.builds(Split.by_unit, st.just(THIRDS), st.integers(0, 50)),
    st.builds(Split.by_group, st.sampled_from(["organ", "technology", "study"]), fractions=st.just(THIRDS)),
)


@given(rows=lakes(), split=SPLITS)
@settings(EXAMPLES, max_examples=150)
def test_no_kin_straddle_sides_and_no_side_is_empty_talk(rows: list[dict[str, Any]], split: Split) -> None:
    rows = table(rows).to_pylist()
    found = split.placings(table(rows))
    assert set(found) == {row["slide_id"] for row in rows}
    assert {placing.side for placing in found.values()} <= {*SIDES, LEFT_OUT}
    for n, one in enumerate(rows):
        for other in rows[:n]:
            on = {found[one["slide_id"]].side, found[other["slide_id"]].side} - {LEFT_OUT}
            assert not (may_share_tissue(one, other) and len(on) > 1), (one, other, on)
    for row in rows:
        placing = found[row["slide_id"]]
        if placing.side == LEFT_OUT:
            assert placing.why and placing.rule
    if split.by:
        groups: dict[str, set[str]] = {}
        for row in rows:
            group = (row[split.by] or ("" if split.by != "study" else "c")).strip().casefold()
            groups.setdefault(group, set()).add(found[row["slide_id"]].side)
        assert all(len(on - {LEFT_OUT}) <= 1 for on in groups.values())


@given(rows=lakes(), split=SPLITS, data=st.data())
@settings(EXAMPLES, max_examples=100)
def test_adding_slides_never_moves_one(rows: list[dict[str, Any]], split: Split, data: st.DataObject) -> None:
    whole = split.assign(table(rows))
    for version in range(1, rows[-1]["published_in"]):
        there = [row for row in rows if row["published_in"] <= version]
        before = split.assign(table(data.draw(st.permutations(there))))
        assert before == {slide_id: whole[slide_id] for slide_id in before}, "the order of rows says nothing"


@given(rows=lakes(), split=SPLITS, data=st.data())
@settings(EXAMPLES, max_examples=60)
def test_what_is_ingested_again_keeps_its_age(rows: list[dict[str, Any]], split: Split, data: st.DataObject) -> None:
    again = data.draw(st.sets(st.sampled_from(range(len(rows)))))
    later = [{**row, "published_in": 99} if n in again else row for n, row in enumerate(rows)]
    assert split.assign(table(later)) == split.assign(table(rows))


@given(rows=lakes())
@settings(EXAMPLES, max_examples=60)
def test_leaving_one_out_leaks_nothing(rows: list[dict[str, Any]]) -> None:
    rows = table(rows).to_pylist()
    by_id = {row["slide_id"]: row for row in rows}
    for by in ("patient", "organ", "technology", "study"):
        try:
            made = Split.leave_one_out(table(rows), by)
        except SplitError:
            continue
        assert len({split.name for split in made}) == len(made)
        tested = [slide_id for split in made for slide_id in split.lists["test"]]
        assert len(tested) == len(set(tested)), "each slide tests once"
        for split in made:
            assert Split.from_dict(split.to_dict()) == split
            split.assign(table(rows))  # refuses what leaks
            for one in split.lists["train"]:
                assert not any(may_share_tissue(by_id[one], by_id[other]) for other in split.lists["test"])


# -- look-alikes, case by case -------------------------------------------------------------------------------------


def aged(slide_id: str, patient: str | None, born: int, *alike: str, study: str = "s") -> dict[str, Any]:
    return {
        "slide_id": slide_id,
        "study": study,
        "patient": patient,
        "look_alikes": list(alike),
        "published_in": born,
        "first_published": born,
    }


def patients_on(split: Split, study: str = "s") -> dict[str, list[str]]:
    """side -> patients that the hash alone puts there."""
    names = [f"p{n}" for n in range(40)]
    sides = split.assign(slides(*[(f"c/{name}", study, name) for name in names]))
    return {side: [name for name in names if sides[f"c/{name}"] == side] for side in SIDES}


def test_a_look_alike_takes_its_match_s_side_and_its_own_patient_follows() -> None:
    split = Split.by_unit(THIRDS)
    on = patients_on(split)
    trains, tests = on["train"][0], on["test"][0]
    rows = [aged("c/old", trains, 1), aged("c/alike", tests, 2, "c/old"), aged("c/mate", tests, 3)]
    assert split.assign(table(rows)) == {"c/old": "train", "c/alike": "train", "c/mate": "train"}
    assert split.placings(table(rows))["c/alike"].why == "looks like c/old on train"
    # In the other order of age the other patient decides.
    rows = [aged("c/mate", tests, 1), aged("c/alike", tests, 2), aged("c/old", trains, 3, "c/alike")]
    assert set(split.assign(table(rows)).values()) == {"test"}


def test_a_slide_that_matches_two_sides_is_left_out_and_named() -> None:
    split = Split.by_unit(THIRDS)
    on = patients_on(split)
    rows = [
        aged("c/a", on["train"][0], 1),
        aged("c/b", on["test"][0], 1),
        aged("c/both", "px", 2, "c/a", "c/b"),
        aged("c/mate", on["train"][0], 2, "c/b"),
        aged("c/next", "py", 3, "c/both"),
    ]
    found = split.placings(table(rows))
    assert [found[k].side for k in ("c/a", "c/b", "c/both", "c/mate")] == ["train", "test", LEFT_OUT, LEFT_OUT]
    assert found["c/both"].why == "looks like c/a on train and looks like c/b on test"
    assert found["c/mate"].why == "is of one patient with c/a on train and looks like c/b on test"
    assert found["c/next"].side != LEFT_OUT, "one that is out ties nobody"


def test_a_slide_without_a_patient_may_be_of_any_patient_of_its_study() -> None:
    split = Split.by_unit(THIRDS)
    on = patients_on(split)
    known = [aged("c/a", on["train"][0], 1), aged("c/b", on["test"][0], 1)]
    found = split.placings(table([*known, aged("c/0", None, 1)]))
    assert (found["c/a"].side, found["c/b"].side, found["c/0"].side) == ("train", "test", LEFT_OUT)
    assert found["c/0"].why.startswith("may be of one patient with c/a on train and")
    one = split.placings(table([known[0], aged("c/0", None, 2), aged("c/b", on["test"][0], 3)]))
    assert {placing.side for placing in one.values()} == {"train"}
    with pytest.raises(SplitError, match=r"may be of one patient \(s\)"):
        Split.named(train=["c/a"], test=["c/0"]).assign(table([known[0], aged("c/0", None, 1)]))


def test_rows_of_older_lakes_have_the_age_of_the_row() -> None:
    split = Split.by_unit(THIRDS)
    on = patients_on(split)
    rows = [aged("c/z", on["train"][0], 1), aged("c/a", on["test"][0], 2, "c/z")]
    before = split.assign(table([{**row, "first_published": None} for row in rows]))
    assert before == split.assign(table(rows)) == {"c/z": "train", "c/a": "train"}
    plain = table(rows).select(["slide_id", "cohort", "study", "patient"])
    assert split.assign(plain) == {"c/z": "train", "c/a": "test"}, "a table without look-alikes has none"


# -- groups --------------------------------------------------------------------------------------------------------


def test_groups_by_lists() -> None:
    rows = [
        aged("c/breast", "p1", 1) | {"organ": "Breast"},
        aged("c/kidney", "p2", 1) | {"organ": "kidney"},
        aged("c/lung", "p3", 1) | {"organ": "lung"},
        aged("c/kidney2", "p1", 2) | {"organ": "kidney"},
        aged("c/unknown", "p4", 1) | {"organ": None},
    ]
    split = Split.by_group("organ", test=["KIDNEY"])
    found = split.placings(table(rows))
    sides = {slide_id: placing.side for slide_id, placing in found.items()}
    assert sides == {
        "c/breast": "train",
        "c/kidney": "test",
        "c/lung": "train",
        "c/kidney2": LEFT_OUT,
        "c/unknown": LEFT_OUT,
    }
    assert found["c/kidney2"].why == "is of one patient with c/breast on train, and organ kidney is on test"
    assert found["c/unknown"].why == "has no organ, and may be of any"
    only = Split.by_group("organ", train=["breast"], test=["kidney"])
    assert only.placings(table(rows))["c/lung"].why == "is of the organ lung, which is on no list"
    assert Split.from_dict(split.to_dict()) == split and Split.from_dict(only.to_dict()) == only
    with pytest.raises(SplitError, match=r"has the organ 'kidny'; there are breast, kidney, lung"):
        Split.by_group("organ", test=["kidny"]).assign(table(rows))


def test_leave_one_out_names_its_splits() -> None:
    rows = [aged(f"c/{patient}{n}", patient, 1) for patient in "ABC" for n in range(2)]
    rows[0]["look_alikes"] = ["c/B1"]
    made = Split.leave_one_out(table(rows))
    assert [split.name for split in made] == ["patient s/A", "patient s/B", "patient s/C"]
    assert made[0].lists == {"train": ("c/B0", "c/C0", "c/C1"), "validation": (), "test": ("c/A0", "c/A1")}
    with pytest.raises(SplitError, match="all slides are kin"):
        Split.leave_one_out(table(rows), "study")


# -- named lists ---------------------------------------------------------------------------------------------------


def test_named_lists_say_when_they_cut_a_patient() -> None:
    table = slides(("h/C2", "h", "C"), ("h/C5", "h", "C"), ("h/A1", "h", "A"), ("h/B1", "h", "B"))
    with pytest.raises(SplitError, match=r"h / C.*leaks"):
        Split.named(train=["h/C2"], validation=["h/C5"]).assign(table)
    split = Split.named(train=["h/C2"], validation=["h/C5"], test=["h/A1"], cuts_units=True)
    assert split.assign(table) == {"h/C2": "train", "h/C5": "validation", "h/A1": "test", "h/B1": "left_out"}
    assert [(cut.kind, cut.what) for cut in split.cuts(table)] == [("unit", ("h", "C"))]
    assert Split.from_dict(split.to_dict()) == split
    with pytest.raises(SplitError, match="not in this version"):
        Split.named(train=["h/C9"]).assign(table)


def test_named_lists_say_when_they_cut_look_alikes() -> None:
    rows = table([aged("c/a", "p1", 1), aged("c/b", "p2", 1, "c/a")])
    with pytest.raises(SplitError, match=r"look-alikes \(c/a / c/b\).*leaks"):
        Split.named(train=["c/a"], test=["c/b"]).assign(rows)
    split = Split.named(train=["c/a"], test=["c/b"], cuts_units=True)
    assert split.assign(rows) == {"c/a": "train", "c/b": "test"}
    ((kind, what, sides),) = [(cut.kind, cut.what, cut.sides) for cut in split.cuts(rows)]
    assert (kind, what, sides) == ("look_alike", ("c/a", "c/b"), ("train", "test"))


# -- JSON and mistakes ---------------------------------------------------------------------------------------------


def test_dicts_of_every_kind_and_of_before() -> None:
    for split in (
        Split.by_unit(THIRDS, seed=7),
        Split.by_group("technology", fractions=THIRDS, seed=7),
        Split.spatial_blocks(THIRDS, seed=7, block_um=1500, gap_um=200),
        Split.spatial_blocks(THIRDS),
        Split.named(train=["a"], name="organ kidney"),
    ):
        assert Split.from_dict(split.to_dict()) == split
    assert Split.from_dict({"kind": "units", "fractions": {"train": 1.0}, "seed": 0}).fractions == {"train": 1.0}
    old = {"kind": "named", "train": ["a"], "validation": [], "test": ["b"], "cuts_units": True}
    assert Split.from_dict(old).to_dict() == old


def test_mistakes() -> None:
    with pytest.raises(SplitError, match="more than once"):
        Split.named(train=["a"], test=["a"])
    with pytest.raises(SplitError, match="more than once; it has one side"):
        Split.by_group("organ", validation=["lung"], test=["Lung "])
    with pytest.raises(SplitError, match="at least one"):
        Split.named(train=[])
    with pytest.raises(SplitError, match="sum to 1"):
        Split.by_unit({"train": 0.5})
    with pytest.raises(SplitError, match="by organ, technology or study"):
        Split.by_group("weather", test=["rain"])
    with pytest.raises(SplitError, match="either by lists or by fractions"):
        Split.by_group("organ")
    with pytest.raises(SplitError, match="wider than the gap"):
        Split.spatial_blocks(THIRDS, block_um=200, gap_um=255)
    with pytest.raises(SplitError, match="'groups' or 'blocks'"):
        Split.from_dict({"kind": "magic"})
    with pytest.raises(SplitError, match="cannot be read"):
        Split.from_dict({"kind": "units", "fractions": {"train": 1.0}, "sed": 1})
    with pytest.raises(SplitError, match="cannot be left out"):
        Split.leave_one_out(MANY, "weather")
