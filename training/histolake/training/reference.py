"""The `reference/` folder that a model is published with: what it learned from, embedded, and how to predict with it.

slides.json        every slide of the split with its side, study and patient
reference.parquet  one row a training pair: ids, place, sentence, both vectors, expression of the chosen genes
genes.json         the most variable of the well expressed genes, chosen on training pairs alone
calibration.json   neighbours and temperature of the prediction, chosen on the validation side (or on training pairs
                   against the other training slides where there is no validation side; the file says which, and how
                   that side is tied to training: "same patient")
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from histolake.platform.splits import Selection, Split, mark_of
from histolake.training.gene_choice import variable_genes
from histolake.training.metrics import pearson_per_gene, recall_at
from histolake.training.models.base import Model

__all__ = ["SideFigures", "write_reference"]

GENES = 200
TOP_K = (10, 20, 50, 100, 200)
TEMPERATURES = (0.02, 0.05, 0.1, 0.2)
COLUMNS = ("pair_id", "slide_id", "barcode", "x_px", "y_px", "x_um", "y_um", "sentence")


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Some slides' pairs, embedded. Rows N, genes G, embedding D."""

    rows: dict[str, list[Any]]
    image_ND: np.ndarray
    text_ND: np.ndarray
    expression_NG: np.ndarray

    @property
    def slide_ids(self) -> np.ndarray:
        """The slide of each row."""
        return np.asarray(self.rows["slide_id"])


@dataclass(frozen=True, kw_only=True)
class SideFigures:
    """How well a side's pictures find their own sentence among those of their slide (means over slides)."""

    recall_at_5pct: float
    recall_at_10pct: float
    pcc_mean: float  # mean of Pearson per gene over spots, averaged over slides


def write_reference(
    folder: Path,
    model: Model,
    snapshot: Any,
    sides: Mapping[str, str],
    on_progress: Any = None,
    *,
    split: Split | None = None,
) -> dict[str, SideFigures]:
    """Write `folder`/reference; gives the figures of the validation side (none where there is no such side).

    `split` says which pairs are meant of slides whose side is `BLOCKS`."""
    train, validation = (Selection.of(snapshot, split, sides, side) for side in ("train", "validation"))
    target = folder / "reference"
    target.mkdir(parents=True, exist_ok=True)
    gene_ids = variable_genes(train, GENES)
    reference = embed_slides(model, train, gene_ids, on_progress)
    held_out = embed_slides(model, validation, gene_ids, on_progress) if validation.slide_ids else None

    _write_slides(target, snapshot, sides)
    _write_genes(target, snapshot, gene_ids)
    _write_rows(target, reference)
    predict = calibrate(reference, held_out) | {"side": "validation" if held_out else "train"}
    if held_out and (mark := mark_of("validation", snapshot.slides(), sides)):
        predict |= {"mark": mark}
    (target / "calibration.json").write_text(json.dumps({"predict": predict}, indent=1), encoding="utf-8")
    if held_out is None:
        return {}
    return {"validation": _figures(reference, held_out, predict)}


def embed_slides(model: Model, pairs: Selection, gene_ids: np.ndarray, on_progress: Any = None) -> Embedded:
    """The vectors of picture and genes (see `models.base.compared`) and the normalised expression of some pairs, a
    batch of rows at a time."""
    import torch

    from histolake.training.inputs import Profile, Sentence
    from histolake.training.models.base import compared, present_vectors
    from histolake.training.reading import PairReader, ReadOptions

    encoder = model.encoder
    names = compared(encoder.vector_needs)
    options = ReadOptions(shuffled=False, global_batch=model.batch)
    tokenizers = {each.key: model.tokenizer for each in encoder.inputs if isinstance(each, Sentence)}
    reader = PairReader(pairs, encoder.inputs, options, tokenizers=tokenizers)
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    with torch.inference_mode():
        for batch in reader.batches(0, reader.order.steps_per_epoch):
            here = batch.to(model.device)
            vectors, has = encoder(here.tensors), present_vectors(encoder.vector_needs, here.present)
            for name, parts in zip(names, found, strict=True):
                rows_BD = vectors[name].float()
                parts.append((rows_BD * has[name][:, None] if name in has else rows_BD).cpu().numpy())
            if on_progress is not None:
                on_progress(len(batch.pair_ids))
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for some in pairs.pairs(list(COLUMNS)):
        for name in COLUMNS:
            rows[name] += some[name].to_pylist()
    expression_NG = np.zeros((len(rows["pair_id"]), len(gene_ids)), dtype=np.float32)
    if len(gene_ids):
        measured = PairReader(pairs, (Profile(of="spot", gene_ids=tuple(gene_ids.tolist())),), options)
        done = 0
        for batch in measured.batches(0, measured.order.steps_per_epoch):
            expression_NG[done : done + len(batch.pair_ids)] = batch.tensors["profile"].numpy()
            done += len(batch.pair_ids)
    image_ND, text_ND = (np.concatenate(parts) for parts in found)
    return Embedded(rows=rows, image_ND=image_ND, text_ND=text_ND, expression_NG=expression_NG)


