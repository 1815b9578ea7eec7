"""A small lake of generated pairs whose pictures and sentences agree, and a recipe that takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from histolake.platform.cluster import ClusterSettings
from histolake.platform.lake import Lake, Snapshot
from histolake.platform.schemas import PAIRS, REJECTIONS
from histolake.training.recipes import Recipe

SYMBOLS = ("EPCAM", "COL1A1", "PTPRC", "KRT18", "ERBB2", "IGKC", "VIM", "ACTB")
ROWS = 24
COLOURS = np.array([[200, 60, 120], [60, 90, 200], [230, 180, 200], [90, 160, 60]])


def pair_id_of(slide_id: str, number: int) -> bytes:
    """Of the n-th spot of a generated slide."""
    return hashlib.sha256(f"{slide_id}\0{number}".encode()).digest()[:16]


def rows_of(slide_id: str, gene_ids: np.ndarray, count: int = ROWS) -> pa.Table:
    """Pairs of four kinds: each kind has its colour and its order of genes."""
    made = []
    for number in range(count):
        kind = number % 4
        draw = np.random.default_rng([number, *slide_id.encode()])
        picture = np.clip(COLOURS[kind] + draw.normal(0, 12, (48, 48, 3)), 0, 255).astype(np.uint8)
        counts = draw.poisson(np.roll([40, 25, 15, 8, 5, 3, 2, 1], kind * 2)) + 1.0
        sentence = " ".join(SYMBOLS[gene] for gene in np.lexsort((SYMBOLS, -counts)))
        order = np.argsort(gene_ids)
        made.append(
            {
                **dict.fromkeys(PAIRS.names),
                "pair_id": pair_id_of(slide_id, number),
                "ingest_id": "",
                "slide_id": slide_id,
                "barcode": f"spot-{number}",
                "x_um": 200.0 * (number % 6),
                "y_um": 200.0 * (number // 6),
                "x_px": 100.0 * (number % 6),
                "y_px": 100.0 * (number // 6),
                "spot_image": simplejpeg.encode_jpeg(picture, quality=90),
                "niche_image": simplejpeg.encode_jpeg(picture, quality=90),
                "sentence": sentence,
                "gene_ids": gene_ids[order].tolist(),
                "counts": counts[order].tolist(),
                "niche": [pair_id_of(slide_id, other % count) for other in (number + 1, number + 2, number + 5)],
            }
        )
    return pa.Table.from_pylist(made, schema=PAIRS)


def publish(lake: Lake, slides: Mapping[str, Mapping[str, object]]) -> int:
    """Ingest generated slides with the given provenance, in one commit; gives the lake's version."""
    gene_ids = lake.resolve_genes(SYMBOLS, allocate=True)
    attempts = []
    for slide_id, provenance in slides.items():
        attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="s", source=f"generated:{slide_id}")
        fragment = attempt.pairs.write(rows_of(slide_id, gene_ids))
        cohort, _, section = slide_id.partition("/")
        record = {
            "cohort": cohort,
            "section": section,
            "simulated": True,
            "n_spots": ROWS,
            "niche_um": 500.0,
            "flags": [],
            "source": f"generated:{slide_id}",
        }
        nothing = REJECTIONS.empty_table().drop_columns(["ingest_id", "slide_id"])
        attempt.stage({**record, "study": "study", **provenance}, [fragment], nothing)
        attempts.append(attempt)
    return lake.publish(attempts)


@pytest.fixture(scope="session")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """Four slides of three patients; the last is of low resolution."""
    lake = Lake.open(tmp_path_factory.mktemp("pairs") / "lake", create=True)
    publish(
        lake,
        {
            "gen/A": {"patient": "P1", "accession": "GSE1"},
            "gen/B": {"patient": "P1"},
            "gen/C": {"patient": "P2"},
            "gen/D": {"patient": "P3", "flags": ["low_resolution"]},
        },
    )
    return lake.at()


@pytest.fixture(scope="session")
def generated_lake() -> Callable[..., Lake]:
    """Makes a lake of generated slides with the given provenance."""

    def make(place: Path, slides: Mapping[str, Mapping[str, object]]) -> Lake:
        lake = Lake.open(place, create=True)
        publish(lake, slides)
        return lake

    return make


@pytest.fixture(scope="session")
def micro() -> Recipe:
    """A CoCa so small that a step takes a blink."""
    return Recipe(
        name="coca-micro",
        summary="for tests",
        model={
            "architecture": "coca",
            "embed_dim": 32,
            "image_px": 28,
            "patch_px": 14,
            "image_width": 32,
            "image_layers": 1,
            "image_head_width": 16,
            "pooler_heads": 2,
            "pooler_queries": 2,
            "text_width": 32,
            "text_heads": 2,
            "text_layers": 1,
            "decoder_layers": 1,
            "context": 76,
        },
        steps=12,
        global_batch=16,
        lr=3e-3,
        warmup_steps=2,
        checkpoint_every=4,
        threads=1,
    )


@pytest.fixture
def cluster() -> ClusterSettings:
    """A small Ray on this machine."""
    return ClusterSettings(cpus=4, object_store_mb=100)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that nothing is written beside the tests."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
