"""Pairs of a pinned lake version, batch by batch, in a global order that does not depend on how many workers share it.

The order is `order.Order`'s; rank r of n takes its slice of each global batch, so (seed, epoch, step, global batch) is
all the state there is. One thread reads the rows of the next window while a pool of threads decodes those of this one,
straight into the batches to come (libjpeg-turbo and Arrow let go of Python's lock). Bytes wait undecoded: two windows
of them and `ahead` batches of pixels are all that is held.

Axes: B pairs of a batch, H height, W width, C channels, L tokens, G genes of a model, K neighbours of a spot.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.platform.errors import UsageError
from histolake.platform.splits import Selection
from histolake.training.inputs import Input, Picture, Profile, Sentence, Vector
from histolake.training.reading.augmentation import Augmentation, draw
from histolake.training.reading.batch import Batch
from histolake.training.reading.filling import Filling, Frame, Segment, Window
from histolake.training.reading.order import InOrder, Order, Slice
from histolake.training.reading.profiles import ProfileReader, neighbour_ids
from histolake.training.reading.sampling import groups_of
from histolake.training.reading.vectors import VectorReader
from histolake.training.reading.windows import Rows, Windows

__all__ = ["PairReader", "ReadOptions"]


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How pairs are read. What the model sees depends on the first three and on `chunk_rows` and `window_rows`."""

    seed: int = 0
    global_batch: int = 64  # pairs a step, over all workers
    sampling: str = "pairs"  # pairs: each once an epoch; slides, organs, technologies, studies: each alike often
    shuffled: bool = True  # False: the lake's order, each pair once, for one process that does not train
    chunk_rows: int = 256  # rows of a slide that stay together when the order is drawn
    window_rows: int = 4096  # rows that are shuffled among themselves
    decoders: int = 1  # threads that decode
    ahead: int = 2  # batches that are prepared while one is used
    neighbours: bool = False  # whether a batch tells the spots of each niche
    niche_include_self: bool = True  # whether a niche's profile counts the spot itself
    pinned: bool = False  # memory from which a GPU can copy by itself


