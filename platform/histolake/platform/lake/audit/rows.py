"""What the pairs themselves must be, whoever wrote them: the audit of one ingest, by columns.

`identity` reads the cheap columns of every pair, some 150 bytes a pair; `content` looks at rows with their images and
counts, some 50 KB a pair, either all of them or a fragment's first and last. No step holds more than a batch, but for
the ids of one slide (16 bytes a pair), and nothing loops over pairs in Python but the decoding of images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.platform.schemas import PAIR_ID_BYTES

__all__ = ["CONTENT", "Ids", "content", "identity", "niches"]

IDENTITY = ["pair_id", "ingest_id", "slide_id"]
CONTENT = ["spot_image", "niche_image", "gene_ids", "counts", "n_genes"]
IMAGES = ("spot_image", "niche_image")
JPEG_STARTS, JPEG_ENDS = b"\xff\xd8\xff", b"\xff\xd9"
BATCH_ROWS = 65_536  # of cheap columns
WIDE_ROWS = 256  # of images and counts


class Ids:
    """The pair_ids of one slide, sorted by their first eight bytes (they are hashes, which tell them apart)."""

    def __init__(self, ids_N2: np.ndarray) -> None:
        order = np.argsort(ids_N2[:, 0], kind="stable")
        self._first_N = ids_N2[order, 0]
        same = self._first_N[1:] == self._first_N[:-1]
        self.twice = int((same & (ids_N2[order[1:], 1] == ids_N2[order[:-1], 1])).sum())

    def lack(self, ids_M2: np.ndarray) -> int:
        """How many of these are not among them."""
        if len(self._first_N) == 0:
            return len(ids_M2)
        at = np.searchsorted(self._first_N, ids_M2[:, 0])
        found = self._first_N[np.minimum(at, len(self._first_N) - 1)] == ids_M2[:, 0]
        return int((~found).sum())


def identity(parts: Iterable[Any], ingest_id: str, slide_id: str) -> tuple[Ids, list[str]]:
    """The ids of an ingest's pairs, and what is wrong with who they say they are."""
    wrong: list[str] = []
    ids = [np.empty((0, 2), dtype=np.uint64)]
    for part in parts:
        others: Counter[str] = Counter()
        for batch in part.to_batches(columns=IDENTITY, batch_size=BATCH_ROWS):
            ids.append(_as_numbers(batch["pair_id"]))
            for column, own in (("ingest_id", ingest_id), ("slide_id", slide_id)):
                others[column] += batch.num_rows - (pc.sum(pc.equal(batch[column], own)).as_py() or 0)
        for column, what in (("ingest_id", "ingest"), ("slide_id", "slide")):
            if others[column]:
                wrong.append(f"fragment {part.fragment_id} holds {others[column]} pairs of another {what}")
    known = Ids(np.concatenate(ids))
    if known.twice:
        wrong.append(f"{known.twice} pairs are there twice")
    return known, wrong


def niches(parts: Iterable[Any], known: Ids) -> list[str]:
    """What is wrong with the neighbours of an ingest's pairs."""
    strangers = 0
    for part in parts:
        for batch in part.to_batches(columns=["niche"], batch_size=BATCH_ROWS):
            strangers += known.lack(_as_numbers(batch["niche"].flatten()))
    return [f"niches name {strangers} pairs that the slide does not have"] if strangers else []


def content(batches: Iterable[pa.RecordBatch], is_gene: np.ndarray, *, has_image: bool, decode: bool) -> list[str]:
    """What is wrong with images and counts. `is_gene` says of each number whether the lake knows it as a gene."""
    seen: Counter[str] = Counter()
    for batch in batches:
        told = [_images(batch[column], column, has_image=has_image, decode=decode) for column in IMAGES]
        for what, count in chain(*told, _genes(batch, is_gene)):
            seen[what] += count
    return [what.replace("#", str(count)) for what, count in sorted(seen.items()) if count]


def _images(images: pa.Array, column: str, *, has_image: bool, decode: bool) -> Iterator[tuple[str, int]]:
    present = images.drop_null()
    if has_image:
        yield f"# pairs have no {column}", images.null_count
    framed = pc.and_(pc.starts_with(present, JPEG_STARTS), pc.ends_with(present, JPEG_ENDS))
    whole = pc.sum(framed).as_py() or 0
    yield f"the {column} of # pairs is no JPEG", len(present) - whole
    if decode:
        yield f"the {column} of # pairs cannot be decoded", _broken(present.filter(framed))


def _broken(jpegs: pa.Array) -> int:
    import simplejpeg

    broken = 0
    for jpeg in jpegs:
        try:
            simplejpeg.decode_jpeg(jpeg.as_py())
        except ValueError:  # libjpeg says what; the count is what a curator needs
            broken += 1
    return broken


def _genes(batch: pa.RecordBatch, is_gene: np.ndarray) -> Iterator[tuple[str, int]]:
    genes, counts = batch["gene_ids"], batch["counts"]
    n_genes = pc.fill_null(pc.list_value_length(genes), 0)
    yield "# pairs have more or fewer counts than genes", _differ(n_genes, pc.list_value_length(counts))
    yield (
        "n_genes of # pairs is not the number of their genes",
        _differ(pc.cast(n_genes, pa.float32()), batch["n_genes"]),
    )
    flat = genes.flatten().to_numpy(zero_copy_only=False)
    inside = (flat >= 0) & (flat < len(is_gene))
    yield "# counts are of genes that the lake does not know", len(flat) - int(is_gene[flat[inside]].sum())
    ends = np.cumsum(n_genes.to_numpy(zero_copy_only=False))[:-1]
    falls = np.flatnonzero(np.diff(flat) <= 0) + 1
    yield "# genes are not in their order", int((~np.isin(falls, ends)).sum())


def _differ(left: pa.Array, right: pa.Array) -> int:
    """In how many rows two columns differ; where the right one is empty nothing is said."""
    return int(pc.sum(pc.not_equal(left, right)).as_py() or 0)


def _as_numbers(ids: pa.Array) -> np.ndarray:
    """Fixed binaries of 16 bytes as uint64 (N, 2)."""
    ids = ids.drop_null()
    width = PAIR_ID_BYTES // 8
    held = np.frombuffer(ids.buffers()[1] or b"", dtype=np.uint64)
    return held[ids.offset * width : (ids.offset + len(ids)) * width].reshape(-1, width)
