"""Visium HD: any bins and pseudo-spots, counts conserved, positions true, memory bounded."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.ingestion.space_ranger_files import VisiumHD, hd_pixels, write_h5, write_visium_hd

from histolake.ingestion.readers import Listing, Source, digest, reader, readers
from histolake.ingestion.readers.bins import PseudoVisium, Squares, VisiumHDSettings, pool_bins, read_grid, target_of
from histolake.ingestion.readers.matrices import open_h5
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import Slide
from histolake.platform.errors import SourceError, UsageError
from histolake.platform.settings import load_settings
from histolake.platform.storage import Location

TILT = 1e-6


@pytest.fixture(scope="module")
def slide_hd(tmp_path_factory: pytest.TempPathFactory) -> VisiumHD:
    return write_visium_hd(tmp_path_factory.mktemp("hd") / "outs", tilt=TILT)


def found(folder: Path) -> Source:
    sources = reader("visium-hd").find(Listing(Location.parse(folder)))
    assert len(sources) == 1
    return sources[0]


def read(folder: Path, **metadata: Any) -> Slide:
    return reader("visium-hd").read(found(folder), metadata)


def read_as(bins: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Slide:
    monkeypatch.setenv("HISTOLAKE_VISIUM_HD__BINS", bins)
    return read(folder)


def refusal(folder: Path) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(folder)
    return caught.value


def sums_by_loop(truth: VisiumHD, row: np.ndarray, col: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """(S, G) of discs on Visium's lattice, a spot at a time."""
    bins = np.argwhere(truth.tissue)
    y, x = ((bins + 0.5) * 2).T
    dense = truth.counts.toarray()
    rows = []
    for r, c in zip(row, col, strict=True):
        inside = (x - 50 - dx * c) ** 2 + (y - 50 - dy * r) ** 2 <= 27.5**2
        rows.append(dense[inside].sum(axis=0))
    return np.array(rows)


def test_pseudo_spots_are_visiums(slide_hd: VisiumHD) -> None:
    slide = read(slide_hd.folder)
    assert (slide.metadata.technology, slide.metadata.species) == ("Visium HD", "human")
    assert (slide.metadata.spot_diameter_um, slide.metadata.pitch_um) == (55.0, 100.0)
    assert len(slide) > 50
    row, col = slide.array_row.astype(int), slide.array_col.astype(int)
    np.testing.assert_array_equal(row % 2, col % 2)
    np.testing.assert_array_equal(slide.counts.toarray(), sums_by_loop(slide_hd, row, col, 50, 50 * 3**0.5))
    distance = np.linalg.norm(slide.xy_px[:, None] - slide.xy_px[None], axis=2) * slide_hd.um_per_px
    np.fill_diagonal(distance, np.inf)
    np.testing.assert_allclose(distance.min(axis=1), 100, rtol=5e-3)
    assert slide.barcodes[0] == f"v_055um_{row[0]:05d}_{col[0]:05d}-1"
    assert "pseudo_spots" in slide.flags
    share = next(flag for flag in slide.flags if flag.startswith("outside_spots: "))
    assert 0.68 < float(share.split()[1].rstrip("%")) / 100 < 0.78


def test_every_bin_is_in_one_spot_or_told_to_be_in_none(slide_hd: VisiumHD) -> None:
    square = slide_hd.folder / "binned_outputs/square_002um"
    grid = read_grid(str(square / "spatial/tissue_positions.parquet"), 2.0)
    with open_h5(str(square / "filtered_feature_bc_matrix.h5")) as stored:
        pooled = pool_bins(stored, grid, PseudoVisium())
    assert pooled.in_spots + pooled.outside == slide_hd.counts.sum()
    assert pooled.in_spots == pooled.counts_SG.sum()
    assert pooled.matched == 1.0
    slide = read(slide_hd.folder)
    # A spot is kept or refused: together they hold what the spots hold.
    lost = {spot.barcode: spot for spot in slide.refused}
    assert all(spot.rule == "spot_covered" and (spot.figure or 0) < 0.5 == spot.limit for spot in lost.values())
    assert len(lost) + len(slide) == len(pooled.row)
    kept = pooled.covered >= 0.5
    assert slide.counts.sum() == pooled.counts_SG[np.flatnonzero(kept)].sum()
    assert 0 < kept.sum() < len(kept)


