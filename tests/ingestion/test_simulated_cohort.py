"""The simulated cohort: the same from the same seed, and its truth is true."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from histolake.ingestion.images import open_image
from histolake.ingestion.quality import QualitySettings, check_section, judge_spots, quality_flags
from histolake.ingestion.readers import Listing, reader
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.sentences import SentenceSettings, gene_sentences
from histolake.ingestion.simulate import simulate_section
from histolake.ingestion.simulate.anatomy import DOMAINS, Warp, make_anatomy, make_warp
from histolake.ingestion.simulate.expression import MARKERS
from histolake.ingestion.slide import Slide
from histolake.ingestion.tiling import PatchSettings, tile
from histolake.platform.storage import Location

UM_PER_PX = 1.8  # coarser than the cohort, and quicker; still more than 2,000 px a side
FILES = ["counts.tsv.gz", "image.jpg", "section.json", "spots.tsv", "truth.json", "truth.parquet"]


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Both sections of one patient."""
    root = tmp_path_factory.mktemp("simulated")
    return {number: simulate_section(root, "SIM-B", number, seed=0, um_per_px=UM_PER_PX) for number in (1, 2)}


def read(folder: Path) -> Slide:
    (source,) = reader("legacy-st").find(Listing(Location.parse(folder)))
    return settle(reader("legacy-st").read(source, {}), None, ScaleSettings())


def test_a_seed_is_a_cohort(sections: dict[int, Path], tmp_path: Path) -> None:
    again = simulate_section(tmp_path / "again", "SIM-B", 2, seed=0, um_per_px=UM_PER_PX)
    assert sorted(path.name for path in again.iterdir()) == FILES
    for name in FILES:
        assert (again / name).read_bytes() == (sections[2] / name).read_bytes(), name
    written = (again / "image.jpg").stat().st_mtime_ns
    simulate_section(tmp_path / "again", "SIM-B", 2, seed=0, um_per_px=UM_PER_PX)
    assert (again / "image.jpg").stat().st_mtime_ns == written
    simulate_section(tmp_path / "again", "SIM-B", 2, seed=1, um_per_px=3 * UM_PER_PX)
    assert (again / "spots.tsv").read_bytes() != (sections[2] / "spots.tsv").read_bytes()
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["SIM-B-2"]


def test_it_reads_as_a_section_of_full_resolution(sections: dict[int, Path]) -> None:
    slide = read(sections[1])
    check_section(slide)
    kept, refused = judge_spots(slide, QualitySettings())
    assert quality_flags(slide, QualitySettings()) == ()
    assert (slide.metadata.simulated, slide.metadata.patient, slide.metadata.study) == (True, "SIM-B", "simulated")
    assert slide.metadata.um_per_px == UM_PER_PX
    assert 150 <= len(kept) <= 250
    assert [spot.rule for spot in refused] == ["min_genes"] * 4
    assert 3000 < np.median(kept.counts.sum(axis=1)) < 9000


def test_spots_lie_on_tissue(sections: dict[int, Path]) -> None:
    slide = read(sections[1])
    assert slide.image is not None
    tiles = tile(
        open_image(slide.image),
        slide.xy_px,
        width_um=100,
        um_per_px=slide.metadata.um_per_px or 0,
        settings=PatchSettings(),
    )
    truth = pq.read_table(sections[1] / "truth.parquet").to_pydict()
    fat = np.array([dict(zip(truth["barcode"], truth["domain_adipose"], strict=True))[b] for b in slide.barcodes])
    # Fat is mostly empty, in truth as under the microscope.
    assert tiles.tissue_fraction_N[fat < 0.05].min() > 0.5
    assert tiles.tissue_fraction_N[fat > 0.95].max() < 0.5


