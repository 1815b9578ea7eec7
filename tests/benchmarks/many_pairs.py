"""A lake of pairs to be read: pictures that compress as tissue does, sentences of real symbols, profiles and niches of
real size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg

from histolake.platform.lake import Lake
from histolake.platform.lake.genes import vocabulary
from histolake.platform.schemas import PAIRS, REJECTIONS

__all__ = ["write"]

PICTURES = 500  # different ones; rows take them in turn
GENES, EXPRESSED, WORDS = 30_000, 2_000, 50
SIDE_PX, QUALITY = 224, 90
BATCH = 256
NEIGHBOURS = (1, 2, 47)  # places in the slide after which the spots of a niche come


def write(work: Path, *, slides: int, spots: int, genes: int = GENES) -> None:
    """The lake `work/lake`, unless it is there: a fragment a slide. Each spot expresses `EXPRESSED` of about so many
    genes, drawn anew; with few, there are genes that most spots express."""
    if (work / "lake").exists():
        return
    lake = Lake.open(work / "lake", create=True)
    pictures, symbols = _pictures(np.random.default_rng(0)), _symbols()
    attempts = []
    for slide in range(slides):
        attempt = lake.begin(f"many/{slide:03d}", source_digest=str(slide), settings_digest="", source="generated")
        fragment = attempt.pairs.write(_rows(slide, spots, pictures, symbols, genes))
        none = pa.schema([field for field in REJECTIONS if field.name not in ("ingest_id", "slide_id")]).empty_table()
        attempt.stage({"cohort": "many", "flags": [], "n_spots": spots, "simulated": True}, [fragment], none)
        attempts.append(attempt)
    lake.publish(attempts)


def _pictures(rng: np.random.Generator) -> list[bytes]:
    """Blurred noise in the colours of a stain with a camera's noise on it: about 14 KB each."""
    made = []
    for _ in range(PICTURES):
        depth = rng.random((SIDE_PX // 8 + 1, SIDE_PX // 8 + 1)).repeat(8, 0).repeat(8, 1)[:SIDE_PX, :SIDE_PX]
        light = np.exp(-depth[..., None] * np.array([0.3, 1.1, 0.5])) * 244 + rng.normal(0, 6, (SIDE_PX, SIDE_PX, 3))
        picture = np.ascontiguousarray(np.clip(light, 0, 255).astype(np.uint8))
        made.append(simplejpeg.encode_jpeg(picture, quality=QUALITY, colorsubsampling="420"))
    return made


def _symbols() -> list[str]:
    """Symbols as sentences hold them: without Ensembl ids, and without those that bear a dot or a dash."""
    every = [symbol for symbol in vocabulary()["symbol"].to_pylist() if symbol]
    named = [symbol for symbol in every if symbol.isalnum() and not symbol.startswith("ENSG")]
    return [str(symbol) for symbol in np.random.default_rng(2).permutation(list(dict.fromkeys(named)))[:GENES]]


def _rows(slide: int, spots: int, pictures: list[bytes], symbols: list[str], genes: int) -> Iterator[pa.RecordBatch]:
    rng = np.random.default_rng([1, slide])
    pairs = [hashlib.sha256(f"{slide} {i}".encode()).digest()[:16] for i in range(spots)]
    for start in range(0, spots, BATCH):
        n = min(BATCH, spots - start)
        numbers = range(start, start + n)
        # Distinct rising ids: gaps of at least one.
        ids = np.cumsum(rng.integers(1, 2 * genes // EXPRESSED - 1, (n, EXPRESSED), dtype=np.int32), axis=1)
        offsets = pa.array(np.arange(n + 1, dtype=np.int32) * EXPRESSED)
        counts = (rng.poisson(1.5, n * EXPRESSED) + 1).astype(np.float32)
        made = {
            "pair_id": [pairs[i] for i in numbers],
            "barcode": [f"spot-{i}" for i in numbers],
            "spot_image": [pictures[(37 * slide + i) % PICTURES] for i in numbers],
            "niche_image": [pictures[(41 * slide + i) % PICTURES] for i in numbers],
            "sentence": [" ".join(symbols[g] for g in row) for row in ids[:, :WORDS].tolist()],
            "niche_sentence": [" ".join(symbols[g] for g in row) for row in ids[:, WORDS : 2 * WORDS].tolist()],
            "niche": [[pairs[(i + n) % spots] for n in NEIGHBOURS] for i in numbers],
        }
        columns = {name: pa.array(values, PAIRS.field(name).type) for name, values in made.items()}
        columns["gene_ids"] = pa.ListArray.from_arrays(offsets, pa.array(ids.ravel()))
        columns["counts"] = pa.ListArray.from_arrays(offsets, pa.array(counts))
        for name in ("ingest_id", "slide_id"):
            columns[name] = pa.array([""] * n)  # the writer fills them in
        arrays = [columns.get(field.name, pa.nulls(n, field.type)).cast(field.type) for field in PAIRS]
        yield pa.RecordBatch.from_arrays(arrays, schema=PAIRS)