def test_discs_never_share_a_bin() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 2000, (2, 200_000))
    target = PseudoVisium()
    row, col = target.spots_of(x, y)
    inside = row >= 0
    # The area of the discs over that of the plane, in whole periods of the lattice.
    middle = (x > 250) & (x < 1750) & (y > 200) & (y < 200 + 9 * 100 * 3**0.5)
    assert inside[middle].mean() == pytest.approx(np.pi * 27.5**2 / (100 * 50 * 3**0.5), abs=0.005)
    distance = np.linalg.norm(target.centres_um(row, col) - np.stack([x, y], axis=1), axis=1)
    assert distance[inside].max() <= 27.5
    every = [(r, c) for r in range(24) for c in range(42) if r % 2 == c % 2]
    centres = target.centres_um(*np.array(every).T)
    outside = np.stack([x, y], axis=1)[~inside][:5000]
    assert np.linalg.norm(outside[:, None] - centres[None], axis=2).min() > 27.5


@pytest.mark.parametrize(("bins", "read_from"), [("2", 2), ("8", 8), ("16", 16), ("24", 8), ("10", 2), ("48", 16)])
def test_squares_conserve_every_count(
    slide_hd: VisiumHD, monkeypatch: pytest.MonkeyPatch, bins: str, read_from: int
) -> None:
    slide = read_as(bins, slide_hd.folder, monkeypatch)
    width = int(bins)
    assert (slide.matrix_file or "").endswith(f"square_{read_from:03d}um/filtered_feature_bc_matrix.h5")
    assert (slide.metadata.spot_diameter_um, slide.metadata.pitch_um) == (width, width)
    assert slide.counts.sum() == slide_hd.counts.sum()
    assert (slide.flags, slide.refused) == ((), ())
    # The same as summing the bins of 2 um one by one.
    where = np.argwhere(slide_hd.tissue) * 2 // width
    expected: dict[tuple[int, int], np.ndarray] = {}
    some = np.random.default_rng(1).choice(len(slide), 40, replace=False)
    wanted = {(int(slide.array_row[i]), int(slide.array_col[i])): i for i in some}
    for place in wanted:
        expected[place] = np.asarray(slide_hd.counts[np.flatnonzero((where == place).all(axis=1))].sum(axis=0))
    for place, i in wanted.items():
        np.testing.assert_array_equal(slide.counts[[i]].toarray()[0], expected[place])
        assert slide.barcodes[i] == f"s_{width:03d}um_{place[0]:05d}_{place[1]:05d}-1"