def test_domains_look_different_and_are_found_again_by_their_look(sections: dict[int, Path]) -> None:
    """Nearest neighbour on a few plain figures of the patch, from one section to the other."""
    looks, names = {}, {}
    for number, folder in sections.items():
        slide = read(folder)
        assert slide.image is not None
        image = open_image(slide.image)
        truth = dict(
            zip(*(pq.read_table(folder / "truth.parquet")[c].to_pylist() for c in ("barcode", "domain")), strict=True)
        )
        names[number] = np.array([truth[b] for b in slide.barcodes])
        patches = [image.read_region(int(x) - 28, int(y) - 28, 56, 56).astype(float) for x, y in slide.xy_px]
        looks[number] = np.array(
            [
                [
                    *p.mean((0, 1)),
                    *p.std((0, 1)),
                    (p[..., 0] < 110).mean() * 100,
                    np.abs(np.diff(p[..., 1], axis=0)).mean(),
                ]
                for p in patches
            ]
        )
    scale = looks[1].std(axis=0)
    distance = np.linalg.norm((looks[2][:, None] - looks[1][None]) / scale, axis=2)
    right = (names[1][distance.argmin(axis=1)] == names[2]).mean()
    common = max((names[2] == name).mean() for name in DOMAINS)
    assert right > 0.7 > 2 * common


def test_domains_speak_of_their_cells(sections: dict[int, Path]) -> None:
    slide, _ = judge_spots(read(sections[1]), QualitySettings())
    told = dict(zip(slide.barcodes, gene_sentences(slide.counts, slide.symbols, SentenceSettings()), strict=True))
    truth = pq.read_table(sections[1] / "truth.parquet").to_pylist()
    for domain, cells in (
        ("tumour", "tumour"),
        ("stroma", "fibroblast"),
        ("adipose", "adipocyte"),
        ("gland", "luminal"),
    ):
        markers = set(MARKERS[cells].split())
        share = {
            inside: np.mean(
                [
                    len(markers & set(told[row["barcode"]].split()))
                    for row in truth
                    if row["barcode"] in told and (row["domain"] == domain) == inside
                ]
            )
            for inside in (True, False)
        }
        assert share[True] > 2 * share[False], domain


def test_the_warp_is_what_the_truth_says(sections: dict[int, Path]) -> None:
    for number, folder in sections.items():
        stated = json.loads((folder / "truth.json").read_text())["warp_to_patient"]
        stated |= {name: tuple(stated[name]) for name in ("shift_um", "phase_rad")}
        rows = pq.read_table(folder / "truth.parquet").to_pydict()
        xy = np.stack([rows["x_um"], rows["y_um"]], axis=1)
        patient = np.stack([rows["patient_x_um"], rows["patient_y_um"]], axis=1)
        np.testing.assert_allclose(Warp(**stated)(xy), patient)
        moved = np.linalg.norm(patient - xy, axis=1)
        assert (moved.max() < 1e-6) if number == 1 else (40 < moved.mean() < 500)


def test_both_sections_show_one_anatomy() -> None:
    anatomy, warp = make_anatomy(np.random.default_rng(5)), make_warp(np.random.default_rng(6))
    at = np.random.default_rng(7).uniform(400, 3200, (500, 2))
    shares = anatomy.domains_at(warp(at))
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_array_equal(shares, anatomy.domains_at(warp(at)))
    # The warp is smooth: no step is more than a third longer or shorter than it was.
    for step in ((5.0, 0.0), (0.0, 5.0), (3.0, -4.0)):
        length = np.linalg.norm(warp(at + step) - warp(at), axis=1) / 5.0
        assert 0.67 < length.min() <= length.max() < 1.33


def test_patients_are_stained_differently(
    tmp_path: Path, sections: dict[int, Path], make_section: Callable[..., Path]
) -> None:
    other = simulate_section(tmp_path, "SIM-C", 1, seed=0, um_per_px=UM_PER_PX)
    colours = []
    for folder in (sections[1], other):
        pixels = np.asarray(Image.open(folder / "image.jpg").reduce(8)).reshape(-1, 3).astype(float)
        tissue = pixels[np.ptp(pixels, axis=1) > 40]
        colours.append(np.median(tissue, axis=0))
    assert np.abs(colours[0] - colours[1]).max() > 5
