"""A small lake of planted tissue and a small model of it, shared by the tests of serving.

The tissue: spots on a grid belong to one of three domains; a domain has a colour, and genes of its own. So the image
knows something about expression, and a method that can learn does better than chance.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import simplejpeg

from histolake.platform.lake import Lake, Snapshot
from histolake.platform.schemas import PAIRS
from histolake.platform.splits import Split
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.models.base import Model
from histolake.training.reference import write_reference

DOMAINS = 3
GENES = 36
SPOTS = 40
PATCH_PX = 48
# Two patients: three sections of the first (one of them chooses), one of the second.
SLIDES = {"c/T1": "P1", "c/T2": "P1", "c/V1": "P1", "c/Q1": "P2"}
SPLIT = Split.named(train=["c/T1", "c/T2"], validation=["c/V1"], test=["c/Q1"], cuts_units=True)
CONFIG = {
    "architecture": "coca",
    "embed_dim": 32,
    "image_px": 28,
    "patch_px": 14,
    "image_width": 32,
    "image_layers": 1,
    "image_head_width": 16,
    "pooler_heads": 2,
    "pooler_queries": 4,
    "text_width": 32,
    "text_heads": 2,
    "text_layers": 1,
    "decoder_layers": 1,
    "context": 76,
    "init_temperature": 0.1,
    "image_column": "spot_image",
}


def patch(domain: int, rng: np.random.Generator) -> bytes:
    """A JPEG whose colour is the domain's, with grain."""
    colour = np.array([[190, 120, 170], [230, 190, 215], [120, 80, 150]])[domain]
    pixels = colour + rng.normal(scale=18, size=(PATCH_PX, PATCH_PX, 3)) + rng.normal(scale=6, size=3)
    return simplejpeg.encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8), quality=90)


def planted_pairs(slide_id: str, gene_ids: np.ndarray, symbols: list[str]) -> pa.Table:
    """Pairs of one section of planted tissue."""
    rng = np.random.default_rng(list(hashlib.sha256(slide_id.encode()).digest()))
    abundance = np.linspace(1.0, 6.0, GENES)
    rows = []
    for number in range(SPOTS):
        domain = int(rng.integers(DOMAINS))
        rate = abundance * np.where(np.arange(GENES) % DOMAINS == domain, 15.0, 2.0) * rng.gamma(4.0, 0.25, size=GENES)
        counts = rng.poisson(rate).astype(np.float32)
        seen = np.flatnonzero(counts)
        ranked = sorted(seen, key=lambda g: (-counts[g], symbols[g]))
        rows.append(
            {
                **dict.fromkeys(PAIRS.names),
                "pair_id": hashlib.sha256(f"{slide_id}\0{number}".encode()).digest()[:16],
                "ingest_id": "",
                "slide_id": slide_id,
                "barcode": f"{number}x1",
                "x_px": float(number % 8 * 100),
                "y_px": float(number // 8 * 100),
                "x_um": float(number % 8 * 200),
                "y_um": float(number // 8 * 200),
                "spot_image": patch(domain, rng),
                "niche_image": patch(domain, rng),
                "sentence": " ".join(symbols[g] for g in ranked),
                "gene_ids": gene_ids[seen].tolist(),
                "counts": counts[seen].tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=PAIRS)


@pytest.fixture(scope="session")
def planted_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Four sections of planted tissue, published."""
    lake = Lake.open(tmp_path_factory.mktemp("planted") / "lake", create=True)
    vocabulary = lake.genes().slice(500, 4000).to_pylist()
    named = sorted((row["gene_id"], row["symbol"]) for row in vocabulary if row["symbol"] and row["symbol"].isalnum())
    gene_ids = np.array([gene for gene, _ in named[:GENES]])
    symbols = [symbol for _, symbol in named[:GENES]]
    attempts = []
    for slide_id, patient in SLIDES.items():
        attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="plain", source=f"planted:{slide_id}")
        record = {
            "cohort": "c",
            "section": slide_id.removeprefix("c/"),
            "study": "planted",
            "patient": patient,
            "simulated": True,
            "n_spots": SPOTS,
        }
        fragment = attempt.pairs.write(planted_pairs(slide_id, gene_ids, symbols))
        attempt.stage(record, [fragment], pa.Table.from_pylist([]))
        attempts.append(attempt)
    lake.publish(attempts)
    return lake


@pytest.fixture(scope="session")
def planted(planted_lake: Lake) -> Snapshot:
    """The newest version of the planted lake."""
    return planted_lake.at()


@dataclass(frozen=True)
class SmallModel:
    """A published model: its folder, and the model loaded from it."""

    folder: Path
    model: Model


@pytest.fixture(scope="session")
def small_model(planted: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> SmallModel:
    """A small CoCa with random weights, published as training publishes: card, weights, reference."""
    import torch

    torch.manual_seed(7)
    card = {
        "recipe": "coca-small",
        "embed_dim": CONFIG["embed_dim"],
        "image_column": "spot_image",
        "image_um": 100.0,
        "image_px": CONFIG["image_px"],
        "tokenizer": "bpe",
        "context": CONFIG["context"],
        "config": CONFIG,
        "lake": {"uri": planted.lake.uri, "version": planted.version},
        "split": SPLIT.to_dict(),
        "simulated": True,
        "run_id": "none",
        "genes_surviving_tokenizer": 12.0,
    }
    folder = save_model(tmp_path_factory.mktemp("model") / "small", build_encoder(CONFIG), card)
    model = load_model(folder)
    write_reference(folder, model, planted, SPLIT.assign(planted.slides()))
    return SmallModel(folder, model)


@pytest.fixture(scope="session")
def query_images(planted: Snapshot) -> list[bytes]:
    """Patches of the section that nothing was learned from."""
    batches = planted.pairs(["spot_image"], slide_ids=["c/Q1"])
    return [image for batch in batches for image in batch["spot_image"].to_pylist()]


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line as a process of its own; keywords are environment variables."""

    def begin(*words: object, **variables: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "histolake.platform", *map(str, words)]
        environment = {**os.environ, **variables}
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )

    return begin


@pytest.fixture(scope="session")
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line to its end, as a person does."""

    def finish(*words: object) -> subprocess.CompletedProcess[str]:
        process = start(*words)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return finish