class PairReader:
    """Some pairs of a snapshot as batches of a model's inputs. Make one in each worker; it is used by one thread."""

    def __init__(
        self,
        pairs: Selection,
        inputs: Sequence[Input],
        options: ReadOptions,
        *,
        tokenizers: Mapping[str, Any] | None = None,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`tokenizers` by the key of the sentence that each is for."""
        self._inputs = tuple(inputs)
        self._options = options
        self._tokenizers = dict(tokenizers or {})
        self._augmentation = augmentation
        self._rank, self._ranks = rank, ranks
        self._parts = pairs.parts(rows=options.chunk_rows)
        self.order = self._order(pairs.snapshot)
        self.slide_ids = sorted({part.chunk.slide_id for part in self._parts})  # the slides that batches number
        number = {slide_id: n for n, slide_id in enumerate(self.slide_ids)}
        self._slide_C = np.array([number[part.chunk.slide_id] for part in self._parts], dtype=np.int64)
        self._windows = Windows(pairs.snapshot, self._parts, self.order, self._columns(), rank=rank, ranks=ranks)
        self._frame = Frame(
            inputs=self._inputs,
            tokenizers=self._tokenizers,
            pinned=options.pinned,
        )
        self._profiles = self._profile_reader(pairs.snapshot)
        self._vectors = self._vector_reader(pairs.snapshot)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), prepared ahead by threads that end with the iterator."""
        with (
            ThreadPoolExecutor(1, thread_name_prefix="read-pairs") as reader,
            ThreadPoolExecutor(self._options.decoders, thread_name_prefix="decode-pairs") as decoders,
        ):
            coming: deque[Filling] = deque()
            try:
                for mine, segments in self._slices(start, stop, reader):
                    coming.append(self._filling(mine, segments).begin(decoders))
                    if len(coming) > self._options.ahead:
                        yield coming.popleft().finish()
                while coming:
                    yield coming.popleft().finish()
            finally:
                decoders.shutdown(wait=True, cancel_futures=True)
                reader.shutdown(wait=True, cancel_futures=True)

    def batch(self, step: int) -> Batch:
        """The batch of one step, by itself."""
        return next(self.batches(step, step + 1))

    def _filling(self, mine: Slice, segments: Sequence[Segment]) -> Filling:
        options = self._augmentation
        drawn = None
        if options is not None:
            drawn = draw(options, seed=self.order.seed, epoch=mine.epoch, positions_B=mine.positions_B)
        return Filling(self._frame, mine, segments, drawn)

    def _slices(self, start: int, stop: int, reader: ThreadPoolExecutor) -> Iterator[tuple[Slice, list[Segment]]]:
        """What each step reads, and where in the windows it lies. The next window is read meanwhile."""
        windows = self._windows.read(start, stop)
        coming = reader.submit(self._next_window, windows)
        held: deque[Window] = deque()
        for step in range(start, stop):
            mine = self.order.slice(step, self._rank, self._ranks)
            while held and not held[0].reaches(mine.epoch, int(mine.positions_B[0])):
                held.popleft()
            while not held or not held[-1].reaches(mine.epoch, int(mine.positions_B[-1])):
                window = coming.result()
                assert window is not None, "the windows of these steps hold all their rows"
                held.append(window)
                coming = reader.submit(self._next_window, windows)
            yield mine, [segment for window in held for segment in window.segments(mine)]

    def _next_window(self, windows: Iterator[Rows]) -> Window | None:
        rows = next(windows, None)
        if rows is None:
            return None
        niche = rows.table["niche"] if "niche" in rows.table.column_names else None
        profiles = vectors = None
        places_P2 = self._windows.in_chunks(rows.places_P2)
        if self._profiles is not None:
            profiles = self._profiles.read(self._windows.chunks, places_P2, niche)
        if self._vectors is not None:
            vectors = self._vectors.read(self._windows.chunks, places_P2, rows.table["pair_id"])
        return Window(
            rows=rows,
            slides_P=self._slide_C[rows.places_P2[:, 0]],
            profiles=profiles,
            vectors=vectors,
            neighbours_PK=neighbour_ids(niche) if self._options.neighbours and niche is not None else None,
        )

    def _order(self, snapshot: Any) -> Order | InOrder:
        options, rows = self._options, [part.rows for part in self._parts]
        sizes = {"global_batch": options.global_batch, "window_rows": options.window_rows}
        if not options.shuffled:
            return InOrder(rows, **sizes)
        groups = groups_of(snapshot, [part.chunk.slide_id for part in self._parts], options.sampling)
        return Order(rows, seed=options.seed, groups=groups, **sizes)

    def _columns(self) -> list[str]:
        """Of the lake, that are read with a window. Counts come by themselves (`profiles`)."""
        columns = {each.column for each in self._inputs if isinstance(each, (Picture, Sentence))}
        niches = any(isinstance(each, Profile) and each.of == "niche" for each in self._inputs)
        return sorted({"pair_id", *columns, *(["niche"] if niches or self._options.neighbours else [])})

    def _profile_reader(self, snapshot: Any) -> ProfileReader | None:
        wanted = [each for each in self._inputs if isinstance(each, Profile)]
        if not wanted:
            return None
        if len({each.gene_ids for each in wanted}) > 1:
            raise UsageError("Spots and niches must be read over the same genes; give both profiles one list.")
        return ProfileReader(
            snapshot,
            wanted[0].gene_ids,
            niches=any(each.of == "niche" for each in wanted),
            include_self=self._options.niche_include_self,
        )

    def _vector_reader(self, snapshot: Any) -> VectorReader | None:
        wanted = [each for each in self._inputs if isinstance(each, Vector)]
        return VectorReader(snapshot, wanted[0]) if wanted else None
