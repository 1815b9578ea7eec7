"""The reader of HEST-1k: its layout whole and in part, what its metadata become, and the catalogue of version 1.1.0."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.ingestion.anndata_files import make_section, tissue, write_hest

from histolake.ingestion.discover import find_sections
from histolake.ingestion.readers import Listing, Source, digest, reader
from histolake.ingestion.readers.hest import PLACEHOLDER, hest_sample
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import Slide
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def found(folder: Path) -> dict[str, Source]:
    return {s.metadata["section"]: s for s in reader("hest").find(Listing(Location.parse(folder)))}


def read(folder: Path, sample: str = "TENX1", **metadata: Any) -> Slide:
    return reader("hest").read(found(folder)[sample], metadata)


def refusal(folder: Path, sample: str = "TENX1", **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        settle(read(folder, sample, **metadata), None, ScaleSettings())
    return caught.value


def test_each_id_is_a_section_and_nothing_else_is(tmp_path: Path) -> None:
    write_hest(tmp_path / "release", ("TENX2", "TENX1"), catalogue=True)
    sections = list(find_sections([str(tmp_path)], "hest"))
    assert [(c.section, c.problem and c.problem.rule) for c in sections] == [("TENX1", None), ("TENX2", None)]
    assert {c.source.reader for c in sections if c.source} == {"hest"}
    for place, names in (("release/st", ["TENX1", "TENX2"]), ("release/st/TENX2.h5ad", ["TENX2"])):
        named = list(find_sections([str(tmp_path / place)], "hest"))
        assert [c.section for c in named] == names
        assert {c.source.reader for c in named if c.source} == {"hest"}


def test_a_sample_with_its_full_image(tmp_path: Path) -> None:
    section = write_hest(tmp_path)["TENX1"]
    slide = read(tmp_path)
    at = {name: i for i, name in enumerate(slide.barcodes.tolist())}
    rows = np.array([at[name] for name in section.barcodes])
    np.testing.assert_array_equal(slide.counts[rows].toarray(), section.counts)
    np.testing.assert_allclose(slide.xy_px[rows], section.xy_px)
    assert slide.image == str(tmp_path / "wsis/TENX1.tif")
    assert slide.flags == ()
    known = slide.metadata
    assert (known.section, known.organ, known.technology, known.licence) == ("TENX1", "breast", "Visium", "CC BY 4.0")
    assert (known.study, known.accession) == ("https://www.nature.com/articles/s0", "GSE123456")
    assert (known.disease, known.species, known.patient) == ("Cancer: IDC", "Homo sapiens", None)
    assert (known.pitch_um, known.spot_diameter_um) == (100, 55)
    assert [(e.origin, e.um_per_px) for e in slide.scales] == [
        ("pitch", pytest.approx(5.0, rel=0.005)),
        ("source", 5.0),
    ]
    assert read(tmp_path, patient="P1").metadata.patient == "P1"


def test_a_sample_in_part(tmp_path: Path) -> None:
    section = write_hest(tmp_path, wsis=False, jsons=False)["TENX1"]
    slide = read(tmp_path)
    assert slide.flags == ("image_reduced",)
    assert slide.image_size_px == (round(section.size_px[0] * 0.25), round(section.size_px[1] * 0.25))
    assert [(e.origin, round(e.um_per_px)) for e in slide.scales] == [("pitch", 20)]
    assert slide.metadata.organ is None
    Image.fromarray(tissue(section.size_px)).save(tmp_path / "wsis/TENX7.tif")
    error = refusal(tmp_path, "TENX7")
    assert (error.rule, error.file) == ("missing_file", str(tmp_path / "st/TENX7.h5ad"))


def test_a_full_image_that_was_reduced_by_hand(tmp_path: Path) -> None:
    section = write_hest(tmp_path)["TENX1"]
    full = Image.fromarray(tissue(section.size_px))
    full.resize((full.width // 2, full.height // 2)).save(tmp_path / "wsis/TENX1.tif")
    slide = read(tmp_path)
    assert slide.flags == ("image_reduced",)
    assert slide.scales[0].um_per_px == pytest.approx(10, rel=0.01)


def test_the_catalogue_stands_in_for_missing_metadata(tmp_path: Path) -> None:
    rows = {"TENX1": {"patient": "Patient 1", "organ": "Kidney"}}
    write_hest(tmp_path, jsons=False, catalogue=True, rows=rows)
    slide = read(tmp_path)
    assert (slide.metadata.patient, slide.metadata.organ) == ("Patient 1", "kidney")
    before = digest(found(tmp_path)["TENX1"], {})
    text = (tmp_path / "HEST_v1_1_0.csv").read_text()
    (tmp_path / "HEST_v1_2_0.csv").write_text(text.replace("Kidney", "Liver"))
    assert read(tmp_path).metadata.organ == "liver", "the newest catalogue counts"
    assert digest(found(tmp_path)["TENX1"], {}) != before


def test_pixel_sizes_that_disagree_are_noticed(tmp_path: Path) -> None:
    write_hest(tmp_path, rows={"TENX1": {"pixel_size_um_embedded": 6.0}})
    error = refusal(tmp_path)
    assert error.rule == "scale_agrees"
    assert error.figure == pytest.approx(0.2, abs=0.01)
    for origin in ("pitch", "source"):
        slide = settle(read(tmp_path, scale_from=origin), None, ScaleSettings())
        assert slide.metadata.um_per_px == pytest.approx(5.0, rel=0.005), "the estimated one stands before the embedded"


@pytest.mark.parametrize("embedded", [1.0, 25.4 / 72, 25.4 / 96, 0.000469, 31.75])
def test_a_placeholder_is_no_scale(tmp_path: Path, embedded: float) -> None:
    write_hest(tmp_path, rows={"TENX1": {"pixel_size_um_embedded": embedded}})
    slide = settle(read(tmp_path), None, ScaleSettings())
    assert PLACEHOLDER in slide.flags
    assert slide.metadata.um_per_px == pytest.approx(5.0, rel=0.005)


def test_measurements_pooled_into_squares(tmp_path: Path) -> None:
    section = make_section("square", um_per_px=4.0)
    rows = {"TENX1": {"st_technology": "Xenium", "inter_spot_dist": "", "spot_diameter": ""}}
    rows["TENX1"] |= {"pixel_size_um_estimated": 4.0}
    write_hest(tmp_path / "a", sections={"TENX1": section}, rows=rows)
    slide = settle(read(tmp_path / "a"), None, ScaleSettings())
    assert (slide.metadata.pitch_um, slide.metadata.spot_diameter_um) == (100, 100)
    assert slide.metadata.um_per_px == pytest.approx(4.0, rel=0.005)
    # Pooled with another pixel size than the one that the metadata state (as NCBI784): squares of 58 um.
    rows["TENX1"] |= {"pixel_size_um_estimated": 4.0 * 0.58}
    write_hest(tmp_path / "b", sections={"TENX1": section}, rows=rows)
    assert refusal(tmp_path / "b").rule == "scale_agrees"
    hd = hest_sample({"st_technology": "Visium HD", "inter_spot_dist": 2.0, "spot_diameter": 2.0}).metadata
    assert (hd.pitch_um, hd.spot_diameter_um) == (128, 128)


def test_blanks_stay_unknown() -> None:
    for blank in ("", "   ", None, float("nan"), "NaN"):
        sample = hest_sample({"patient": blank, "organ": blank, "license": blank, "pixel_size_um_embedded": blank})
        assert sample.metadata.patient is sample.metadata.organ is sample.metadata.licence is None
        assert (sample.um_per_px, sample.placeholder) == ((), False)
    exchanged = hest_sample({"inter_spot_dist": 110.0, "spot_diameter": 150.0}).metadata
    assert (exchanged.pitch_um, exchanged.spot_diameter_um) == (150, 110)


def test_metadata_that_are_no_json(tmp_path: Path) -> None:
    write_hest(tmp_path)
    (tmp_path / "metadata/TENX1.json").write_text("{")
    error = refusal(tmp_path)
    assert (error.rule, error.file) == ("metadata_valid", str(tmp_path / "metadata/TENX1.json"))


def test_files_of_another_layout_are_left_to_others(tmp_path: Path) -> None:
    write_hest(tmp_path / "release")
    shutil.copytree(tmp_path / "release/st", tmp_path / "plain/st")
    assert found(tmp_path / "plain") == {}
    (section,) = find_sections([str(tmp_path / "plain")], "c")
    assert section.source and section.source.reader == "anndata"


def test_every_sample_of_the_catalogue(real_sections: Path) -> None:
    file = real_sections / "catalog/HEST_v1_1_0.csv"
    if not file.is_file():
        pytest.skip("no catalog/HEST_v1_1_0.csv in HISTOLAKE_SAMPLE_DIR")
    with file.open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    samples = [hest_sample(row) for row in rows]
    assert len(samples) == 1229
    blank = {
        name: sum(getattr(sample.metadata, name) is None for sample in samples)
        for name in ("patient", "organ", "species", "technology", "study", "licence")
    }
    assert blank == {"patient": 949, "organ": 1, "species": 0, "technology": 0, "study": 0, "licence": 501}
    assert all(sample.metadata.pitch_um and sample.metadata.spot_diameter_um for sample in samples)
    assert all(sample.metadata.pitch_um >= sample.metadata.spot_diameter_um for sample in samples)
    # Of the 357 samples with both pixel sizes 199 disagree: 18 by sizes that may both be meant, the others by a
    # placeholder.
    both = [row for row in rows if row["pixel_size_um_embedded"]]
    apart = [
        abs(float(row["pixel_size_um_embedded"]) / float(row["pixel_size_um_estimated"]) - 1) > 0.05 for row in both
    ]
    assert (len(both), sum(apart)) == (357, 199)
    told = dict(zip((row["id"] for row in rows), samples, strict=True))
    noticed = [told[row["id"]] for row, far in zip(both, apart, strict=True) if far]
    disagree = [s for s in samples if len(s.um_per_px) == 2 and max(s.um_per_px) > 1.05 * min(s.um_per_px)]
    assert len(disagree) == 18
    assert all(sample.placeholder or sample in disagree for sample in noticed)
    assert sum(sample.placeholder for sample in samples) == 220
