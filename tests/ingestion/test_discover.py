"""Finding sections below what a curator names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ingestion.space_ranger_files import write_visium_hd

from histolake.ingestion.discover import find_sections
from histolake.platform.errors import UsageError
from histolake.platform.settings import load_settings


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
    assert "formats space-ranger" in str(refused.problem)
    assert refused.problem is not None
    assert refused.problem.file == str(tmp_path / "visium")


def test_a_source_that_is_no_section(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    (tmp_path / "a.docx").write_text("x")
    assert names(tmp_path / "void") == {"void": "unknown_format"}
    assert names(tmp_path / "a.docx") == {"a.docx": "unknown_format"}
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


def test_files_that_are_sections_beside_folders_that_are(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "a/legacy")
    for place in ("a/one.h5ad", "a/legacy/twin.h5ad", "top.h5ad"):
        (tmp_path / place).write_bytes(b"read later")
    found = {c.section: c for c in find_sections([str(tmp_path)], "c")}
    assert list(found) == ["top", "a/one", "a/legacy", "a/legacy/twin"]
    assert {c.source and c.source.reader for c in found.values()} == {"anndata", "legacy-st"}
    assert found["a/one"].uri == str(tmp_path / "a/one.h5ad")
    assert names(tmp_path / "a/one.h5ad") == {"one": None}
    # A place that the curator names is one section: that of the layout, not the file beside it.
    listed = {"sections": [{"section": "S", "path": "a/legacy"}]}
    (tmp_path / "cohort.json").write_text(json.dumps(listed))
    (named,) = find_sections([str(tmp_path / "cohort.json")], "c")
    assert (named.section, named.source and named.source.reader) == ("S", "legacy-st")


def test_the_folder_outs_is_no_name(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "S1/outs")
    (tmp_path / "S1/_log").write_text("of the program that wrote outs")
    assert names(tmp_path) == {"S1": None}
    assert names(tmp_path / "S1") == {"S1": None}
    assert names(tmp_path / "S1/outs") == {"S1": None}


def test_links_in_a_circle_end(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "s")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/up").symlink_to(tmp_path)
    (tmp_path / "more/again").symlink_to(tmp_path / "s")
    assert names(tmp_path) == {"more/again": None, "s": None}


def test_a_store_of_arrays_is_not_searched(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "arrays.zarr/0/s")
    (tmp_path / "arrays.zarr/.zgroup").write_text('{"zarr_format": 2}')
    assert names(tmp_path) == {"arrays.zarr": "unknown_format"}


def test_candidates_come_as_they_are_found(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "a")
    make_section(tmp_path / "b")
    found = find_sections([str(tmp_path)], "c")
    assert next(found).section == "a"
    (tmp_path / "b/counts.tsv.gz").unlink()
    (tmp_path / "b/spots.tsv").unlink()
    assert [(c.section, c.problem and c.problem.rule) for c in found] == [("b", "unknown_format")]


def test_settings_of_a_reader_reach_it(tmp_path: Path) -> None:
    write_visium_hd(tmp_path / "hd", bins=(60, 60))
    for bins in ("8", "16"):
        settings = load_settings({"visium_hd.bins": bins})
        (found,) = find_sections([str(tmp_path)], "c", settings=settings)
        assert found.source is not None
        assert (found.source.metadata["bins"], found.source.by_settings) == (bins, ("bins", "min_covered"))
        assert f"square_{int(bins):03d}um" in found.source.files["counts"]
