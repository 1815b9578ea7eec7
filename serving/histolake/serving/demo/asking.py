"""The questions to the running server: held-out patches over HTTP, and nothing but patches and symbols.

Axes: S spots of a section, G genes, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.platform.lake import Snapshot
from histolake.serving.client import Client

__all__ = ["Answers", "Counter", "HeldOut", "ask_about", "ask_neighbours", "check_embedding", "read_held_out"]

IMAGES_A_REQUEST = 32
NEIGHBOURS = 5


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The pairs of one section, as the lake has them."""

    slide_id: str
    barcodes: list[str]
    images: list[bytes]
    sentences: list[str]
    xy_S2: np.ndarray
    gene_ids: list[np.ndarray]  # sparse profile a spot
    counts: list[np.ndarray]

    def measured(self, gene_ids_G: Sequence[int] | np.ndarray) -> np.ndarray:
        """log1p of counts per 10^4, float32 (S, G), of these genes."""
        from histolake.training.expression import normalised

        return normalised(self.gene_ids, self.counts, np.asarray(gene_ids_G))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the server said about every patch of a section."""

    genes: list[str]
    predicted_SG: np.ndarray
    classes: list[str]
    scores_SC: np.ndarray
    labels: list[str]


class Counter:
    """The client, with the number of requests that were answered."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        route = getattr(self.client, name)

        def ask(*args: Any, **kwargs: Any) -> Any:
            answer = route(*args, **kwargs)
            self.requests += 1
            return answer

        return ask


def read_held_out(snapshot: Snapshot, slide_id: str, image_column: str) -> HeldOut:
    """Read one section's pairs that have a picture."""
    columns = ["barcode", "x_px", "y_px", image_column, "sentence", "gene_ids", "counts"]
    rows: dict[str, list[Any]] = {name: [] for name in columns}
    for batch in snapshot.pairs(columns, slide_ids=[slide_id]):
        for row in batch.to_pylist():
            if row[image_column] is not None:
                for name in columns:
                    rows[name].append(row[name])
    return HeldOut(
        slide_id=slide_id,
        barcodes=rows["barcode"],
        images=rows[image_column],
        sentences=rows["sentence"],
        xy_S2=np.array([rows["x_px"], rows["y_px"]], dtype=float).T.reshape(-1, 2),
        gene_ids=[np.asarray(ids) for ids in rows["gene_ids"]],
        counts=[np.asarray(counts) for counts in rows["counts"]],
    )


def check_embedding(server: Counter, held_out: HeldOut) -> int:
    """Embed a few patches and sentences; the width of the vectors, which both towers must share."""
    image_ND = server.embed(images=held_out.images[:4])
    text_ND = server.embed(sentences=held_out.sentences[:4])
    assert image_ND.shape == text_ND.shape, "the towers of one model embed into one space"
    return int(image_ND.shape[1])


def ask_about(server: Counter, held_out: HeldOut, classes: Mapping[str, str], told: Any) -> Answers:
    """Predict and annotate every patch of a section. `told(done, of)` hears how far it is."""
    predicted, scores, labels = [], [], []
    genes: list[str] = []
    names: list[str] = []
    of = len(held_out.images)
    for start in range(0, of, IMAGES_A_REQUEST):
        images = held_out.images[start : start + IMAGES_A_REQUEST]
        answer = server.predict(images)
        judged = server.annotate(images, classes)
        genes, names = answer.genes, judged.classes
        predicted.append(answer.expression_NG)
        scores.append(judged.scores_NC)
        labels += judged.labels
        told(start + len(images), of)
    return Answers(
        genes=genes,
        predicted_SG=np.concatenate(predicted),
        classes=names,
        scores_SC=np.concatenate(scores),
        labels=labels,
    )


def ask_neighbours(server: Counter, images: Sequence[bytes]) -> list[list[dict[str, Any]]]:
    """For each patch the training spots whose profiles it is nearest to."""
    hits: list[list[dict[str, Any]]] = server.retrieve(images=list(images), k=NEIGHBOURS)
    return hits
