"""Finding sections below what a curator names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from histolake.ingestion.discover import find_sections
from histolake.platform.errors import UsageError


def names(folder: Path | str, *more: str) -> dict[str, str | None]:
    return {c.section: c.problem and c.problem.rule for c in find_sections([str(folder), *more], "c")}


def test_sections_are_named_by_themselves_or_by_their_path(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "a")
    make_section(tmp_path / "deep/er/b")
    make_section(tmp_path / "x", section="named")
    (tmp_path / "README.md").write_text("a container's own files are no section")
    found = list(find_sections([str(tmp_path)], "breast"))
    assert [c.slide_id for c in found] == ["breast/a", "breast/deep/er/b", "breast/named"]
    assert [c.section for c in find_sections([str(tmp_path / "a")], "breast")] == ["a"]


def test_what_no_reader_knows_is_a_candidate_that_is_refused(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "good")
    (tmp_path / "good/extra").mkdir()
    (tmp_path / "good/extra/notes.txt").write_text("below a section: not a section")
    (tmp_path / "visium/spatial").mkdir(parents=True)
    (tmp_path / "visium/matrix.h5").write_text("x")
    (tmp_path / "visium/spatial/positions.csv").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "group/one").mkdir(parents=True)
    (tmp_path / "group/one/file.bin").write_text("x")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/file").write_text("x")
    assert names(tmp_path) == {
        "good": None,
        "visium": "unknown_format",
        "empty": "unknown_format",
        "group/one": "unknown_format",
    }
    refused = next(c for c in find_sections([str(tmp_path)], "c") if c.section == "visium")
    assert "legacy-st (counts.tsv" in str(refused.problem)
    assert refused.problem is not None
    assert refused.problem.file == str(tmp_path / "visium")


def test_a_source_that_is_no_section(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "a.h5ad").write_text("x")
    assert names(tmp_path / "void") == {"void": "unknown_format"}
    assert names(tmp_path / "a.h5ad") == {"a.h5ad": "unknown_format"}
    with pytest.raises(UsageError, match="nothing at"):
        find_sections([str(tmp_path / "gone")], "c")


def test_the_second_section_of_a_name_is_refused(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "one/s")
    make_section(tmp_path / "two/s")
    first, second = find_sections([str(tmp_path / "one"), str(tmp_path / "two")], "c")
    assert (first.slide_id, first.problem) == ("c/s", None)
    assert second.slide_id != first.slide_id
    assert second.problem is not None
    assert second.problem.rule == "name_taken"
    assert "would both be c/s" in str(second.problem)
    assert list(names(tmp_path)) == ["one/s", "two/s"]
    with pytest.raises(UsageError, match="without '/'"):
        find_sections([str(tmp_path)], "a/b")


def test_a_cohort_file_names_its_sections(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "here/s1")
    elsewhere = make_section(tmp_path / "elsewhere/s2")
    (tmp_path / "metadata.csv").write_text("section,patient\nfirst,P1\nsecond,P2\n")
    listed = [{"section": "first", "path": "here/s1"}, {"section": "second", "path": str(elsewhere)}]
    cohort = tmp_path / "cohort.json"
    cohort.write_text(json.dumps({"sections": listed, "metadata": "metadata.csv"}))
    found = list(find_sections([str(cohort)], "c"))
    assert [(c.slide_id, c.metadata["patient"]) for c in found] == [("c/first", "P1"), ("c/second", "P2")]
    other = tmp_path / "other.csv"
    other.write_text("section,patient\nfirst,P9\n")
    assert next(find_sections([str(cohort)], "c", str(other))).metadata["patient"] == "P9"
    cohort.write_text(json.dumps({"sections": [{"section": "first", "path": "gone"}]}))
    with pytest.raises(UsageError, match="is not there"):
        find_sections([str(cohort)], "c")
    cohort.write_text("[]")
    with pytest.raises(UsageError, match="no cohort file"):
        find_sections([str(cohort)], "c")
