"""Duplicates by content: the same spot twice in a section, and the same section under two names.

Cohorts are gathered from other gatherings, so one section arrives as a laboratory's folder, as an h5ad and as an entry
of a catalogue, under three names and with other normalisations. What survives all of that is the order of a spot's
strongest genes. A spot's profile hash is the hash of its `PROFILE_GENES` best symbols in order; a section's sketch is
its `SKETCH` smallest profile hashes (a bottom-k sketch, Broder 1997). Spots are the same in two sections when their
hashes are; which share of one section's spots the other holds is estimated from the sketches alone:

    tau = the smaller of the two sketches' largest hashes (infinite for one that holds all of its section's hashes)
    containment of A in B = the share of A's hashes up to tau that are among B's

Up to tau both sketches are complete, so that hashing has drawn m of A's spots at random and each is known to be in B
or not: the estimate has a standard error of sqrt(c (1 - c) / m). m is 64 for sections of one size (an error of 0.06 at
a half, none at nothing and at all) and falls with the ratio of their sizes; below `FEW` nothing is refused.

Pictures are compared by the Hamming distance of their perceptual hashes. A near picture alone refuses nothing: it makes
a look-alike, as a partial overlap does.

Axes: N spots, G genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.ingestion.sentences import GeneSentences, SentenceSettings

__all__ = [
    "DuplicateSettings",
    "KnownSlides",
    "Verdict",
    "containment",
    "expressed_genes",
    "first_of_each",
    "profile_sketch",
]

PROFILE_GENES = 20  # symbols in a spot's profile hash
SKETCH = 64  # hashes in a section's sketch
TOGETHER = 1024  # spots whose profiles are put into words together
UNSORTED = 64  # slides that are looked through one by one before they are sorted in with the others
FEW = 16  # hashes below tau that an estimate needs before it may refuse a section
_ALL_GENES = SentenceSettings(length=PROFILE_GENES, exclude="", housekeeping="")


@dataclass(frozen=True, kw_only=True)
class DuplicateSettings:
    """When content is called the same."""

    slides: str = "refuse"  # a section whose spots a live slide holds: refuse it, or flag it look_alike
    max_shared: float = 0.9  # fraction of a section's spots that a live slide may hold before it is a duplicate
    min_shared: float = 0.1  # fraction of either's spots in the other from which two are look-alikes
    image_bits: int = 24  # bits of 256 by which the hashes of two look-alike pictures differ at most
    spot_genes: int = 50  # expressed genes below which two equal profiles in a section are no duplicates

    def __post_init__(self) -> None:
        if self.slides not in ("refuse", "flag"):
            raise ValueError(f'slides is {self.slides!r}; it is "refuse" or "flag"')
        if not 0 < self.min_shared <= self.max_shared <= 1:
            raise ValueError(
                f"min_shared {self.min_shared} and max_shared {self.max_shared}; they are above 0, at most 1, and rise"
            )


def first_of_each(counts_NG: Any) -> np.ndarray:
    """For each row of a sparse matrix the first row that is equal to it, int64 (N,); its own number where none is.

    Only rows that agree in how many genes they have and in a weighted sum of their values are looked at closer: in a
    section without duplicates these are few.
    """
    matrix = counts_NG
    if not matrix.has_sorted_indices or not matrix.data.all():
        matrix = counts_NG.copy()
        matrix.eliminate_zeros()
        matrix.sort_indices()
    found = np.arange(matrix.shape[0], dtype=np.int64)
    _, group, size = np.unique(_summaries(matrix), axis=0, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(size[group.ravel()] > 1)
    if not len(alike):
        return found
    rows = matrix[alike]
    _, first, group = np.unique(_row_hashes(rows), return_index=True, return_inverse=True)
    for i in np.flatnonzero(first[group] != np.arange(len(alike))):  # equal hashes are checked by the rows
        j = first[group[i]]
        a, b = (slice(rows.indptr[r], rows.indptr[r + 1]) for r in (i, j))
        if np.array_equal(rows.indices[a], rows.indices[b]) and np.array_equal(rows.data[a], rows.data[b]):
            found[alike[i]] = alike[j]
    return found


def _summaries(matrix: Any) -> np.ndarray:
    """Two numbers a row, float32 (N, 2), that are equal for equal rows: how many genes, and a sum of values in which
    each gene has a weight of its own. It is taken gene by gene, so equal rows round alike."""
    weights_G = np.random.default_rng(0).uniform(0.5, 1.5, matrix.shape[1]).astype(np.float32)
    values = matrix.astype(np.float32, copy=False)
    return np.stack([np.diff(matrix.indptr).astype(np.float32), values @ weights_G], axis=1)


def _row_hashes(matrix: Any) -> np.ndarray:
    """One uint64 a row over its genes and values: a sum of mixed entries, which wraps around."""
    bits = matrix.data.astype(np.float32).view(np.uint32).astype(np.uint64)
    mixed = _mixed(bits | (matrix.indices.astype(np.uint64) << np.uint64(32)))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(mixed, dtype=np.uint64)])
    return sums[matrix.indptr[1:]] - sums[matrix.indptr[:-1]]


def expressed_genes(counts_NG: Any) -> np.ndarray:
    """How many genes of each row of a sparse matrix have a value above 0, int64 (N,)."""
    positive = counts_NG.data > 0
    if positive.all():
        return np.diff(counts_NG.indptr).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(positive)])
    return np.diff(before[counts_NG.indptr])


def _mixed(keys: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: neighbouring numbers become unrelated ones."""
    with np.errstate(over="ignore"):
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def profile_sketch(counts_NG: Any, symbols: Sequence[str]) -> list[int]:
    """The `SKETCH` smallest distinct profile hashes of the rows, rising, as int64. Rows with fewer than `PROFILE_GENES`
    expressed genes tell nothing and are passed over, so the list may be shorter or empty."""
    from pandas.util import hash_array

    tell = GeneSentences([symbol.upper() for symbol in symbols], _ALL_GENES)
    sketch = np.zeros(0, dtype=np.int64)
    for start in range(0, counts_NG.shape[0], TOGETHER):  # a spot's profile in words takes more room than its counts
        rows = counts_NG[start : start + TOGETHER]
        rich = expressed_genes(rows) >= PROFILE_GENES
        if not rich.any():
            continue
        profiles = tell(rows if rich.all() else rows[np.flatnonzero(rich)])
        hashes = hash_array(np.array(profiles, dtype=object), categorize=False).view(np.int64)
        sketch = np.unique(np.concatenate([sketch, hashes]))[:SKETCH]
    return sketch.tolist()


