"""The ingest end to end: real files, real Ray, a real lake."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histolake.ingestion import pipeline, shelf
from histolake.ingestion.discover import find_sections
from histolake.ingestion.outcome import Outcome
from histolake.ingestion.readers import Listing, reader
from histolake.ingestion.runs import RunSizes
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.platform.lake import Lake
from histolake.platform.settings import load_settings
from histolake.platform.storage import Location

SETTINGS = load_settings({"quality.min_spots": 40})


def silent(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


def ingest(source: Path, lake: Path, settings: Any = SETTINGS) -> dict[str, Outcome]:
    found = list(find_sections([str(source)], "c"))
    opened = Lake.open(lake, create=True)
    outcomes = pipeline.ingest(found, opened, pipeline.ingest_settings(settings), silent)
    assert [o.slide_id for o in outcomes] == [c.slide_id for c in found]
    return {o.section: o for o in outcomes}


@dataclass
class Cohort:
    folder: Path
    lake: Path
    outcomes: dict[str, Outcome]


@pytest.fixture(scope="module")
def cohort(
    tmp_path_factory: pytest.TempPathFactory,
    ray_here: None,
    make_section: Callable[..., Path],
    rewrite: Callable[..., None],
    set_cell: Callable[..., None],
) -> Cohort:
    """Two good sections among one of every bad kind, ingested once."""
    root = tmp_path_factory.mktemp("cohort")
    folder = root / "sections"
    make_section(folder / "good", seed=1, section="good", patient="P1", simulated=True)
    poor = make_section(folder / "good_but_poor_spots", seed=2)
    for line in (3, 9):
        rewrite(
            poor / "counts.tsv.gz",
            lambda lines, line=line: [
                *lines[:line],
                lines[line].split("\t")[0] + "\t1" * 200 + "\t0" * 60,
                *lines[line + 1 :],
            ],
        )
    bad = {name: make_section(folder / name, seed=3) for name in BAD}
    rewrite(bad["barcodes"] / "spots.tsv", lambda lines: [lines[0], *("9" + line for line in lines[1:])])
    with Image.open(bad["uncovered"] / "image.png") as image:
        image.crop((0, 0, 200, 200)).save(bad["uncovered"] / "image.png")
    for name, file in (("cut_image", "image.png"), ("cut_matrix", "counts.tsv.gz")):
        data = (bad[name] / file).read_bytes()
        (bad[name] / file).write_bytes(data[: len(data) // 2])
    set_cell(bad["negative"] / "counts.tsv.gz", 5, 5, "-3")
    set_cell(bad["nan"] / "counts.tsv.gz", 5, 5, "NaN")
    rewrite(bad["empty"] / "counts.tsv.gz", lambda lines: lines[:1])
    rewrite(bad["few"] / "counts.tsv.gz", lambda lines: lines[:31])
    (bad["no_positions"] / "spots.tsv").unlink()
    (make_section(folder / "without_image", seed=4) / "image.png").unlink()
    set_cell(bad["words"] / "spots.tsv", 5, 5, "far right")
    rewrite(bad["twice"] / "counts.tsv.gz", lambda lines: [*lines, lines[1]])
    shutil.rmtree(bad["unknown"])
    bad["unknown"].mkdir()
    (bad["unknown"] / "matrix.mtx").write_text("%%MatrixMarket")
    return Cohort(folder, root / "lake", ingest(folder, root / "lake"))


BAD = {
    "barcodes": ("barcodes_match", "spots.tsv"),
    "uncovered": ("image_covers_spots", "image.png"),
    "cut_image": ("image_readable", "image.png"),
    "cut_matrix": ("file_complete", "counts.tsv.gz"),
    "negative": ("counts_valid", "counts.tsv.gz"),
    "nan": ("counts_valid", "counts.tsv.gz"),
    "empty": ("empty_section", "counts.tsv.gz"),
    "few": ("min_spots", "counts.tsv.gz"),
    "no_positions": ("missing_file", "spots.tsv"),
    "words": ("positions_valid", "spots.tsv"),
    "twice": ("duplicate_barcodes", "counts.tsv.gz"),
    "unknown": ("unknown_format", ""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_row_of_the_rejections(cohort: Cohort, name: str) -> None:
    rule, file = BAD[name]
    assert cohort.outcomes[name].status == "refused"
    assert cohort.outcomes[name].rule == rule
    snapshot = Lake.open(cohort.lake).at()
    rows = [r for r in snapshot.rejections().to_pylist() if r["slide_id"] == f"c/{name}"]
    assert len(rows) == 1
    assert rows[0]["rule"] == rule
    assert rows[0]["barcode"] is None
    assert rows[0]["file"] == str(cohort.folder / name / file).rstrip("/")
    assert rows[0]["reason"] == cohort.outcomes[name].reason
    slide = next(r for r in snapshot.slides(include_refused=True).to_pylist() if r["slide_id"] == f"c/{name}")
    assert (slide["status"], slide["n_pairs"], slide["source"]) == ("refused", 0, str(cohort.folder / name))


def test_the_others_are_published(cohort: Cohort) -> None:
    slides = {row["section"]: row for row in Lake.open(cohort.lake).at().slides().to_pylist()}
    assert sorted(slides) == ["good", "good_but_poor_spots", "without_image"]
    good, poor = slides["good"], slides["good_but_poor_spots"]
    assert (good["n_pairs"], good["n_spots"], good["n_rejections"]) == (72, 72, 0)
    assert (poor["n_pairs"], poor["n_spots"], poor["n_rejections"]) == (70, 72, 2)
    assert (good["patient"], good["simulated"], poor["patient"], poor["simulated"]) == ("P1", True, None, False)
    assert good["um_per_px"] == pytest.approx(5.0, rel=0.01)
    assert (good["spot_um"], good["niche_um"], good["reader"]) == (100.0, 500.0, "legacy-st")
    assert (good["scale_from"], [s["origin"] for s in good["scales"]]) == ("pitch", ["pitch"])
    assert good["flags"] == ["low_resolution"]
    assert (slides["without_image"]["flags"], slides["without_image"]["image"]) == (["image: none"], None)
    assert (slides["without_image"]["n_pairs"], slides["without_image"]["scale_from"]) == (72, "pitch")
    # The niches of the first row and of the outer columns reach over the image's edge; no spot does.
    assert cohort.outcomes["good"].padded_patches == 9 + 7 + 7


def test_a_poor_spot_is_told_with_its_place(cohort: Cohort) -> None:
    rows = [r for r in Lake.open(cohort.lake).at().rejections().to_pylist() if r["slide_id"] == "c/good_but_poor_spots"]
    assert {(r["rule"], r["figure"], r["limit"]) for r in rows} == {("min_genes", 200.0, 200.0)}
    assert all(r["barcode"] and r["x_px"] > 0 and r["y_px"] > 0 for r in rows)


def test_rows_say_what_the_files_say(cohort: Cohort) -> None:
    folder = Location.parse(cohort.folder / "good")
    (source,) = reader("legacy-st").find(Listing(folder))
    slide = settle(reader("legacy-st").read(source, {}), None, ScaleSettings())
    lake = Lake.open(cohort.lake)
    columns = ["pair_id", "barcode", "x_px", "y_um", "sentence", "gene_ids", "counts", "niche", "n_counts", "n_genes"]
    rows = [
        r for batch in lake.at().pairs([*columns, "spot_image", "niche_image"], ["c/good"]) for r in batch.to_pylist()
    ]
    symbols = dict(zip(lake.genes()["gene_id"].to_pylist(), lake.genes()["symbol"].to_pylist(), strict=True))
    image = np.asarray(Image.open(cohort.folder / "good/image.png")).astype(int)
    um_per_px = slide.metadata.um_per_px or 0
    pair_ids = [row["pair_id"] for row in rows]
    for i, row in enumerate(rows):
        assert row["barcode"] == slide.barcodes[i]
        assert row["pair_id"] == hashlib.sha256(f"c/good\0{row['barcode']}".encode()).digest()[:16]
        assert row["y_um"] == pytest.approx(slide.xy_px[i, 1] * um_per_px, rel=1e-5)
        profile = {symbols[g]: c for g, c in zip(row["gene_ids"], row["counts"], strict=True)}
        measured = dict(zip(slide.symbols, slide.counts[[i]].toarray()[0], strict=True))
        assert profile == {gene: count for gene, count in measured.items() if count}
        assert row["gene_ids"] == sorted(row["gene_ids"])
        assert (row["n_counts"], row["n_genes"]) == (sum(profile.values()), len(profile))
        assert row["sentence"].split() == sorted(profile, key=lambda gene: (-profile[gene], gene))[:50]
        assert len(row["niche"]) == 3
        near = [pair_ids.index(pair_id) for pair_id in row["niche"]]
        distance = np.linalg.norm(slide.xy_px - slide.xy_px[i], axis=1)
        np.testing.assert_allclose(np.sort(distance)[1:4], distance[near])
        patch = np.asarray(Image.open(io.BytesIO(row["spot_image"]))).astype(int)
        assert patch.shape == (20, 20, 3)
        left, top = (int(np.floor(v - 10 + 0.5)) for v in slide.xy_px[i])
        crop = image[top : top + 20, left : left + 20]
        assert np.abs(patch - crop).mean() < 12
        assert Image.open(io.BytesIO(row["niche_image"])).size == (100, 100)


def test_again_nothing_happens(cohort: Cohort) -> None:
    before = Lake.open(cohort.lake).version
    again = ingest(cohort.folder, cohort.lake)
    assert Lake.open(cohort.lake).version == before
    assert {name: o.status for name, o in again.items() if name not in BAD} == {
        "good": "unchanged",
        "good_but_poor_spots": "unchanged",
        "without_image": "unchanged",
    }
    assert {name: o.rule for name, o in again.items() if name in BAD} == {name: rule for name, (rule, _) in BAD.items()}


def test_a_plan_writes_nothing(cohort: Cohort, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "new", seed=9)
    rules = pipeline.ingest_settings(SETTINGS)
    lake = Lake.open(cohort.lake)
    before = lake.version
    sources = [str(tmp_path / "new"), str(cohort.folder / "good"), str(cohort.folder / "nan")]
    found = list(find_sections(sources, "c"))
    outcomes = {o.section: o for o in pipeline.plan(found, lake, rules, silent)}
    assert (outcomes["new"].status, outcomes["new"].spots_kept) == ("planned", 72)
    assert (outcomes["good"].status, outcomes["nan"].rule) == ("unchanged", "counts_valid")
    assert lake.version == before
    without = pipeline.plan(found, None, rules, silent)
    assert [o.status for o in without] == ["planned", "planned", "refused"]


def test_a_refused_source_retires_nothing_and_a_mended_one_replaces(
    tmp_path: Path, ray_here: None, make_section: Callable[..., Path], set_cell: Callable[..., None]
) -> None:
    folder = make_section(tmp_path / "in/s")
    assert ingest(tmp_path / "in", tmp_path / "lake")["s"].status == "published"
    lake = Lake.open(tmp_path / "lake")
    first = lake.at().slides().to_pylist()[0]
    set_cell(folder / "counts.tsv.gz", 2, 2, "-1")
    assert ingest(tmp_path / "in", tmp_path / "lake")["s"].status == "refused"
    assert [row["ingest_id"] for row in lake.at().slides().to_pylist()] == [first["ingest_id"]]
    set_cell(folder / "counts.tsv.gz", 2, 2, "77")
    assert ingest(tmp_path / "in", tmp_path / "lake")["s"].status == "published"
    slides = lake.at().slides(include_refused=True).to_pylist()
    assert [row["status"] for row in slides] == ["published"]
    assert slides[0]["ingest_id"] != first["ingest_id"]
    # Other settings make other rows, of the same files.
    finer = load_settings({"quality.min_spots": 40, "patches.jpeg_quality": 50})
    assert ingest(tmp_path / "in", tmp_path / "lake", finer)["s"].status == "published"
    assert not list((tmp_path / "lake/leases").glob("*.json"))


def test_sections_of_many_runs_come_out_whole_and_in_order(
    tmp_path: Path, ray_here: None, make_section: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_section(tmp_path / "in/a", seed=1)
    make_section(tmp_path / "in/b", seed=2)
    monkeypatch.setattr(pipeline, "RUN_SPOTS", RunSizes(largest=25))
    monkeypatch.setattr(pipeline, "WAVE", 1)
    monkeypatch.setattr(shelf, "ROOM", 0.0)  # nothing is handed over: every worker reads the section for itself
    ingest(tmp_path / "in", tmp_path / "small")
    monkeypatch.undo()
    ingest(tmp_path / "in", tmp_path / "large")

    def rows(lake: str) -> list[dict[str, Any]]:
        columns = ["slide_id", "barcode", "spot_image", "sentence", "niche_sentence", "counts", "niche", "focus"]
        return [r for batch in Lake.open(tmp_path / lake).at().pairs(columns) for r in batch.to_pylist()]

    assert rows("small") == rows("large")
    assert [len(row["fragments"]) for row in Lake.open(tmp_path / "small").at().slides().to_pylist()] == [3, 3]


def test_a_refused_section_keeps_what_was_known_of_it(
    tmp_path: Path, ray_here: None, make_section: Callable[..., Path]
) -> None:
    make_section(tmp_path / "in/s", patient="P1", um_per_px=6.0)
    assert ingest(tmp_path / "in", tmp_path / "lake")["s"].rule == "scale_agrees"
    (row,) = Lake.open(tmp_path / "lake").at().slides(include_refused=True).to_pylist()
    said = {s["origin"]: s["um_per_px"] for s in row["scales"]}
    assert said == {"stated": 6.0, "pitch": pytest.approx(5.0, rel=0.01)}
    assert (row["status"], row["patient"], row["technology"]) == ("refused", "P1", "Spatial Transcriptomics")
    assert (row["image_width_px"], row["image_height_px"], row["n_pairs"]) == (400, 400, 0)
