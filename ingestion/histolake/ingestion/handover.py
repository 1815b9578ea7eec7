"""A judged slide on its way from the worker that read it to those that write it.

It goes through Ray's object store, which workers on one machine map without a copy. There it should be small: counts
that are whole take one or two bytes each in place of four, and the numbers of their genes two in place of four or
eight. What comes out is equal in every value to what went in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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

    def unpacked(self) -> Slide:
        """The slide with its counts as float32, in memory of its own."""
        from scipy.sparse import csr_array

        values, genes = self.values.astype(np.float32), self.genes.astype(np.int32)
        shape = (len(self.indptr) - 1, self.n_genes)
        return replace(self.slide, counts=csr_array((values, genes, self.indptr.copy()), shape=shape))


def packed_bytes(slide: Slide) -> int:
    """How large a slide will be when it is packed, at most: told before it is."""
    wide = 4 if slide.counts.shape[1] > 1 << 16 else 2
    return int(slide.counts.nnz) * (4 + wide) + len(slide) * _OTHERS_A_SPOT


def pack(slide: Slide, room_bytes: int) -> tuple[PackedSlide | None, int]:
    """The slide packed, and its size in bytes; (None, 0) where it does not fit into the room."""
    counts = slide.counts
    if packed_bytes(slide) > 2 * room_bytes:  # packing more than halves nothing
        return None, 0
    values = _narrowest(counts.data)
    genes = counts.indices.astype(np.uint16 if counts.shape[1] <= 1 << 16 else np.int32)
    size = values.nbytes + genes.nbytes + counts.indptr.nbytes + len(slide) * _OTHERS_A_SPOT
    if size > room_bytes:
        return None, 0
    bare = replace(slide, counts=None, refused=())
    indptr = counts.indptr.astype(np.int64)
    return PackedSlide(slide=bare, values=values, genes=genes, indptr=indptr, n_genes=counts.shape[1]), size


def _narrowest(values: np.ndarray) -> np.ndarray:
    """The same values as uint8 or uint16 where they are whole and fit, else as they are."""
    highest = float(values.max(initial=0))
    if highest >= 1 << 16 or float(values.min(initial=0)) < 0:
        return values
    narrow = values.astype(np.uint8 if highest < 1 << 8 else np.uint16)
    return narrow if np.array_equal(narrow, values) else values