def containment(sketch: Sequence[int] | np.ndarray, other: Sequence[int] | np.ndarray) -> tuple[float, int]:
    """Which share of the spots behind one sketch the other's section holds, and on how many hashes the estimate
    stands. (0.0, 0) where nothing can be said."""
    mine, theirs = (np.sort(np.asarray(hashes, dtype=np.int64)) for hashes in (sketch, other))
    if not len(mine) or not len(theirs):
        return 0.0, 0
    ends = [hashes[-1] for hashes in (mine, theirs) if len(hashes) >= SKETCH]
    seen = mine[mine <= min(ends)] if ends else mine
    return (float(np.isin(seen, theirs).mean()), len(seen)) if len(seen) else (0.0, 0)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which slides a section's content is known from."""

    alike: list[str]  # slide_ids of slides that share spots or a picture, sorted
    same: str | None  # the slide that it repeats, where it is to be refused for it
    shared: float  # the fraction of its spots that this slide holds


class KnownSlides:
    """The content of the lake's live slides, and of those of this run, to be asked about one section at a time.

    Built once from the catalogue's rows; asking costs a search in one sorted array of hashes and one pass over the
    picture hashes, and reads nothing. A slide costs about a kilobyte, in arrays.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        """`rows` have slide_id, profile_sketch and image_hash (the last two may be None or absent)."""
        self._ids: list[str] = []
        self._number: dict[str, int] = {}  # of the slide that a name stands for now
        self._sketches: list[np.ndarray] = []
        self._pictures: list[str] = []
        self._gone: set[int] = set()
        for row in rows:
            self._note(row["slide_id"], row.get("profile_sketch"), row.get("image_hash"))
        self._bits, self._lengths = _bits(self._pictures), _lengths(self._pictures)
        self._hashes, self._owner, self._sorted = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), 0
        self._sort()

    @classmethod
    def of_table(cls, rows: pa.Table) -> KnownSlides:
        """Of a table with these columns; the sketches of thousands of slides never become numbers of Python's."""
        sketches = rows["profile_sketch"].combine_chunks()
        lengths = pc.fill_null(pc.list_value_length(sketches), 0).to_numpy(zero_copy_only=False)
        each = np.split(sketches.flatten().to_numpy(zero_copy_only=False).astype(np.int64), np.cumsum(lengths)[:-1])[
            : len(lengths)
        ]
        named = zip(rows["slide_id"].to_pylist(), each, rows["image_hash"].to_pylist(), strict=True)
        return cls({"slide_id": name, "profile_sketch": s, "image_hash": h} for name, s, h in named)

    def _sort(self) -> None:
        """Take what came since into the sorted hashes."""
        fresh = self._sketches[self._sorted :]
        owner = np.repeat(np.arange(self._sorted, len(self._sketches)), [len(sketch) for sketch in fresh])
        hashes = np.concatenate([self._hashes, *fresh])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._owner = hashes[order], np.concatenate([self._owner, owner])[order]
        self._sorted = len(self._sketches)

    def has(self, slide_id: str) -> bool:
        """Whether a slide of this name is known, be its content replaced by now or not."""
        return slide_id in self._number

    def _note(self, slide_id: str, sketch: Sequence[int] | None, picture: str | None) -> None:
        if slide_id in self._number:
            self._gone.add(self._number[slide_id])
        self._number[slide_id] = len(self._ids)
        self._ids.append(slide_id)
        self._sketches.append(np.array([] if sketch is None else sketch, dtype=np.int64))
        self._pictures.append(picture or "")

    def forget(self, slide_ids: Iterable[str]) -> None:
        """Leave slides out of account from here on."""
        self._gone.update(self._number[slide_id] for slide_id in slide_ids if slide_id in self._number)

    def replace(self, slide_id: str, record: Mapping[str, Any]) -> None:
        """Put a section's content in the place of what was known under its name."""
        self._note(slide_id, record.get("profile_sketch"), record.get("image_hash"))
        if len(self._sketches) - self._sorted > UNSORTED:
            self._sort()

    def judge(self, slide_id: str, record: Mapping[str, Any], settings: DuplicateSettings) -> Verdict:
        """What is known of a section's content under other names."""
        sketch = np.array(record.get("profile_sketch") or [], dtype=np.int64)
        alike: set[str] = set()
        same, shared = None, 0.0
        for i in sorted(self._sharing(sketch), key=lambda i: self._ids[i]):
            if self._ids[i] == slide_id:
                continue
            inside, seen = containment(sketch, self._sketches[i])
            around, _ = containment(self._sketches[i], sketch)
            if seen >= FEW and inside >= settings.max_shared and inside > shared:
                same, shared = self._ids[i], inside
            if max(inside, around) >= settings.min_shared:
                alike.add(self._ids[i])
        near = self._near_pictures(record.get("image_hash") or "", settings.image_bits)
        alike |= {self._ids[i] for i in near} - {slide_id}
        refused = same is not None and settings.slides == "refuse"
        return Verdict(alike=sorted(alike), same=same if refused else None, shared=shared)

    def _sharing(self, sketch: np.ndarray) -> set[int]:
        """Numbers of the slides that hold any of these hashes."""
        left, right = (np.searchsorted(self._hashes, sketch, side=side) for side in ("left", "right"))
        found = {int(i) for a, b in zip(left, right, strict=True) for i in self._owner[a:b]}
        later = range(self._sorted, len(self._sketches))
        return (found | {i for i in later if np.isin(self._sketches[i], sketch).any()}) - self._gone

    def _near_pictures(self, picture: str, most_bits: int) -> set[int]:
        if not picture:
            return set()
        fresh = self._pictures[len(self._bits) :]
        self._bits = np.concatenate([self._bits, _bits(fresh)])
        self._lengths = np.concatenate([self._lengths, _lengths(fresh)])
        distance = np.bitwise_count(self._bits ^ _bits([picture])).sum(axis=1)
        near = (distance <= most_bits) & (self._lengths == len(picture))
        return set(np.flatnonzero(near).tolist()) - self._gone


def _bits(pictures: Sequence[str]) -> np.ndarray:
    """Hexadecimal hashes of up to 256 bits as uint64 (P, 4)."""
    packed = b"".join(int(picture or "0", 16).to_bytes(32, "big") for picture in pictures)
    return np.frombuffer(packed, dtype=np.uint64).reshape(len(pictures), 4)


def _lengths(pictures: Sequence[str]) -> np.ndarray:
    return np.fromiter((len(picture) for picture in pictures), dtype=np.int64, count=len(pictures))
