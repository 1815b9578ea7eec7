"""Which sections train, choose and test."""

from __future__ import annotations

import pytest

from histolake.platform.errors import UsageError
from histolake.serving.demo.splits import choose_split


def slides(*names: str, cohort: str = "cohort", known: bool = True) -> list[dict[str, str | None]]:
    """Rows of the catalogue; a section's first letter is its patient."""
    return [
        {"slide_id": f"{cohort}/{name}", "cohort": cohort, "study": "study", "patient": name[0] if known else None}
        for name in names
    ]


def sides(rows: list[dict[str, str | None]]) -> dict[str, tuple[str, ...]]:
    lists = choose_split(rows).lists
    return {side: tuple(slide.rsplit("/", 1)[-1] for slide in lists[side]) for side in ("train", "validation", "test")}


def test_her2st_has_its_named_split() -> None:
    expected = {"train": ("C2", "C3", "C4"), "validation": ("C5",), "test": ("A1",)}
    assert sides(slides("A1", "C2", "C3", "C4", "C5", cohort="her2st")) == expected


def test_her2st_without_a_refused_section_keeps_the_others_in_place() -> None:
    expected = {"train": ("C2", "C4"), "validation": ("C5",), "test": ("A1",)}
    assert sides(slides("A1", "C2", "C4", "C5", cohort="her2st")) == expected


def test_one_patient_tests_and_one_section_of_another_validates() -> None:
    expected = {"train": ("P1", "P2", "Q1"), "validation": ("P3",), "test": ("O1",)}
    assert sides(slides("P1", "P2", "P3", "Q1", "O1")) == expected


def test_no_patient_is_on_both_the_test_side_and_another() -> None:
    rows = slides("A1", "A2", "B1", "B2", "D1", "D2", "E1", "E2")
    found = sides(rows)
    tested = {name[0] for name in found["test"]}
    assert tested and not tested & {name[0] for name in (*found["train"], *found["validation"])}
    assert sorted(name for names in found.values() for name in names) == sorted(r["slide_id"][-2:] for r in rows)


def test_one_section_alone_trains_and_nothing_is_held_out() -> None:
    assert sides(slides("P1")) == {"train": ("P1",), "validation": (), "test": ()}


def test_two_patients_of_one_section_train_and_test() -> None:
    found = sides(slides("P1", "Q1"))
    assert len(found["train"]) == len(found["test"]) == 1 and not found["validation"]


def test_sections_of_unknown_patients_never_test() -> None:
    found = sides(slides("X1", "Y1", "Z1", known=False))
    assert not found["test"] and found["validation"] == ("Z1",)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = slides("P1", "P2", "P3", "Q1", "O1")
    assert sides(rows) == sides(rows[::-1])


def test_nothing_published_is_a_clear_error() -> None:
    with pytest.raises(UsageError, match="No section was published"):
        choose_split([])
