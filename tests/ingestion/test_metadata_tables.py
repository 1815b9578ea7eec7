"""Metadata tables: sections, patients and studies joined, with everything told that does not match."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from histolake.ingestion.discover import find_sections
from histolake.ingestion.metadata import MetadataTable
from histolake.platform.errors import UsageError


def table(folder: Path, name: str, *lines: str) -> str:
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_a_row_a_section(tmp_path: Path, mark: str) -> None:
    lines = [
        mark.join(cells) for cells in (("section", "patient", "license", "um_per_px"), ("s1", "P1", "CC BY", "0.5"))
    ]
    found = MetadataTable.read([table(tmp_path, "m.csv", "\ufeff" + lines[0], lines[1], "")])
    assert found.row("s1", {}) == {"patient": "P1", "licence": "CC BY", "um_per_px": "0.5"}
    assert found.mismatches() == []


def test_patients_and_studies_are_joined_through(tmp_path: Path) -> None:
    found = MetadataTable.read(
        [
            table(tmp_path, "studies.csv", "study,licence,organ", "S1,CC BY 4.0,skin", "S2,CC0,lung", "S9,MIT,"),
            table(
                tmp_path, "patients.csv", "patient,study,organ,disease", "P1,S1,breast,IDC", "P1,S2,,LUAD", "P2,,,none"
            ),
            table(tmp_path, "sections.csv", "section,patient,study", "s1,P1,S1", "s2,P1,S2", "s3,P2,"),
        ]
    )
    assert found.row("s1", {}) == {
        "patient": "P1",
        "study": "S1",
        "organ": "breast",
        "disease": "IDC",
        "licence": "CC BY 4.0",
    }
    assert found.row("s2", {}) == {"patient": "P1", "study": "S2", "organ": "lung", "disease": "LUAD", "licence": "CC0"}
    assert found.row("s3", {"study": "S2"})["licence"] == "CC0"  # the files name the study
    told = {(m.kind, m.line): m.message for m in found.mismatches()}
    assert told == {
        ("conflict", 2): "organ of section 's1' is 'skin' here, and a more special table says 'breast', which wins",
        ("unused_row", 4): "no section was found for study 'S9'",
    }


def test_a_bare_patient_is_never_joined_across_studies(tmp_path: Path) -> None:
    patients = table(tmp_path, "p.csv", "patient,study,organ", "P1,S1,breast", "P1,S2,lung", "P2,S1,skin")
    found = MetadataTable.read([patients])
    assert found.row("a", {"patient": "P1", "study": "S2"})["organ"] == "lung"
    assert found.row("b", {"patient": "P1"}) == {}
    assert found.row("c", {"patient": "P2", "study": "S7"}) == {}
    kinds = [(m.kind, m.section, m.line) for m in found.mismatches()]
    assert kinds == [("ambiguous", "b", 2), ("no_row", "b", None), ("no_row", "c", None), ("unused_row", None, 4)]
    assert "lines 2, 3; name the section's study" in found.mismatches()[0].message


def test_every_mismatch_is_listed(tmp_path: Path) -> None:
    uri = table(
        tmp_path, "m.csv", "section,patient,um_per_px,treatment", "s1,P1,0.50,none", "s2,P2,,x", "gone,P3,,x", "too,,,"
    )
    found = MetadataTable.read([uri])
    assert found.row("s1", {"patient": "P9", "um_per_px": 0.5, "organ": "skin"})["patient"] == "P1"
    found.row("s2", {"patient": "P2"})
    found.row("extra", {})
    assert found.row("README", {}, is_section=False) == {}
    assert [str(m).removeprefix(uri) for m in found.mismatches()] == [
        ": columns that are left out, for no metadata are called so: treatment",
        ", line 2: patient of section 's1' is 'P1' here, and its files say 'P9'; the table wins",
        ": no row tells of section 'extra'",
        ", line 4: no section was found for section 'gone'",
        ", line 5: no section was found for section 'too'",
    ]


def test_all_mistakes_at_once_with_their_lines(tmp_path: Path) -> None:
    lines = ["section,pateint,um_per_px,simulated", "s,P,fine,no", "s,Q,-1,perhaps", ",R,1,no", "t,R,1,no,more"]
    with pytest.raises(UsageError) as caught:
        MetadataTable.read([table(tmp_path, "m.csv", *lines)])
    said = str(caught.value)
    for part in (
        "a column is called 'pateint'; write 'patient' if it is meant",
        "line 2: The metadata say um_per_px = 'fine'; write a number",
        "line 3: The metadata say um_per_px = '-1'; write a number above 0",
        "line 3: The metadata say simulated = 'perhaps'; write true or false",
        "line 3: section 's' is named twice, the first time in line 2",
        "line 4: section is empty",
        "line 5: 5 cells under 4 columns",
    ):
        assert part in said, said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["organ", "skin"], "no column is called 'section', 'patient' or 'study'; there are organ"),
        (["section,section", "a,b"], "two columns are called 'section'"),
        (["patient,study", "P,S", "P,S"], "patient 'P' is named twice, the first time in line 2"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, lines: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        MetadataTable.read([table(tmp_path, "m.csv", *lines)])


def test_a_table_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no metadata table at"):
        MetadataTable.read([str(tmp_path / "gone.csv")])
    (tmp_path / "m.csv").write_bytes("section,organ\na,h\xe4ut\n".encode("latin-1"))
    with pytest.raises(UsageError, match="no text in UTF-8"):
        MetadataTable.read([str(tmp_path / "m.csv")])


def test_an_image_is_looked_for_beside_the_table(tmp_path: Path) -> None:
    uri = table(tmp_path, "m.csv", "section,image", "a,images/a.tif", "b,s3://bucket/b.tif")
    found = MetadataTable.read([uri])
    assert found.row("a", {})["image"] == str(tmp_path / "images/a.tif")
    assert found.row("b", {})["image"] == "s3://bucket/b.tif"


def test_the_catalogue_of_hest_is_a_metadata_table(real_sections: Path) -> None:
    found = MetadataTable.read([str(real_sections / "catalog/HEST_v1_1_0.csv")])
    row = found.row("TENX159", {"species": "Mus musculus"})
    assert row["licence"] == "Creative Commons Attribution" and row["technology"] == "Xenium"
    assert "patient" not in row and row["disease"] == "Healthy"
    kinds = [m.kind for m in found.mismatches()]
    assert kinds[0] == "unknown_columns" and kinds.count("unused_row") == 1228


def test_sections_are_joined_as_they_are_found(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "in/s1", patient="P9")
    make_section(tmp_path / "in/s2")
    (tmp_path / "in/notes").mkdir()
    (tmp_path / "in/notes/read.me").write_text("x")
    metadata = MetadataTable.read([table(tmp_path, "m.csv", "section,patient", "s1,P1", "s3,P3")])
    found = {c.section: c.metadata for c in find_sections([str(tmp_path / "in")], "c", metadata)}
    assert found["s1"] == {"patient": "P1", "section": "s1"} and found["s2"] == {"section": "s2"}
    assert [(m.kind, m.section, m.line) for m in metadata.mismatches()] == [
        ("conflict", "s1", 2),
        ("no_row", "s2", None),
        ("unused_row", None, 3),
    ]
    # A cohort file names a table of its own.
    (tmp_path / "cohort.json").write_text(
        json.dumps({"sections": [{"section": "s1", "path": "in/s1"}], "metadata": "m.csv"})
    )
    own = MetadataTable()
    assert next(find_sections([str(tmp_path / "cohort.json")], "c", own)).metadata["patient"] == "P1"
    assert [m.kind for m in own.mismatches()] == ["conflict", "unused_row"]
