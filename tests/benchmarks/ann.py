"""Search in a table of embeddings, and embedding: `python -m tests.benchmarks.ann [--quick]`.

100,000 vectors of 768 numbers in 50 slides: clusters in a space of few dimensions with a little noise in all of them,
as embeddings of tissue are (vectors without structure have no near neighbours that an index could find). The answers of
the index are compared with those of comparing all vectors, over a whole lake version and over a tenth of its slides,
one query at a time and many together. Then the rate of `histolake embed` in one process over that of the bare forward
passes of the same model on the same pairs, decoded and tokenised beforehand, on one thread.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import simplejpeg
import torch
from tests.benchmarks.alone import Figures, interleaved, main, median_ratio, seconds

from histolake.platform.lake import Lake
from histolake.platform.lake.embeddings.table import About, EmbeddingTable
from histolake.platform.schemas import PAIRS
from histolake.training.embed_pool import Crew
from histolake.training.embedding import embed_lake
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.registry import ResolvedModel

WIDTH, SLIDES, K = 768, 50, 10
CLUSTERS, RANK = 400, 24
PATCH_PX = 224
CARD = {
    "embed_dim": 128,
    "image_column": "spot_image",
    "image_um": 55.0,
    "image_px": 128,
    "tokenizer": "bpe",
    "context": 76,
    "config": {"architecture": "clip-lite", "image_column": "spot_image"},
}


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures, flat."""
    return _search(work, quick) | _embed(work, quick)


# -- search -----------------------------------------------------------------------------------------------------------


