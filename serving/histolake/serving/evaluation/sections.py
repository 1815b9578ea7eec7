"""The pairs of a slide as arrays, read from a snapshot of the lake.

Axes: N spots, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from histolake.platform.errors import ModelError
from histolake.platform.lake import Snapshot
from histolake.platform.splits import Selection
from histolake.training.expression import GeneChooser, normalised

__all__ = ["Section", "read_section", "variable_genes"]

IMAGE_COLUMNS = ("spot_image", "niche_image")


@dataclass(frozen=True, kw_only=True)
class Section:
    """One slide's pairs, or those of one side of it, in stored order."""

    slide_id: str
    part: str  # the side of which the pairs are; empty: they are those of the slide
    images: dict[str, list[bytes]]  # column -> JPEG bytes
    sentences: list[str]
    gene_ids: list[np.ndarray]  # of each spot, sorted
    counts: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.sentences)

    def expression(self, gene_ids_G: np.ndarray) -> np.ndarray:
        """log1p of counts per 10^4 over all genes, float32 (N, G), of the named genes."""
        return normalised(self.gene_ids, self.counts, gene_ids_G)


def read_section(
    pairs: Snapshot | Selection, slide_id: str, *, part: str = "", most: int | None = None, seed: int = 0
) -> Section:
    """Read a slide, of a selection the pairs that it selects (and `part` is what they are called); `most` takes at most
    that many pairs, drawn with `seed` and kept in order.

    Raises `ModelError` for a slide whose pairs have no pictures, which cannot be asked about.
    """
    selection = pairs if isinstance(pairs, Selection) else Selection(pairs, [slide_id])
    total = sum(run.rows for run in selection.parts([slide_id]))
    chosen = np.arange(total)
    if most is not None and most < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False))
    images: dict[str, list[bytes]] = {column: [] for column in IMAGE_COLUMNS}
    sentences: list[str] = []
    gene_ids: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for table in _tables(selection, slide_id, chosen):
        for column in IMAGE_COLUMNS:
            images[column] += table[column].to_pylist()
        sentences += table["sentence"].to_pylist()
        gene_ids += _lists(table["gene_ids"])
        counts += _lists(table["counts"])
    for column, found in images.items():
        lacking = sum(not image for image in found)
        if lacking:
            raise ModelError(f"{lacking} pairs of {slide_id} have no {column}; evaluate on slides with pictures.")
    return Section(slide_id=slide_id, part=part, images=images, sentences=sentences, gene_ids=gene_ids, counts=counts)


def _tables(selection: Selection, slide_id: str, chosen: np.ndarray) -> Iterator[pa.Table]:
    columns = [*IMAGE_COLUMNS, "sentence", "gene_ids", "counts"]
    start = 0
    for run in selection.parts([slide_id]):
        here = chosen[(chosen >= start) & (chosen < start + run.rows)] - start
        if len(here):
            yield selection.snapshot.read(run.chunk, columns, rows=run.picked()[here])
        start += run.rows


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """Each row of a list column as an array."""
    rows = column.combine_chunks()
    ends = np.cumsum(np.asarray(rows.value_lengths()))
    return np.split(np.asarray(rows.flatten()), ends[:-1])


def variable_genes(sections: Sequence[Section], count: int) -> np.ndarray:
    """Ids of the `count` most variable of the well expressed genes of these sections."""
    chooser = GeneChooser()
    for section in sections:
        if not section.gene_ids:
            continue
        sizes = np.array([len(ids) for ids in section.gene_ids])
        chooser.add(np.concatenate(section.gene_ids), np.concatenate(section.counts), sizes)
    return chooser.choose(count)
