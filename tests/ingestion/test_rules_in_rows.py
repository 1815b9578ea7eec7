"""What the rules make of a section's rows: niches, sentences and symbols, as a worker writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from histolake.ingestion import ingest_settings
from histolake.ingestion.discover import find_sections
from histolake.ingestion.outcome import rejections_of_spots
from histolake.ingestion.pipeline import settings_digest
from histolake.ingestion.rows import IngestSettings
from histolake.ingestion.worker import Look, SlideWorker, Work, look
from histolake.platform.lake import Lake
from histolake.platform.settings import load_settings

PITCH_UM = 200.0
COLUMNS = ["pair_id", "barcode", "x_um", "y_um", "sentence", "niche_sentence", "gene_ids", "niche", "tissue_fraction"]


def settings_of(**overrides: object) -> IngestSettings:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return ingest_settings(load_settings({"quality.min_spots": 40, **given}))


def rows_of(folder: Path, lake: Lake, settings: IngestSettings) -> tuple[Look, pa.Table]:
    """A section looked at, written by one worker and published, as the pipeline does it; its pairs as they are read."""
    (candidate,) = find_sections([str(folder)], "c")
    told = look(candidate, lake.root, settings)
    if told.unknown_genes:
        symbols, ids = zip(*told.unknown_genes, strict=True)
        lake.resolve_genes(list(symbols), list(ids), species=told.species, allocate=True)
    attempt = lake.begin(
        candidate.slide_id, source_digest="files", settings_digest=settings_digest(settings), source=candidate.uri
    )
    worker = SlideWorker(lake.root, settings)
    written = worker.write(Work(candidate=candidate, writer=attempt.pairs, start=0, stop=told.n_kept))
    assert written.problem is None and written.fragment is not None
    attempt.stage(told.record, [written.fragment], rejections_of_spots(candidate.uri, told.refused))
    lake.publish([attempt])
    rows = lake.at().pairs(COLUMNS, slide_ids=[candidate.slide_id])
    return told, pa.Table.from_batches(list(rows))


def renamed(names: dict[str, str]) -> Callable[[list[str]], list[str]]:
    def change(lines: list[str]) -> list[str]:
        return ["\t".join(names.get(name, name) for name in lines[0].split("\t")), *lines[1:]]

    return change


def test_niches_by_radius(lake: Lake, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder = make_section(tmp_path / "section", seed=1)
    settings = settings_of(patches__niche_by="radius", patches__niche_radius_um=1.25 * PITCH_UM)
    told, table = rows_of(folder, lake, settings)
    assert told.record["niche_um"] == 100 + 2 * 1.25 * PITCH_UM
    xy = np.stack([table["x_um"].to_numpy(), table["y_um"].to_numpy()], axis=1).astype(float)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    ids = table["pair_id"].to_pylist()
    for i, niche in enumerate(table["niche"].to_pylist()):
        assert {ids.index(member) for member in niche} == set(np.flatnonzero(distance[i] < 1.25 * PITCH_UM).tolist())
        assert 2 <= len(niche) <= 4


def test_a_refused_spot_is_in_nobodys_niche(lake: Lake, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder = make_section(tmp_path / "section", seed=2)
    with Image.open(folder / "image.png") as image:
        pixels = np.asarray(image).copy()
    pixels[:, :130] = 255  # glass under the first columns
    pixels[:, 330:] = 3  # and a black margin over the last
    Image.fromarray(pixels).save(folder / "image.png")
    all_of_them, plain = rows_of(folder, lake, settings_of())
    told, table = rows_of(folder, lake, settings_of(quality__min_tissue=0.15))
    refused = {spot.barcode for spot in told.refused}
    poor = {
        row["barcode"]: row["tissue_fraction"]
        for row in plain.select(["barcode", "tissue_fraction"]).to_pylist()
        if row["tissue_fraction"] < 0.15
    }
    assert all_of_them.refused == () and 16 <= len(poor) <= 32
    assert refused == set(poor)
    assert {spot.rule for spot in told.refused} == {"min_tissue"}
    assert all(abs((spot.figure or 0) - poor[spot.barcode]) < 1e-6 for spot in told.refused)
    kept = set(table["pair_id"].to_pylist())
    assert table.num_rows == told.n_kept == plain.num_rows - len(poor)
    assert all(set(niche) <= kept and len(niche) == 3 for niche in table["niche"].to_pylist())


def test_housekeeping_genes_are_in_the_counts_and_in_no_sentence(
    lake: Lake, tmp_path: Path, make_section: Callable[..., Path], rewrite: Callable[..., None]
) -> None:
    folder = make_section(tmp_path / "section", seed=3)
    rewrite(folder / "counts.tsv.gz", renamed({"GENE000": "ACTB", "GENE001": "GAPDH"}))
    words = {}
    for setting in ("shipped", ""):
        _, table = rows_of(folder, lake, settings_of(sentences__housekeeping=setting, sentences__length=260))
        for column in ("sentence", "niche_sentence"):
            words[setting, column] = {word for text in table[column].to_pylist() for word in text.split()}
        (actb,) = lake.resolve_genes(["ACTB"], species="human")
        assert any(actb in genes for genes in table["gene_ids"].to_pylist())
    for column in ("sentence", "niche_sentence"):
        assert words["", column] - words["shipped", column] == {"ACTB", "GAPDH"}
        assert words["shipped", column] <= words["", column]


def test_a_mouse_section_with_ids_alone_speaks_in_symbols(
    lake: Lake, tmp_path: Path, make_section: Callable[..., Path], rewrite: Callable[..., None]
) -> None:
    from histolake.ingestion.housekeeping import mouse_genes

    some = mouse_genes()[:200]
    folder = make_section(tmp_path / "section", seed=4)
    names = {f"GENE{i:03d}": f"{ensembl}.{i % 20 + 1}" for i, (ensembl, _, _) in enumerate(some)}
    rewrite(folder / "counts.tsv.gz", renamed({**names, "ERBB2": "GENE300", "COL1A1": "GENE301"}))
    told, table = rows_of(folder, lake, settings_of(sentences__length=300))
    assert (told.species, told.record["species"], told.record["flags"]) == ("mouse", "mouse", ["low_resolution"])
    said = {word for text in table["sentence"].to_pylist() for word in text.split()}
    assert not any(word.startswith("ENS") for word in said)
    assert len(said & {symbol for _, symbol, _ in some}) > 150
    genes = {g["ensembl_id"]: g for g in lake.genes().to_pylist() if g["species"] == "mouse"}
    assert all(genes[ensembl]["symbol"] == symbol for ensembl, symbol, _ in some)


def test_a_look_tells_the_content(lake: Lake, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    settings = settings_of()
    sketches = [
        rows_of(make_section(tmp_path / f"s{i}", seed=i), lake, settings)[0].record["profile_sketch"] for i in (5, 6)
    ]
    assert [len(sketch) for sketch in sketches] == [64, 64]
    assert not set(sketches[0]) & set(sketches[1])
