"""A judged slide on its way from the worker that read it to those that write it.

It goes through Ray's object store, which workers on one machine map without a copy. There it should be small: counts
that are whole take one or two bytes each in place of four, and the numbers of their genes two in place of four or
eight. It stays small where it is written, too: only the spots at hand are unpacked. What comes out is equal in every
value to what went in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from histolake.ingestion.slide import Slide

__all__ = ["PackedSlide", "pack"]

_OTHERS_A_SPOT = 256  # bytes of a spot besides its counts: barcode and positions


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedSlide:
    """A slide whose counts are held in the narrowest types that hold them exactly."""

    slide: Slide  # without its counts
    values: np.ndarray  # (nnz,) uint8, uint16 or float32
    genes: np.ndarray  # (nnz,) uint16 or int32
    indptr: np.ndarray  # (N + 1,) int64
    n_genes: int

    @classmethod
    def of(cls, slide: Slide) -> PackedSlide:
        """The slide packed."""
        counts = slide.counts
        return cls(
            slide=replace(slide, counts=None, refused=()),
            values=_narrowest(counts.data),
            genes=counts.indices.astype(np.uint16 if counts.shape[1] <= 1 << 16 else np.int32),
            indptr=counts.indptr.astype(np.int64),
            n_genes=counts.shape[1],
        )

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        return self.values.nbytes + self.genes.nbytes + self.indptr.nbytes + len(self.slide) * _OTHERS_A_SPOT

    def counts(self, spots: np.ndarray) -> Any:
        """The counts of some spots, sparse (len(spots), G) float32, in memory of their own."""
        from scipy.sparse import csr_array

        starts, sizes = self.indptr[spots], self.indptr[spots + 1] - self.indptr[spots]
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        at = np.repeat(starts - indptr[:-1], sizes) + np.arange(indptr[-1])
        entries = self.values[at].astype(np.float32), self.genes[at].astype(np.int32), indptr
        return csr_array(entries, shape=(len(spots), self.n_genes))


def pack(slide: Slide, room_bytes: int) -> PackedSlide | None:
    """The slide packed; None where it does not fit into the room."""
    wide = 4 if slide.counts.shape[1] > 1 << 16 else 2
    most_bytes = int(slide.counts.nnz) * (4 + wide) + len(slide) * _OTHERS_A_SPOT
    if most_bytes > 2 * room_bytes:  # packing more than halves nothing
        return None
    packed = PackedSlide.of(slide)
    return packed if packed.nbytes <= room_bytes else None


def _narrowest(values: np.ndarray) -> np.ndarray:
    """The same values as uint8 or uint16 where they are whole and fit, else as they are."""
    highest = float(values.max(initial=0))
    if highest >= 1 << 16 or float(values.min(initial=0)) < 0:
        return values
    narrow = values.astype(np.uint8 if highest < 1 << 8 else np.uint16)
    return narrow if np.array_equal(narrow, values) else values
