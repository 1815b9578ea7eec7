"""The pairs of a slide as arrays, read from a snapshot of the lake.

Expression is log1p of counts per 10^4 over all genes of the spot, as in a model's reference. Axes: N spots, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from histolake.platform.errors import ModelError
from histolake.platform.lake import Snapshot

__all__ = ["Profiles", "Section", "read_section", "variable_genes"]

COUNTS_PER = 1e4
IMAGE_COLUMNS = ("spot_image", "niche_image")


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Sparse expression of N spots in compressed rows: spot i has `gene_ids[ends[i-1]:ends[i]]`."""

    offsets: np.ndarray  # int64, (N + 1,)
    gene_ids: np.ndarray  # int32, sorted within a spot
    values: np.ndarray  # float32, log1p of counts per 10^4

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def dense(self, gene_ids_G: np.ndarray) -> np.ndarray:
        """Expression float32 (N, G) of the named genes, 0 where nothing was counted."""
        order = np.argsort(gene_ids_G)
        place = np.searchsorted(gene_ids_G, self.gene_ids, sorter=order).clip(max=len(gene_ids_G) - 1)
        column = order[place]
        known = gene_ids_G[column] == self.gene_ids
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        dense_NG = np.zeros((len(self), len(gene_ids_G)), dtype=np.float32)
        dense_NG[rows[known], column[known]] = self.values[known]
        return dense_NG


@dataclass(frozen=True, kw_only=True)
class Section:
    """One slide's pairs, in stored order."""

    slide_id: str
    images: dict[str, list[bytes]]  # column -> JPEG bytes
    sentences: list[str]
    profiles: Profiles

    def __len__(self) -> int:
        return len(self.sentences)


def read_section(snapshot: Snapshot, slide_id: str, *, most: int | None = None, seed: int = 0) -> Section:
    """Read a slide; `most` takes at most that many pairs, drawn with `seed` and kept in order.

    Raises `ModelError` for a slide whose pairs have no pictures, which cannot be asked about.
    """
    total = sum(chunk.rows for chunk in snapshot.chunks([slide_id]))
    chosen = np.arange(total)
    if most is not None and most < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, size=most, replace=False))
    images: dict[str, list[bytes]] = {column: [] for column in IMAGE_COLUMNS}
    sentences: list[str] = []
    parts: list[Profiles] = []
    for batch in _batches(snapshot, slide_id, chosen):
        for column in IMAGE_COLUMNS:
            images[column] += batch[column].to_pylist()
        sentences += batch["sentence"].to_pylist()
        parts.append(_profiles(batch))
    lacking = sum(image is None for image in images["spot_image"])
    if lacking:
        raise ModelError(f"{lacking} pairs of {slide_id} have no picture; evaluate on slides with an image.")
    return Section(slide_id=slide_id, images=images, sentences=sentences, profiles=_join(parts))


def _batches(snapshot: Snapshot, slide_id: str, chosen: np.ndarray) -> Iterator[pa.Table]:
    columns = [*IMAGE_COLUMNS, "sentence", "gene_ids", "counts"]
    start = 0
    for chunk in snapshot.chunks([slide_id]):
        here = chosen[(chosen >= start) & (chosen < start + chunk.rows)] - start
        if len(here):
            yield snapshot.read(chunk, columns, rows=here)
        start += chunk.rows


def _profiles(table: pa.Table) -> Profiles:
    ids = table["gene_ids"].combine_chunks()
    counts = table["counts"].combine_chunks()
    lengths = np.asarray(ids.value_lengths(), dtype=np.int64)
    values = np.asarray(counts.flatten(), dtype=np.float64)
    spot = np.repeat(np.arange(len(lengths)), lengths)
    total = np.bincount(spot, weights=values, minlength=len(lengths))
    return Profiles(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        gene_ids=np.asarray(ids.flatten(), dtype=np.int32),
        values=np.log1p(values / np.maximum(total, 1e-12)[spot] * COUNTS_PER).astype(np.float32),
    )


def _join(parts: Sequence[Profiles]) -> Profiles:
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(part.offsets) for part in parts)])
    return Profiles(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        gene_ids=np.concatenate([np.zeros(0, dtype=np.int32), *(part.gene_ids for part in parts)]),
        values=np.concatenate([np.zeros(0, dtype=np.float32), *(part.values for part in parts)]),
    )


def variable_genes(sections: Sequence[Section], count: int, *, min_share: float = 0.1) -> np.ndarray:
    """Ids of the `count` genes of highest variance among those seen in at least `min_share` of the spots."""
    profiles = _join([section.profiles for section in sections])
    n = max(1, len(profiles))
    highest = int(profiles.gene_ids.max(initial=-1)) + 1
    seen = np.bincount(profiles.gene_ids, minlength=highest)
    first = np.bincount(profiles.gene_ids, weights=profiles.values, minlength=highest) / n
    second = np.bincount(profiles.gene_ids, weights=profiles.values.astype(np.float64) ** 2, minlength=highest) / n
    variance = np.where(seen >= min_share * n, second - first**2, -1.0)
    best = np.lexsort((np.arange(highest), -variance))[:count]
    return np.sort(best[variance[best] > 0]).astype(np.int32)
