"""The reader of AnnData: where positions, counts, genes, images and the scale are found, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tests.ingestion.anndata_files import GENES, Section, add_images, as_anndata, make_section, tissue, write_h5ad

from histolake.ingestion.discover import find_sections
from histolake.ingestion.images import open_image
from histolake.ingestion.quality import QualitySettings, check_section, judge_spots
from histolake.ingestion.readers import Listing, Source, reader
from histolake.ingestion.readers.h5ad import open_h5ad
from histolake.ingestion.readers.lattice import fit_lattice, index_lattice
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import Slide
from histolake.platform.cache import drop
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location


@pytest.fixture(autouse=True)
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sources(folder: Path) -> list[Source]:
    return list(reader("anndata").find(Listing(Location.parse(folder))))


def read(folder: Path, **metadata: Any) -> Slide:
    (source,) = sources(folder)
    return reader("anndata").read(source, metadata)


def settled(slide: Slide, tag: float | None = None) -> float:
    um_per_px = settle(slide, tag, ScaleSettings()).metadata.um_per_px
    assert um_per_px is not None
    return um_per_px


def refusal(folder: Path, **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        settled(read(folder, **metadata))
    return caught.value


def rows_of(slide: Slide, section: Section) -> np.ndarray:
    at = {name: i for i, name in enumerate(slide.barcodes.tolist())}
    return np.array([at[name] for name in section.barcodes])


def write(folder: Path, table: anndata.AnnData, name: str = "s.h5ad") -> Path:
    folder.mkdir(exist_ok=True)
    table.write_h5ad(folder / name)
    return folder


@pytest.mark.parametrize("layout", ["csr", "csc", "dense"])
def test_counts_positions_and_order(tmp_path: Path, layout: str) -> None:
    section = write_h5ad(tmp_path / "s.h5ad", layout=layout, image="s.png")
    slide = read(tmp_path)
    rows = rows_of(slide, section)
    np.testing.assert_array_equal(slide.counts[rows].toarray(), section.counts)
    np.testing.assert_allclose(slide.xy_px[rows], section.xy_px)
    np.testing.assert_array_equal(np.stack([slide.array_col, slide.array_row], axis=1)[rows], section.array)
    raster = sorted(zip(slide.array_row, slide.array_col, slide.barcodes, strict=True))
    assert [barcode for _, _, barcode in raster] == slide.barcodes.tolist()
    assert slide.symbols == GENES
    assert (slide.metadata.technology, slide.metadata.pitch_um, slide.metadata.spot_diameter_um) == ("Visium", 100, 55)
    assert (slide.metadata.expression_unit, slide.flags) == ("counts", ())
    assert slide.image == str(tmp_path / "s.png")
    assert settled(slide) == pytest.approx(5.0, rel=0.005)


@pytest.mark.parametrize(
    ("kind", "pitch_um", "diameter_um", "technology"),
    [
        ("visium", 100, 55, "Visium"),
        ("st", 200, 100, "Spatial Transcriptomics"),
        ("st-staggered", 150, 100, "Spatial Transcriptomics"),
    ],
)
@pytest.mark.parametrize("array", [True, False])
def test_arrays_are_known_by_barcodes_and_lattice(
    tmp_path: Path, kind: str, pitch_um: float, diameter_um: float, technology: str, array: bool
) -> None:
    write_h5ad(tmp_path / "s.h5ad", make_section(kind, um_per_px=3.0), array=array)
    slide = read(tmp_path)
    known = slide.metadata
    assert (known.technology, known.pitch_um, known.spot_diameter_um) == (technology, pitch_um, diameter_um)
    assert [e.origin for e in slide.scales] == ["pitch"]
    assert settled(slide) == pytest.approx(3.0, rel=0.005)


def test_nothing_is_guessed_where_no_array_is_known(tmp_path: Path) -> None:
    write_h5ad(tmp_path / "s.h5ad", make_section("square", um_per_px=2.0), image="s.png")
    error = refusal(tmp_path)
    assert error.rule == "scale_known"
    assert "um_per_px" in str(error) and "pitch_um" in str(error)
    assert settled(read(tmp_path, pitch_um="100")) == pytest.approx(2.0, rel=0.005)
    stated = read(tmp_path, um_per_px="2")
    assert stated.scales == ()
    assert stated.metadata.pitch_um == pytest.approx(100, rel=0.005)
    assert stated.metadata.spot_diameter_um == stated.metadata.pitch_um
    visium = read(tmp_path, technology="10x Visium")
    assert (visium.metadata.technology, visium.metadata.spot_diameter_um) == ("Visium", 55)


def test_visium_barcodes_off_a_hexagonal_lattice_tell_nothing(tmp_path: Path) -> None:
    section = make_section("visium")
    anywhere = np.random.default_rng(0).uniform(0, 500, section.xy_px.shape)
    table = as_anndata(section, array=False)
    table.obsm["spatial"] = anywhere
    assert refusal(write(tmp_path / "f", table)).rule == "scale_known"
    assert index_lattice(anywhere) is None
    assert fit_lattice(section.array, anywhere) is None


def test_the_pitch_is_fitted_whatever_the_rotation(tmp_path: Path) -> None:
    section = make_section("visium", um_per_px=0.5)
    turn = np.array([[np.cos(0.4), np.sin(0.4)], [-np.sin(0.4), np.cos(0.4)]])
    xy = section.xy_px @ turn + 5000
    for array in (section.array, index_lattice(xy)):
        assert array is not None
        lattice = fit_lattice(array, xy)
        assert lattice is not None
        assert (lattice.pitch_px, lattice.neighbours) == (pytest.approx(200, rel=0.002), 6)


def test_images_in_the_file(tmp_path: Path) -> None:
    section = make_section(um_per_px=2.0)
    table = as_anndata(section)
    factors = {"fiducial_diameter_fullres": 105 / 2.0, "spot_diameter_fullres": 35.0}
    add_images(table, section, {"hires": 0.5, "lowres": 0.1}, scalefactors=factors, fractions=True)
    slide = read(write(tmp_path / "f", table))
    assert slide.flags == ("image_reduced",)
    np.testing.assert_allclose(slide.xy_px[rows_of(slide, section)], section.xy_px * 0.5)
    assert {e.origin: e.um_per_px for e in slide.scales} == {
        "pitch": pytest.approx(4.0, rel=0.005),
        "fiducial": pytest.approx(4.0),
    }
    assert slide.image is not None
    image = open_image(slide.image)
    assert image.size_px == slide.image_size_px == tuple(round(side * 0.5) for side in section.size_px)
    held = np.asarray(Image.fromarray(tissue(section.size_px)).resize(image.size_px))
    np.testing.assert_array_equal(image.read_region(3, 5, 40, 30), held[5:35, 3:43])
    image.close()
    assert read(tmp_path / "f").image == slide.image, "one copy, named by its content"
    assert drop(slide.image) > 0, "it is in the cache, where forgetting finds it"
    assert not Path(slide.image).exists()


def test_which_image_is_taken(tmp_path: Path) -> None:
    section = make_section()
    table = as_anndata(section)
    add_images(table, section, {"hires": 0.5})
    folder = write(tmp_path / "f", table)
    full = Image.fromarray(tissue(section.size_px))
    full.save(folder / "image.png")
    assert read(folder).image == str(folder / "image.png")
    full.save(folder / "s.png")
    assert (read(folder).image, read(folder).flags) == (str(folder / "s.png"), ())
    full.save(folder / "other.png")
    assert read(folder, image=str(folder / "other.png")).image == str(folder / "other.png")
    full.resize((round(full.width * 0.5), round(full.height * 0.5))).save(folder / "small.png")
    reduced = read(folder, image="small.png")
    assert reduced.flags == ("image_reduced",)
    np.testing.assert_allclose(reduced.xy_px[rows_of(reduced, section)], section.xy_px * 0.5)
    (folder / "two.h5ad").write_bytes((folder / "s.h5ad").read_bytes())
    first, second = sources(folder)
    assert first.files["image"] == str(folder / "s.png")
    assert "image" not in second.files, "image.png could be of either"


def test_a_section_without_an_image(tmp_path: Path) -> None:
    write_h5ad(tmp_path / "s.h5ad")
    slide = read(tmp_path)
    assert slide.image is None and slide.image_size_px is None


def test_the_counts_are_where_whole_numbers_are(tmp_path: Path) -> None:
    section = make_section()
    logged = np.log1p(section.counts).astype(np.float32)
    layered = as_anndata(section)
    layered.layers["counts"] = layered.X.copy()
    layered.X = logged
    slide = read(write(tmp_path / "layer", layered))
    np.testing.assert_array_equal(slide.counts[rows_of(slide, section)].toarray(), section.counts)
    held = as_anndata(section)
    held.raw = held.copy()
    held = held[:, :50].copy()
    held.X = logged[:, :50]
    slide = read(write(tmp_path / "raw", held))
    assert (slide.metadata.expression_unit, slide.symbols) == ("counts", GENES)
    np.testing.assert_array_equal(slide.counts[rows_of(slide, section)].toarray(), section.counts)


def test_a_normalisation_is_named_and_kept(tmp_path: Path) -> None:
    section = make_section()
    tpm = (section.counts / section.counts.sum(axis=1, keepdims=True) * 1e6).astype(np.float32)
    for name, values, unit in (("tpm", tpm, "TPM"), ("log", np.log1p(tpm), "normalised")):
        table = as_anndata(section)
        table.X = values
        slide = read(write(tmp_path / name, table))
        assert slide.metadata.expression_unit == unit
        np.testing.assert_allclose(slide.counts[rows_of(slide, section)].toarray(), values, rtol=1e-6)
    assert read(tmp_path / "log", expression_unit="FPKM").metadata.expression_unit == "FPKM"
    layered = as_anndata(section)
    layered.layers["counts"] = layered.X.copy()
    layered.X = tpm
    named = read(write(tmp_path / "named", layered), expression_unit="tpm")
    assert named.counts.sum() == pytest.approx(1e6 * len(named), rel=1e-3), "a person's word says which matrix is meant"


def test_genes_by_id_symbol_or_both(tmp_path: Path) -> None:
    section = make_section()
    ids = [f"ENSMUSG{i:011d}.{i % 3 + 1}" for i in range(len(GENES))]
    plain = as_anndata(section)
    plain.var_names = ids
    slide = read(write(tmp_path / "ids", plain))
    assert (slide.symbols, slide.ensembl_ids) == (ids, ids)
    both = as_anndata(section)
    both.var["gene_ids"] = ids
    slide = read(write(tmp_path / "both", both))
    assert (slide.symbols, slide.ensembl_ids) == (GENES, ids)
    turned = as_anndata(section)
    turned.var_names = ids
    turned.var["feature_name"] = pd.Categorical([*GENES[:-1], np.nan])
    slide = read(write(tmp_path / "turned", turned))
    assert (slide.symbols[:-1], slide.symbols[-1]) == (GENES[:-1], ids[-1])


def test_what_is_no_gene_is_left_out(tmp_path: Path) -> None:
    table = as_anndata(make_section())
    table.var["feature_types"] = ["Gene Expression"] * 255 + ["Antibody Capture"] * 5
    table.var_names = ["BLANK_0001", "NegControlProbe_00042", *GENES[2:]]
    slide = read(write(tmp_path / "f", table))
    assert slide.symbols == GENES[2:255]
    assert slide.counts.shape[1] == 253


def test_spots_off_tissue_or_without_a_position(tmp_path: Path) -> None:
    section = make_section()
    on = np.ones(len(section.barcodes), dtype=int)
    on[3] = 0
    table = as_anndata(section, obs={"in_tissue": on})
    table.obsm["spatial"][5] = np.nan
    slide = read(write(tmp_path / "f", table))
    assert {spot.barcode: spot.rule for spot in slide.refused} == {
        section.barcodes[3]: "spot_selected",
        section.barcodes[5]: "spot_position",
    }
    assert len(slide) == len(section.barcodes) - 2


def test_positions_under_other_names(tmp_path: Path) -> None:
    section = make_section()
    keyed = as_anndata(section)
    keyed.obsm["X_spatial"] = keyed.obsm.pop("spatial")
    assert len(read(write(tmp_path / "key", keyed))) == len(section.barcodes)
    columns = as_anndata(section)
    xy = columns.obsm.pop("spatial")
    columns.obs["pxl_col_in_fullres"], columns.obs["pxl_row_in_fullres"] = xy[:, 0], xy[:, 1]
    slide = read(write(tmp_path / "columns", columns))
    np.testing.assert_allclose(slide.xy_px[rows_of(slide, section)], section.xy_px)
    none = as_anndata(section)
    none.obs["x"], none.obs["y"] = xy[:, 0], xy[:, 1]  # array positions or pixels: nobody can tell
    del none.obsm["spatial"]
    error = refusal(write(tmp_path / "none", none))
    assert (error.rule, error.file) == ("positions_missing", str(tmp_path / "none/s.h5ad"))


def test_metadata_of_the_file_beside_it_and_of_the_curator(tmp_path: Path) -> None:
    section = make_section()
    table = as_anndata(section, obs={"donor_id": ["D1"] * len(section.barcodes), "tissue": ["liver"] * 90})
    table.uns["spatial"] = {"x": {"metadata": {"organism": "Mus musculus", "um_per_px": 5.0, "disease": "unknown"}}}
    folder = write(tmp_path / "f", table)
    slide = read(folder)
    assert (slide.metadata.patient, slide.metadata.organ, slide.metadata.species) == ("D1", "liver", "Mus musculus")
    assert slide.metadata.disease is None
    assert [e.origin for e in slide.scales] == ["pitch", "source"]
    (folder / "section.json").write_text(json.dumps({"patient": "D2", "organ": "lung", "section": "named"}))
    slide = read(folder, organ="heart")
    assert (slide.metadata.patient, slide.metadata.organ) == ("D2", "heart")
    assert [c.section for c in find_sections([str(folder)], "c")] == ["named"]
    (folder / "s.json").write_text("[]")
    assert refusal(folder).rule == "metadata_valid"


def test_a_scale_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    table = as_anndata(make_section())
    table.uns["spatial"] = {"x": {"metadata": {"um_per_px": 4.0}}}
    error = refusal(write(tmp_path / "f", table))
    assert (error.rule, error.figure) == ("scale_agrees", pytest.approx(0.25, abs=0.01))


def test_names_are_paths(tmp_path: Path) -> None:
    write_h5ad(tmp_path / "a/one.h5ad")
    write_h5ad(tmp_path / "a/two.h5ad", make_section(seed=1))
    write_h5ad(tmp_path / "three.h5ad", make_section(seed=2))
    assert [c.section for c in find_sections([str(tmp_path)], "c")] == ["three", "a/one", "a/two"]
    assert [c.section for c in find_sections([str(tmp_path / "three.h5ad")], "c")] == ["three"]


def test_files_that_are_damaged_or_something_else(tmp_path: Path) -> None:
    write_h5ad(tmp_path / "cut/s.h5ad")
    data = (tmp_path / "cut/s.h5ad").read_bytes()
    (tmp_path / "cut/s.h5ad").write_bytes(data[: len(data) // 2])
    error = refusal(tmp_path / "cut")
    assert (error.rule, error.figure) == ("file_complete", len(data) // 2)
    assert "truncated" in str(error) and "\n" not in str(error)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/s.h5ad").write_text("x")
    assert refusal(tmp_path / "text").rule == "file_complete"
    (tmp_path / "other").mkdir()
    with h5py.File(tmp_path / "other/s.h5ad", "w") as file:
        file["matrix"] = [1]
    assert refusal(tmp_path / "other").rule == "format_known"
    write_h5ad(tmp_path / "new/s.h5ad")
    with h5py.File(tmp_path / "new/s.h5ad", "a") as file:
        file["obs"].attrs["encoding-version"] = "9.0.0"
    error = refusal(tmp_path / "new")
    assert error.rule == "format_known"
    assert "current version" in str(error)


def test_two_sections_in_one_file_or_a_spot_twice(tmp_path: Path) -> None:
    section = make_section()
    joined = as_anndata(section)
    for library in ("a", "b"):
        add_images(joined, section, {"hires": 0.5}, library=library)
    error = refusal(write(tmp_path / "two", joined))
    assert (error.rule, error.figure) == ("one_section", 2)
    twice = as_anndata(section)
    twice.obs_names = [section.barcodes[0], *section.barcodes[:-1]]
    assert refusal(write(tmp_path / "twice", twice)).rule == "duplicate_barcodes"
    assert refusal(write(tmp_path / "none", as_anndata(section)[:0].copy())).rule == "empty_section"


def test_a_file_from_before_tables_had_columns(tmp_path: Path) -> None:
    section = make_section()
    names = np.array(section.barcodes, dtype="S18")
    obs = np.zeros(len(names), dtype=[("index", "S18"), ("array_row", "<i8"), ("array_col", "<i8")])
    obs["index"], obs["array_row"], obs["array_col"] = names, section.array[:, 1], section.array[:, 0]
    var = np.zeros(len(GENES), dtype=[("index", "S8")])
    var["index"] = np.array(GENES, dtype="S8")
    obsm = np.zeros(len(names), dtype=[("spatial", "<f8", (2,))])
    obsm["spatial"] = section.xy_px
    (tmp_path / "old").mkdir()
    with h5py.File(tmp_path / "old/s.h5ad", "w") as file:
        file["obs"], file["var"], file["obsm"] = obs, var, obsm
        file["X"] = section.counts.astype(np.float32)
    slide = read(tmp_path / "old")
    np.testing.assert_array_equal(slide.counts[rows_of(slide, section)].toarray(), section.counts)
    np.testing.assert_allclose(slide.xy_px[rows_of(slide, section)], section.xy_px)


def test_a_dense_matrix_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("histolake.ingestion.readers.h5ad.BLOCK_VALUES", 7 * len(GENES))
    section = write_h5ad(tmp_path / "s.h5ad", layout="dense")
    with open_h5ad(str(tmp_path / "s.h5ad")) as file:
        (matrix,) = file.matrices()
        np.testing.assert_array_equal(matrix.read().toarray(), section.counts)


# -- real files ---------------------------------------------------------------------------------------------------

# um/px of the image used, spots read, spots kept, flags
REAL = {
    "her2st/C2": (0.69, 187, 187, ()),
    "her2st/C3": (0.69, 180, 180, ()),
    "her2st/A1": (3.19, 345, 345, ()),
    "dlpfc/151674": (16.1, 2877, 2877, ("image_reduced",)),
    "mob_st": (4.638, 1923, 379, ()),
}


@pytest.mark.parametrize("place", REAL)
def test_real_files(real_sections: Path, place: str) -> None:
    um_per_px, n_read, n_kept, flags = REAL[place]
    source = sources(real_sections / place)[0]
    slide = reader("anndata").read(source, {})
    check_section(slide)
    assert (slide.n_read, len(slide), slide.flags) == (n_read, n_kept, flags)
    assert settled(slide) == pytest.approx(um_per_px, rel=0.01)
    kept, _ = judge_spots(slide, QualitySettings(min_genes=0))
    assert len(kept) == n_kept, "every spot lies in the image"


def test_the_olfactory_bulb_lies_on_a_staggered_array(real_sections: Path) -> None:
    for source in sources(real_sections / "mob_st"):
        slide = reader("anndata").read(source, {})
        assert (slide.metadata.technology, slide.metadata.pitch_um) == ("Spatial Transcriptomics", 150)
        assert all(e and e.startswith("ENSMUSG") and "." in e for e in slide.ensembl_ids or ())
        with open_h5ad(source.uri) as file:
            columns, rows = file.column("array_col"), file.column("array_row")
        assert columns is not None and rows is not None
        assert set((columns + rows) % 2) == {0}
        # The whole array by this pitch: 6.3 by 6.7 mm, the printed area of both kinds of these arrays.
        xy_um = file_extent(source.uri) * settled(slide)
        np.testing.assert_allclose(xy_um, (6320, 6710), rtol=0.01)


def file_extent(uri: str) -> np.ndarray:
    with open_h5ad(uri) as file:
        xy = file.obsm("spatial")
        assert xy is not None
        return np.ptp(xy, axis=0)


def test_single_cells_are_no_section(real_sections: Path) -> None:
    folder = real_sections / "scrna"
    if not folder.is_dir():
        pytest.skip("no single cells in HISTOLAKE_SAMPLE_DIR")
    with pytest.raises(SourceError) as caught:
        reader("anndata").read(sources(folder)[0], {})
    assert caught.value.rule == "positions_missing"