def drawn(seed: int, rows: int) -> np.ndarray:
    """Clustered unit vectors (rows, WIDTH)."""
    shared, draw = np.random.default_rng(1), np.random.default_rng([2, seed])
    centres, basis = shared.normal(size=(CLUSTERS, RANK)), shared.normal(size=(RANK, WIDTH))
    inner = centres[draw.integers(CLUSTERS, size=rows)] + 0.5 * draw.normal(size=(rows, RANK))
    found = inner @ basis + 0.2 * np.sqrt(RANK) * draw.normal(size=(rows, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def _search(work: Path, quick: bool) -> Figures:
    rows = 300 if quick else 2000  # a slide
    lake = _published(work / "search", {f"c/{number:02d}": 1 for number in range(SLIDES + 1)})
    about = About(model="m", version="1", digest="-", width=WIDTH, image_column="spot_image", image_um=None)
    table = lake.embeddings.create("m-v1", about)
    ingests = {row["slide_id"]: row["ingest_id"] for row in lake.at().slides().to_pylist()}
    names = sorted(ingests)
    for number, slide_id in enumerate(names[:-1]):
        _append(table, ingests[slide_id], slide_id, number, rows)
    build_s = seconds(table.index)
    _append(table, ingests[names[-1]], names[-1], SLIDES, rows)
    figures = {
        "ann_vectors": float(rows * (SLIDES + 1)),
        "ann_build_s": build_s,
        "ann_add_slide_s": seconds(table.index),
        "ann_bytes_per_vector": _index_bytes(table) / (rows * (SLIDES + 1)),
    }
    return figures | _recall(lake, quick) | _rates(lake, quick)


def _recall(lake: Lake, quick: bool) -> Figures:
    query_QD = drawn(10_000, 50 if quick else 500)
    found = {}
    for setting, where in (("all", None), ("tenth", "slide_id like 'c/%3'")):
        told = [
            lake.embeddings.nearest("m-v1", query_QD, K, lake.at(), where=where, exact=exact) for exact in (False, True)
        ]
        pairs = [set(zip(t["query"].to_pylist(), t["pair_id"].to_pylist(), strict=True)) for t in told]
        found[f"ann_recall_at_10_{setting}"] = len(pairs[0] & pairs[1]) / len(pairs[1])
    return {"ann_recall_at_10": min(found.values()), **found}


def _rates(lake: Lake, quick: bool) -> Figures:
    """Queries a second by the index and by comparing all, taken in turns."""
    snapshot, figures = lake.at(), {}
    for setting, together, spent_s in (("single", 1, 3.0), ("batch", 256, 6.0)):

        def rate(exact: bool, together: int = together, spent_s: float = spent_s) -> float:
            began, asked = time.perf_counter(), 0
            while (spent := time.perf_counter() - began) < (0.5 if quick else spent_s):
                queries = drawn(20_000 + asked, together)
                lake.embeddings.nearest("m-v1", queries, K, snapshot, exact=exact)
                asked += together
            return asked / spent

        told = interleaved({"index": lambda: rate(False), "exact": lambda: rate(True)}, rounds=1 if quick else 3)
        figures[f"ann_queries_per_s_{setting}"] = statistics.median(told["index"])
        figures[f"ann_speedup_{setting}"] = median_ratio(told["index"], told["exact"])
    return {"ann_speedup": min(v for key, v in figures.items() if "speedup" in key), **figures}


def _append(table: EmbeddingTable, ingest_id: str, slide_id: str, number: int, rows: int) -> None:
    vectors, every = drawn(number, rows), np.ones(rows, dtype=bool)
    ids = [b"%08d%08d" % (number, row) for row in range(rows)]
    table.append([table.writer(ingest_id, slide_id).write(ids, vectors, every, np.zeros_like(vectors), ~every)])


def _index_bytes(table: EmbeddingTable) -> float:
    return float(sum(entry.size_bytes for entry in table.location.join("_indices").entries()))


# -- embedding --------------------------------------------------------------------------------------------------------


def _embed(work: Path, quick: bool) -> Figures:
    """Pairs a second of the command's work and of the forward passes alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    encoder = build_encoder(CARD["config"])
    encoder.trunk.load_imagenet()
    found = ResolvedModel(path=save_model(work / "model", encoder, CARD), name="", version="", uri="bench")
    lake = _published(work / "embed", {f"c/{number}": 16 if quick else 128 for number in range(4)})
    rows = pa.Table.from_batches(lake.at().pairs(["spot_image", "sentence"])).to_pydict()
    model = load_model(found.path)
    pixels, tokens = model.decode_images(rows["spot_image"]), model.tokenizer(rows["sentence"])

    def command() -> float:
        for name in lake.embeddings.names():
            lake.embeddings.remove(name)
        news: list[tuple[float, int]] = []  # loading the model is over with the first
        embed_lake(
            lake.at(),
            found,
            Crew(workers=1, device="cpu", threads=1),
            ray=False,
            index=False,
            tell=lambda what, done, of: news.append((time.perf_counter(), done)),
        )
        return (news[-1][1] - news[0][1]) / (news[-1][0] - news[0][0])

    def forward() -> float:
        began = time.perf_counter()
        model.embed_pixels(pixels)
        model.embed_tokens(tokens)
        return len(pixels) / (time.perf_counter() - began)

    told = interleaved({"embed": command, "forward": forward}, rounds=1 if quick else 3)
    return {
        "embed_vs_forward": median_ratio(told["embed"], told["forward"]),
        "embed_pairs_per_s": statistics.median(told["embed"]),
    }


def _published(place: Path, slides: dict[str, int]) -> Lake:
    """A lake of slides with so many pairs each, all published at once."""
    lake = Lake.open(place, create=True)
    attempts = []
    for slide_id, count in slides.items():
        attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="-", source="benchmark")
        nothing = pa.Table.from_pylist([])
        attempt.stage({"cohort": "c", "n_spots": count}, [attempt.pairs.write(_pairs(slide_id, count))], nothing)
        attempts.append(attempt)
    lake.publish(attempts)
    return lake


def _pairs(slide_id: str, count: int) -> pa.Table:
    draw = np.random.default_rng(list(slide_id.encode()))
    made = []
    for number in range(count):
        coarse = draw.integers(90, 230, size=(PATCH_PX // 8, PATCH_PX // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
        pixels = np.clip(coarse + draw.normal(0, 8, coarse.shape), 0, 255).astype(np.uint8)
        made.append(
            {
                **dict.fromkeys(PAIRS.names),
                "pair_id": f"{slide_id[-8:]:>8}{number:08d}".encode(),
                "ingest_id": "",
                "slide_id": slide_id,
                "barcode": str(number),
                "spot_image": simplejpeg.encode_jpeg(pixels, quality=90),
                "sentence": " ".join(f"GENE{gene}" for gene in draw.integers(20_000, size=50)),
            }
        )
    return pa.Table.from_pylist(made, schema=PAIRS)


if __name__ == "__main__":
    main(measure, __doc__)
