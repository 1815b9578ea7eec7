"""Measured profiles of a window's spots and niches, over the genes of a model.

Counts outweigh everything else of a pair. They are read a few hundred spots at a time, and only those of the model's
genes stay. A niche's profile is the mean of the counts of its spots (ST-Align eq. 2), the spot itself among them; its
other spots lie anywhere in the slide and are looked up by their pair_id.

Axes: P rows of a window, U spots that are needed for them, G genes of the model, K neighbours of a spot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import LakeError
from histolake.platform.lake import Chunk

__all__ = ["PER_SPOT", "ProfileReader", "Profiles", "neighbour_ids"]

PER_SPOT = 10_000.0  # counts to which a profile is scaled before the logarithm
READ_SPOTS = 512  # whose counts are in memory as the lake holds them
SLIDES_KNOWN = 256  # whose pair_ids are kept: 24 bytes a spot
ALL = 1 << 40


@dataclass(frozen=True)
class Profiles:
    """Counts of some spots over the genes of a model, and of which spots each row's profiles are made."""

    counts_UG: Any  # scipy's csr_array, float32
    total_U: np.ndarray  # float32, over all genes that were measured
    own_P: np.ndarray  # the row's own spot
    niche_PU: Any | None  # scipy's csr_array: shares of the spots in the row's niche

    def spots(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """log1p of counts per ten thousand of rows [first, stop), float32 (R, G), and whether there are any counts."""
        own = self.own_P[first:stop]
        return _normalised(self.counts_UG[own].toarray(), self.total_U[own])

    def niches(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of their niches."""
        assert self.niche_PU is not None, "read with niches"
        shares = self.niche_PU[first:stop]
        return _normalised((shares @ self.counts_UG).toarray(), shares @ self.total_U)


def _normalised(counts_RG: np.ndarray, total_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    has_R = total_R > 0
    scale_R = np.divide(PER_SPOT, total_R, out=np.zeros(len(total_R), dtype=np.float32), where=has_R)
    return np.log1p(counts_RG * scale_R[:, None]), has_R


class ProfileReader:
    """Reads profiles over the genes of a model, which it knows by their ids in the lake."""

    def __init__(self, snapshot: Any, gene_ids: Sequence[int], *, niches: bool, include_self: bool = True) -> None:
        self._snapshot = snapshot
        self._columns = np.full(max(gene_ids) + 1, -1, dtype=np.int32)  # gene of the lake -> of the model
        self._columns[np.asarray(gene_ids, dtype=np.int64)] = np.arange(len(gene_ids), dtype=np.int32)
        self._genes = len(gene_ids)
        self._niches = niches
        self._include_self = include_self
        self._slide = lru_cache(SLIDES_KNOWN)(self._read_slide)

    def read(self, chunks: Sequence[Chunk], places_P2: np.ndarray, niche: pa.ChunkedArray | None) -> Profiles:
        """Of rows that are named by chunk and row; `niche` are their lists of pair_ids."""
        ingest_P, row_P = self._rows(chunks, places_P2)
        named = sorted({chunks[number].ingest_id: chunks[number] for number in np.unique(places_P2[:, 0])}.items())
        number = {ingest_id: n for n, (ingest_id, _) in enumerate(named)}
        slide_P = np.array([number[ingest_id] for ingest_id in ingest_P], dtype=np.int64)
        spots = [np.stack([slide_P, row_P], axis=1)]
        of_row = np.zeros(0, dtype=np.int64)
        if self._niches:
            assert niche is not None, "niches are asked for"
            of_row, neighbours = self._neighbours([chunk for _, chunk in named], slide_P, niche)
            spots.append(neighbours)
        unique_U2, index = np.unique(np.concatenate(spots), axis=0, return_inverse=True)
        index = index.ravel()
        counts_UG, total_U = self._counts([chunk for _, chunk in named], unique_U2)
        own_P, others = index[: len(row_P)], index[len(row_P) :]
        shares = self._shares(own_P, of_row, others, len(unique_U2)) if self._niches else None
        return Profiles(counts_UG, total_U, own_P, shares)

    def _rows(self, chunks: Sequence[Chunk], places_P2: np.ndarray) -> tuple[list[str], np.ndarray]:
        starts = np.array([chunk.start for chunk in chunks], dtype=np.int64)
        return [chunks[n].ingest_id for n in places_P2[:, 0]], starts[places_P2[:, 0]] + places_P2[:, 1]

    def _neighbours(
        self, slides: Sequence[Chunk], slide_P: np.ndarray, niche: pa.ChunkedArray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Of all niches together: which row each neighbour belongs to, and its slide and row there."""
        lists = niche.combine_chunks()
        of_row = _list_rows(lists)
        ids = _halves(lists.flatten())
        slide_of = slide_P[of_row]
        rows = np.empty(len(ids), dtype=np.int64)
        for number in np.unique(slide_of):
            mine = slide_of == number
            rows[mine] = self._find(slides[number], ids[mine])
        return of_row, np.stack([slide_of, rows], axis=1)

    def _find(self, slide: Chunk, ids: np.ndarray) -> np.ndarray:
        """Rows of a slide by pair_id."""
        known, order = self._slide(slide.slide_id)
        at = np.minimum(np.searchsorted(known[:, 0], ids[:, 0]), len(known) - 1)
        if (known[at] != ids).any():
            raise LakeError(
                f"A niche of {slide.slide_id} names spots that the slide lacks; run `histolake lake check`."
            )
        return order[at]

    def _read_slide(self, slide_id: str) -> tuple[np.ndarray, np.ndarray]:
        (whole,) = self._snapshot.chunks([slide_id], rows=ALL)
        ids = _halves(self._snapshot.read(whole, ["pair_id"])["pair_id"].combine_chunks())
        order = np.argsort(ids[:, 0], kind="stable")
        return ids[order], order

    def _counts(self, slides: Sequence[Chunk], spots_U2: np.ndarray) -> tuple[Any, np.ndarray]:
        """Counts over the model's genes, and over all, of spots by slide and row."""
        from scipy.sparse import csr_array, vstack

        whole = [Chunk(slide.slide_id, slide.ingest_id, 0, ALL) for slide in slides]
        blocks, totals = [csr_array((0, self._genes), dtype=np.float32)], [np.zeros(0, dtype=np.float32)]
        for first in range(0, len(spots_U2), READ_SPOTS):
            some = spots_U2[first : first + READ_SPOTS]
            table = self._snapshot.take(whole, some, ["gene_ids", "counts"])
            genes = table["gene_ids"].combine_chunks()
            row, gene = _list_rows(genes), genes.flatten().to_numpy()
            count = table["counts"].combine_chunks().flatten().to_numpy().astype(np.float32, copy=False)
            totals.append(np.bincount(row, weights=count, minlength=len(some)).astype(np.float32))
            column = np.where(gene < len(self._columns), self._columns[np.minimum(gene, len(self._columns) - 1)], -1)
            used = column >= 0
            shape = (len(some), self._genes)
            blocks.append(csr_array((count[used], (row[used], column[used])), shape=shape))
        return vstack(blocks, format="csr"), np.concatenate(totals)

    def _shares(self, own_P: np.ndarray, of_row: np.ndarray, others: np.ndarray, spots: int) -> Any:
        from scipy.sparse import csr_array

        rows, columns = of_row, others
        if self._include_self:
            rows, columns = np.concatenate([np.arange(len(own_P)), rows]), np.concatenate([own_P, columns])
        size_P = np.bincount(rows, minlength=len(own_P))
        share = (1.0 / size_P[rows]).astype(np.float32)
        return csr_array((share, (rows, columns)), shape=(len(own_P), spots))


def neighbour_ids(niche: pa.ChunkedArray) -> np.ndarray:
    """The first eight bytes of each neighbour's pair_id, int64 (P, K); -1 where a spot has fewer than K."""
    lists = niche.combine_chunks()
    of_row = _list_rows(lists)
    sizes = np.bincount(of_row, minlength=len(lists))
    found = np.full((len(lists), int(sizes.max(initial=0))), -1, dtype=np.int64)
    found[of_row, np.arange(len(of_row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)] = _halves(lists.flatten())[:, 0]
    return found


def _halves(ids: pa.Array) -> np.ndarray:
    """pair_ids as two numbers each, int64 (N, 2)."""
    width = ids.type.byte_width
    data = np.frombuffer(ids.buffers()[1], dtype=np.uint8)[ids.offset * width : (ids.offset + len(ids)) * width]
    return data.view(np.int64).reshape(-1, 2)


def _list_rows(lists: pa.Array) -> np.ndarray:
    """Which row each value of a flattened list column is of, int64."""
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    return np.repeat(np.arange(len(lists)), lengths)
