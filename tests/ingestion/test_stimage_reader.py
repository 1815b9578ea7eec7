"""The reader of STimage-1K4M: its layout, counts as they stream in, and a scale that nothing in it states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.ingestion.anndata_files import GENES, Section, make_section, write_stimage

from histolake.ingestion.discover import find_sections
from histolake.ingestion.readers import Listing, Source, reader
from histolake.ingestion.readers.count_table import read_count_table
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import Slide
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

SLIDE = "GSE1_GSM2"


def found(folder: Path) -> dict[str, Source]:
    return {s.metadata["section"]: s for s in reader("stimage").find(Listing(Location.parse(folder)))}


def read(folder: Path, slide: str = SLIDE, **metadata: Any) -> Slide:
    return reader("stimage").read(found(folder)[slide], metadata)


def refusal(folder: Path, **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        settle(read(folder, **metadata), None, ScaleSettings())
    return caught.value


def counts_file(folder: Path, technology: str = "ST") -> Path:
    return folder / technology / f"gene_exp/{SLIDE}_count.csv"


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_every_slide_is_a_section_and_nothing_else_is(tmp_path: Path) -> None:
    write_stimage(tmp_path / "r", "GSE1_a", technology="Visium", meta={})
    write_stimage(tmp_path / "r", "GSE1_b", technology="ST")
    (tmp_path / "r/annotation").mkdir()
    (tmp_path / "r/annotation/a.csv").write_text("x")
    sections = list(find_sections([str(tmp_path)], "c"))
    assert [(c.section, c.source and c.source.reader) for c in sections] == [
        ("GSE1_b", "stimage"),
        ("GSE1_a", "stimage"),
    ]
    for place in ("r/Visium", "r/Visium/gene_exp", "r/Visium/gene_exp/GSE1_a_count.csv"):
        assert [c.section for c in find_sections([str(tmp_path / place)], "c")] == ["GSE1_a"]
    assert found(tmp_path / "r/Visium")["GSE1_a"].metadata["study"] == "PMID 34650042"


@pytest.mark.parametrize(
    ("technology", "name", "pitch_um", "diameter_um"),
    [("ST", "Spatial Transcriptomics", 200, 100), ("Visium", "Visium", 100, 55)],
)
def test_counts_positions_and_scale(
    tmp_path: Path, technology: str, name: str, pitch_um: float, diameter_um: float
) -> None:
    section = write_stimage(tmp_path, SLIDE, technology=technology, um_per_px=3.0, meta={})
    slide = read(tmp_path)
    at = {barcode: i for i, barcode in enumerate(slide.barcodes.tolist())}
    rows = np.array([at[barcode] for barcode in section.barcodes])
    np.testing.assert_array_equal(slide.counts[rows].toarray(), section.counts)
    np.testing.assert_allclose(slide.xy_px[rows], section.xy_px)
    assert slide.symbols == GENES
    assert slide.image == str(tmp_path / technology / f"image/{SLIDE}.png")
    known = slide.metadata
    assert (known.technology, known.pitch_um, known.spot_diameter_um) == (name, pitch_um, diameter_um)
    assert (known.section, known.species, known.organ, known.patient) == (SLIDE, "human", "breast", None)
    assert (known.study, known.accession, known.expression_unit) == ("PMID 34650042", "GSE1", "counts")
    assert [(e.origin, e.um_per_px) for e in slide.scales] == [
        ("pitch", pytest.approx(3.0, rel=0.005)),
        ("source", pytest.approx(3.0)),
    ]
    if technology == "ST":
        np.testing.assert_array_equal(np.stack([slide.array_col, slide.array_row], axis=1)[rows], section.array)
    else:
        assert np.isnan(slide.array_row).all()


def test_the_radius_at_which_spots_are_drawn_is_no_scale(tmp_path: Path) -> None:
    write_stimage(tmp_path / "drawn", technology="Visium", radius_um=32.5)
    assert [e.origin for e in read(tmp_path / "drawn").scales] == ["pitch"]
    write_stimage(tmp_path / "wrong", technology="Visium", radius_um=55.0)
    assert refusal(tmp_path / "wrong").rule == "scale_agrees"


def test_a_staggered_array_taken_for_the_other_kind_is_noticed(tmp_path: Path) -> None:
    # As GSE144239: spots 150 um apart whose radius was worked out for a pitch of 200 um.
    section = make_section("st-staggered", um_per_px=0.6)
    write_stimage(tmp_path, section=section, um_per_px=1.1)
    slide = read(tmp_path)
    assert slide.metadata.pitch_um == 150
    assert slide.scales[0].um_per_px == pytest.approx(0.6, rel=0.005)
    assert refusal(tmp_path).rule == "scale_agrees"
    assert settle(read(tmp_path, scale_from="pitch"), None, ScaleSettings()).metadata.scale_from == "pitch"


def test_bins_tell_their_size_by_their_names(tmp_path: Path) -> None:
    square = make_section("square", um_per_px=0.5)
    names = [f"s_008um_{r:05.0f}_{c:05.0f}-1" for c, r in square.array]
    section = Section(names, square.array, square.array * 16.0, square.counts, square.genes, (400, 400))
    write_stimage(tmp_path / "named", technology="VisiumHD", section=section, um_per_px=0.5)
    slide = read(tmp_path / "named")
    assert (slide.metadata.technology, slide.metadata.pitch_um, slide.metadata.spot_diameter_um) == ("Visium HD", 8, 8)
    assert [(e.origin, e.um_per_px) for e in slide.scales] == [("pitch", pytest.approx(0.5))]
    write_stimage(tmp_path / "unnamed", technology="VisiumHD", section=square)
    assert refusal(tmp_path / "unnamed").rule == "scale_known"
    slide = settle(read(tmp_path / "unnamed", pitch_um="100"), None, ScaleSettings())
    assert slide.metadata.um_per_px == pytest.approx(0.5, rel=0.005)


def test_the_newest_table_of_metadata_counts(tmp_path: Path) -> None:
    write_stimage(tmp_path, meta={"species": "pig"})
    assert read(tmp_path).metadata.species == "pig"
    (tmp_path / "meta/meta_all_gene02122025.csv").unlink()
    assert read(tmp_path).metadata.species == "mouse", "the older table"
    (tmp_path / "meta/meta_all_gene.csv").unlink()
    assert (read(tmp_path).metadata.species, read(tmp_path).metadata.study) == (None, "GSE1")


def test_a_slide_without_its_image_or_its_positions(tmp_path: Path) -> None:
    write_stimage(tmp_path, image=False)
    assert read(tmp_path).image is None
    (tmp_path / f"ST/coord/{SLIDE}_coord.csv").unlink()
    error = refusal(tmp_path)
    assert (error.rule, error.file) == ("missing_file", str(tmp_path / f"ST/coord/{SLIDE}_coord.csv"))


def test_spots_without_a_position_are_told(tmp_path: Path) -> None:
    section = write_stimage(tmp_path)
    file = tmp_path / f"ST/coord/{SLIDE}_coord.csv"
    file.write_text("\n".join(file.read_text().splitlines()[:-3]) + "\n")
    slide = read(tmp_path)
    assert [spot.rule for spot in slide.refused] == ["spot_position"] * 3
    assert slide.n_read == len(section.barcodes)


def test_files_that_are_damaged(tmp_path: Path) -> None:
    write_stimage(tmp_path / "line")
    file = counts_file(tmp_path / "line")
    file.write_text(file.read_text()[:-150])
    error = refusal(tmp_path / "line")
    assert (error.rule, error.file) == ("file_complete", str(file))
    write_stimage(tmp_path / "lines", meta={})
    file = counts_file(tmp_path / "lines")
    file.write_text("\n".join(file.read_text().splitlines()[:60]) + "\n")
    error = refusal(tmp_path / "lines")
    assert (error.rule, error.figure, error.limit) == ("file_complete", 59, 90)
    write_stimage(tmp_path / "words")
    change(counts_file(tmp_path / "words"), ",3,", ",many,")
    assert refusal(tmp_path / "words").rule == "counts_valid"
    write_stimage(tmp_path / "below")
    change(counts_file(tmp_path / "below"), ",3,", ",-3,")
    assert refusal(tmp_path / "below").rule == "counts_valid"
    write_stimage(tmp_path / "place")
    change(tmp_path / f"place/ST/coord/{SLIDE}_coord.csv", "xaxis", "x")
    assert refusal(tmp_path / "place").rule == "positions_valid"
    write_stimage(tmp_path / "none")
    counts_file(tmp_path / "none").write_text(",A,B\n")
    assert refusal(tmp_path / "none").rule == "empty_section"
    counts_file(tmp_path / "none").write_text("")
    assert refusal(tmp_path / "none").rule == "empty_section"


def test_a_wide_table_comes_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histolake.ingestion.readers.count_table.BLOCK_BYTES", 1)
    values = np.random.default_rng(0).poisson(0.1, (70, 3000))
    names = [f"spot{i}" for i in range(70)]
    file = tmp_path / "wide.csv.gz"
    pd.DataFrame(values, index=names, columns=[f"G{i % 2900}" for i in range(3000)]).to_csv(file)
    table = read_count_table(str(file))
    assert (table.barcodes, table.symbols[-1]) == (names, "G99")
    np.testing.assert_array_equal(table.counts_NG.toarray(), values)