def test_positions_follow_the_tilted_picture(slide_hd: VisiumHD, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = read_as("8", slide_hd.folder, monkeypatch)
    true = hd_pixels(slide.array_row, slide.array_col, 8, slide_hd.um_per_px, TILT)
    np.testing.assert_allclose(slide.xy_px, true, atol=0.05)
    places = list(zip(slide.array_row, slide.array_col, strict=True))
    assert places == sorted(places)


def test_scale_by_json_and_by_lattice(slide_hd: VisiumHD) -> None:
    slide = read(slide_hd.folder)
    by = {e.origin: e.um_per_px for e in slide.scales}
    assert by == {"pitch": pytest.approx(1.0, rel=2e-3), "source": pytest.approx(1.0)}
    assert slide.image == str(slide_hd.image)
    assert settle(slide, None, ScaleSettings()).metadata.scale_from == "pitch"


def test_a_reduced_copy_stands_for_an_absent_image(tmp_path: Path) -> None:
    truth = write_visium_hd(tmp_path / "s", sizes=(8,), bins=(240, 240), image="hires")
    slide = read(truth.folder)
    assert slide.image == str(truth.folder / "spatial/tissue_hires_image.png")
    assert "image_reduced" in slide.flags
    factor = 400 / max(truth.size_px)
    assert all(e.um_per_px == pytest.approx(1 / factor, rel=3e-3) for e in slide.scales)
    assert (slide.xy_px < 400).all()


def test_where_the_folder_may_begin(tmp_path: Path) -> None:
    truth = write_visium_hd(tmp_path / "P7/outs", sizes=(8,), bins=(240, 240))
    whole = read(truth.folder)
    for place in ("binned_outputs", "binned_outputs/square_008um"):
        source = found(truth.folder / place)
        assert source.section == "P7"
        slide = reader("visium-hd").read(source, {})
        assert slide.counts.sum() == whole.counts.sum()
        assert slide.image == str(truth.image)
        assert readers()["space-ranger"].find(Listing(Location.parse(truth.folder / place))) == []
    assert readers()["space-ranger"].find(Listing(Location.parse(truth.folder))) == []
    (truth.folder / "binned_outputs").rename(truth.folder / "Visium_HD_Colon_binned_outputs")
    assert read(truth.folder).counts.sum() == whole.counts.sum()
    renamed = tmp_path / "bins of 8"
    shutil.copytree(truth.folder / "Visium_HD_Colon_binned_outputs/square_008um", renamed)
    assert readers()["space-ranger"].find(Listing(Location.parse(renamed))) == []


def test_the_choice_is_in_the_digest(slide_hd: VisiumHD, monkeypatch: pytest.MonkeyPatch) -> None:
    one = digest(found(slide_hd.folder), {})
    assert digest(found(slide_hd.folder), {}) == one
    monkeypatch.setenv("HISTOLAKE_VISIUM_HD__MIN_COVERED", "0.6")
    two = digest(found(slide_hd.folder), {})
    monkeypatch.setenv("HISTOLAKE_VISIUM_HD__BINS", "16")
    assert len({one, two, digest(found(slide_hd.folder), {})}) == 3


def test_a_section_may_choose_for_itself(tmp_path: Path) -> None:
    truth = write_visium_hd(tmp_path / "s", sizes=(8, 16), bins=(240, 240))
    beside = truth.folder / "section.json"
    beside.write_text(json.dumps({"bins": 16, "patient": "P1"}))
    slide = read(truth.folder)
    assert (slide.metadata.spot_diameter_um, slide.metadata.patient) == (16.0, "P1")
    beside.write_text(json.dumps({"bins": "cells"}))
    error = refusal(truth.folder)
    assert (error.rule, error.file) == ("metadata_valid", str(beside))
    assert "'cells'" in str(error)
    beside.write_text(json.dumps({"bins": "10"}))
    error = refusal(truth.folder)
    assert error.rule == "missing_file"
    assert (error.file or "").endswith("binned_outputs/square_002um")


def test_settings() -> None:
    assert load_settings().section("visium_hd") == VisiumHDSettings()
    assert target_of("pseudo-visium") == PseudoVisium()
    assert target_of("8") == Squares(8)
    for word in ("7", "0", "-8", "8um", ""):
        with pytest.raises(UsageError, match="multiple of 2"):
            target_of(word)
        with pytest.raises(UsageError, match="visium_hd"):
            load_settings({"visium_hd.bins": word})
    with pytest.raises(UsageError, match="min_covered"):
        load_settings({"visium_hd.min_covered": 0})


@pytest.mark.parametrize(
    "gone",
    [
        "filtered_feature_bc_matrix.h5",
        "spatial/tissue_positions.parquet",
        "spatial/scalefactors_json.json",
    ],
)
def test_a_missing_file_is_named(tmp_path: Path, gone: str) -> None:
    truth = write_visium_hd(tmp_path / "s", sizes=(8,), bins=(120, 120))
    (truth.folder / "binned_outputs/square_008um" / gone).unlink()
    error = refusal(truth.folder)
    assert error.rule == "missing_file"
    assert (error.file or "").endswith(gone)


def test_truncated_files(tmp_path: Path) -> None:
    truth = write_visium_hd(tmp_path / "s", sizes=(8,), bins=(120, 120))
    square = truth.folder / "binned_outputs/square_008um"
    for name in ("filtered_feature_bc_matrix.h5", "spatial/tissue_positions.parquet", "spatial/scalefactors_json.json"):
        whole = (square / name).read_bytes()
        (square / name).write_bytes(whole[: len(whole) // 2])
        error = refusal(truth.folder)
        assert (error.rule, error.file) == ("file_complete", str(square / name))
        (square / name).write_bytes(whole)


def test_counts_of_another_tissue_or_of_other_bins(tmp_path: Path) -> None:
    truth = write_visium_hd(tmp_path / "s", sizes=(8, 16), bins=(240, 240))
    small = write_visium_hd(tmp_path / "small", sizes=(8,), bins=(80, 80))
    square = truth.folder / "binned_outputs/square_008um"
    shutil.copy(small.folder / "binned_outputs/square_008um/spatial/tissue_positions.parquet", square / "spatial")
    error = refusal(truth.folder)
    assert (error.rule, error.limit) == ("barcodes_match", 0.5)
    assert 0 < (error.figure or 0) < 0.5
    shutil.copy(truth.folder / "binned_outputs/square_016um/filtered_feature_bc_matrix.h5", square)
    error = refusal(truth.folder)
    assert error.rule == "barcodes_match"
    assert "s_016um_" in str(error)
    shutil.copytree(truth.folder / "binned_outputs/square_016um/spatial", square / "spatial", dirs_exist_ok=True)
    error = refusal(truth.folder)
    assert (error.rule, error.figure, error.limit) == ("positions_valid", 16.0, 8.0)


def test_pixels_that_are_no_smooth_map(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    truth = write_visium_hd(tmp_path / "s", sizes=(8,), bins=(240, 240))
    file = truth.folder / "binned_outputs/square_008um/spatial/tissue_positions.parquet"
    table = parquet.read_table(file)
    moved = table["pxl_col_in_fullres"].to_numpy() + np.random.default_rng(0).normal(0, 6, table.num_rows)
    at = table.column_names.index("pxl_col_in_fullres")
    parquet.write_table(table.set_column(at, "pxl_col_in_fullres", [moved]), file)
    error = refusal(truth.folder)
    assert (error.rule, error.limit) == ("positions_valid", 2.0)
    assert error.figure == pytest.approx(6, rel=0.1)


def test_two_species_are_read_for_one(tmp_path: Path) -> None:
    truth = write_visium_hd(tmp_path / "s", sizes=(8,), bins=(240, 240), genes=20)
    file = truth.folder / "binned_outputs/square_008um/filtered_feature_bc_matrix.h5"
    with open_h5(str(file)) as stored:
        counts = stored.rows(0, stored.n_barcodes)
        names = [name.decode() for name in stored.barcodes(0, stored.n_barcodes)]
    features = [
        (f"{prefix}{i:011d}", f"G{i}", "Gene Expression", genome)
        for prefix, genome in (("ENSG", "GRCh38"), ("ENSMUSG", "mm10"))
        for i in range(10)
    ]
    write_h5(file, names, counts, features, {})
    assert refusal(truth.folder).rule == "one_species"
    slide = read(truth.folder, species="human")
    assert slide.counts.shape[1] == len(slide.symbols) == 10
    assert "left out: other species" in slide.flags


PEAK = """
import resource, sys
from histolake.ingestion.readers import Listing, reader
from histolake.platform.storage import Location
import histolake.ingestion.readers.bins, histolake.ingestion.images, h5py, scipy.sparse, pyvips, pyarrow.parquet
source, = reader("visium-hd").find(Listing(Location.parse(sys.argv[1])))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
slide = reader("visium-hd").read(source, {})
print(len(slide), slide.counts.nnz, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_is_bounded_by_a_run_and_the_result(tmp_path: Path) -> None:
    """A million bins: as many as a ninth of a full slide's."""
    truth = write_visium_hd(
        tmp_path / "s", sizes=(2,), bins=(1000, 1000), genes=4000, counts_per_bin=8.0, image=None, all_tissue=True
    )
    out = subprocess.run(
        [sys.executable, "-c", PEAK, str(truth.folder)], check=True, capture_output=True, text=True
    ).stdout.split()
    spots, values, peak_mb = int(out[0]), int(out[1]), float(out[2])
    assert spots > 400
    # 8 bytes a stored value of the source and as many of the result would be these; a dense matrix 30 times that.
    assert peak_mb < 8 * (truth.counts.nnz + 4 * values) / 2**20 + 150