def calibrate(reference: Embedded, held_out: Embedded | None) -> dict[str, Any]:
    """Which number of neighbours and which temperature predict best: mean Pearson per gene, averaged over slides.

    Without held-out slides, each training slide is predicted from the others (from itself, where it is the only one).
    """
    best: dict[str, Any] = {"top_k": TOP_K[0], "temperature": TEMPERATURES[0]}
    best_figure = -np.inf
    rows = len(reference.image_ND)
    for top_k in sorted({min(k, rows) for k in TOP_K} | {rows}):
        for temperature in TEMPERATURES:
            figure = _mean_pearson(reference, held_out, top_k, temperature)
            if np.isfinite(figure) and figure > best_figure + 1e-6:
                best_figure, best = figure, {"top_k": top_k, "temperature": temperature}
    return best


def _mean_pearson(reference: Embedded, held_out: Embedded | None, top_k: int, temperature: float) -> float:
    asked = held_out or reference
    figures = []
    for slide in np.unique(asked.slide_ids):
        own_Q = asked.slide_ids == slide
        use_N = np.ones(len(reference.image_ND), dtype=bool) if held_out else ~own_Q
        if not use_N.any():
            use_N = own_Q
        predicted_QG = predict_expression(
            asked.image_ND[own_Q], reference.text_ND[use_N], reference.expression_NG[use_N], top_k, temperature
        )
        r_G = pearson_per_gene(predicted_QG, asked.expression_NG[own_Q])
        if np.isfinite(r_G).any():
            figures.append(np.nanmean(r_G))
    return float(np.mean(figures)) if figures else float("nan")


def predict_expression(
    image_QD: np.ndarray, text_ND: np.ndarray, expression_NG: np.ndarray, top_k: int, temperature: float
) -> np.ndarray:
    """Loki's PredEx with a softmax: the expression of the `top_k` reference pairs whose sentence is nearest to a
    picture, weighted by exp(cosine / temperature). (The paper weights by the raw cosine, which can be negative.)"""
    similarity_QN = image_QD @ text_ND.T
    top_k = min(top_k, similarity_QN.shape[1])
    floor_Q1 = np.partition(similarity_QN, -top_k, axis=1)[:, -top_k][:, None]
    weight_QN = np.exp((similarity_QN - similarity_QN.max(axis=1, keepdims=True)) / temperature)
    weight_QN = np.where(similarity_QN >= floor_Q1, weight_QN, 0.0)
    return (weight_QN @ expression_NG) / weight_QN.sum(axis=1, keepdims=True)


def _figures(reference: Embedded, held_out: Embedded, predict: Mapping[str, Any]) -> SideFigures:
    at_5, at_10 = [], []
    for slide in np.unique(held_out.slide_ids):
        own = held_out.slide_ids == slide
        scores_QC = held_out.image_ND[own] @ held_out.text_ND[own].T
        at_5.append(recall_at(scores_QC, 0.05))
        at_10.append(recall_at(scores_QC, 0.10))
    return SideFigures(
        recall_at_5pct=float(np.mean(at_5)),
        recall_at_10pct=float(np.mean(at_10)),
        pcc_mean=_mean_pearson(reference, held_out, int(predict["top_k"]), float(predict["temperature"])),
    )


def _write_slides(target: Path, snapshot: Any, sides: Mapping[str, str]) -> None:
    known = {row["slide_id"]: row for row in snapshot.slides().select(["slide_id", "study", "patient"]).to_pylist()}
    rows = [known[slide_id] | {"side": side} for slide_id, side in sorted(sides.items())]
    (target / "slides.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _write_genes(target: Path, snapshot: Any, gene_ids: np.ndarray) -> None:
    genes = snapshot.lake.genes().select(["gene_id", "symbol"]).to_pydict()
    symbol_of = dict(zip(genes["gene_id"], genes["symbol"], strict=True))
    chosen = {"gene_ids": gene_ids.tolist(), "symbols": [symbol_of.get(int(gene)) for gene in gene_ids]}
    (target / "genes.json").write_text(json.dumps(chosen), encoding="utf-8")


def _write_rows(target: Path, reference: Embedded) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def matrix(array: np.ndarray) -> pa.Array:
        flat = pa.array(np.ascontiguousarray(array, dtype=np.float32).ravel())
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])

    strings = {name: pa.array(reference.rows[name], pa.string()) for name in ("slide_id", "barcode", "sentence")}
    places = {name: pa.array(reference.rows[name], pa.float32()) for name in ("x_px", "y_px", "x_um", "y_um")}
    columns = {
        "pair_id": pa.array(reference.rows["pair_id"], pa.binary(16)),
        "slide_id": strings["slide_id"],
        "barcode": strings["barcode"],
        **places,
        "sentence": strings["sentence"],
        "image_vector": matrix(reference.image_ND),
        "text_vector": matrix(reference.text_ND),
        "expression": matrix(reference.expression_NG),
    }
    pq.write_table(pa.table(columns), target / "reference.parquet", compression="zstd")
