"""Batches from the WebDataset shards of an export, for training where there is no lake.

Which shards come when is drawn from (seed, epoch); they are dealt to the ranks, and a rank's to as many streams as it
has decoders. Each stream reads its shards one after the other through webdataset, with the next on its way, and
shuffles samples in a bounded buffer. The samples of a rank's streams take turns.

What is traded away: the rows of a step are known only when they come by, so there is no exact resume (see
`ShardReader.notice`), the order depends on the number of ranks and decoders, and a few pairs of each epoch are left
out, so that every rank has the same number of steps however unequal its shards are. Memory holds two shards a stream,
the buffers, undecoded, and `ahead` batches of pixels.

Axes: B pairs of a batch, S shards.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import UsageError
from histolake.platform.export import IMAGES
from histolake.platform.storage import Location
from histolake.training.inputs import Input, Picture, Sentence
from histolake.training.reading.augmentation import Augmentation, draw
from histolake.training.reading.batch import Batch
from histolake.training.reading.filling import Filling, Frame, Segment, Window
from histolake.training.reading.order import Slice
from histolake.training.reading.reader import ReadOptions
from histolake.training.reading.shard_files import Shard, ShardSet
from histolake.training.reading.windows import Rows

__all__ = ["ShardReader"]

_SHARD_LEVEL, _SAMPLE_LEVEL = 11, 12

Sample = dict[str, Any]


class ShardReader:
    """The pairs of an export as batches of a model's inputs. Make one in each worker; it is used by one thread.

    There is no exact resume. A reader that starts at the first step of an epoch gives what every such reader gives; one
    that starts in the middle of an epoch draws a new order of all shards for the rest of it. Of `ReadOptions`,
    `window_rows` is the size of the shuffle buffer; `chunk_rows` and `niche_include_self` mean nothing here.
    """

    def __init__(
        self,
        export: str | Location,
        inputs: Sequence[Input],
        options: ReadOptions,
        *,
        tokenizers: Mapping[str, Any] | None = None,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """`export` is a folder that `histolake export` wrote, or its URL; `tokenizers` by the key of the sentence that
        each is for. Raises `UsageError` where the shards don't hold what is asked for, `IntegrityError` where some of
        them are missing."""
        self._set = ShardSet(export)
        self.manifest = self._set.manifest
        self._columns = IMAGES[self.manifest.image]
        self._require(inputs, options, ranks)
        self._options = options
        self._augmentation = augmentation
        self._rank, self._ranks = rank, ranks
        self.slide_ids = sorted(self.manifest.slide_ids)
        self._number = {slide_id: n for n, slide_id in enumerate(self.slide_ids)}
        self._rows = options.global_batch // ranks  # of a batch
        self._frame = Frame(
            inputs=tuple(inputs),
            tokenizers=dict(tokenizers or {}),
            pinned=options.pinned,
        )

    @property
    def steps_per_epoch(self) -> int:
        """What the rank with the smallest shards has, in whichever epoch; the same on all ranks."""
        return self._surely(self._ranks) // self._rows

    @property
    def notice(self) -> str:
        """That there is no exact resume."""
        return (
            f"Batches come from shards of lake version {self.manifest.lake_version} ({self._set.uri}): a run that is "
            "resumed inside an epoch draws a new order for the rest of it, so some pairs come twice in that epoch and "
            "others not at all; read from the lake where a run must resume exactly."
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), prepared ahead by threads that end with the iterator."""
        options = self._options
        with (
            ThreadPoolExecutor(options.decoders, thread_name_prefix="fetch-pairs") as fetchers,
            ThreadPoolExecutor(1, thread_name_prefix="read-pairs") as reader,
            ThreadPoolExecutor(options.decoders, thread_name_prefix="decode-pairs") as decoders,
        ):
            coming: deque[Filling] = deque()
            read = self._fillings(start, stop, fetchers)
            try:
                following = reader.submit(next, read, None)
                while (filling := following.result()) is not None:
                    following = reader.submit(next, read, None)
                    coming.append(filling.begin(decoders))
                    if len(coming) > options.ahead:
                        yield coming.popleft().finish()
                while coming:
                    yield coming.popleft().finish()
            finally:
                for pool in (decoders, reader, fetchers):
                    pool.shutdown(wait=True, cancel_futures=True)

    def _fillings(self, start: int, stop: int, fetchers: ThreadPoolExecutor) -> Iterator[Filling]:
        """What is read for each step, undecoded."""
        rows, steps = self._rows, self.steps_per_epoch
        samples: Iterator[Sample] = iter(())
        for step in range(start, stop):
            epoch, batch = divmod(step, steps)
            if step == start or batch == 0:
                samples = self._samples(epoch, batch, fetchers)
            first = batch * self._options.global_batch + self._rank * rows
            yield self._filling(step, epoch, np.arange(first, first + rows), list(islice(samples, rows)))

    def _filling(self, step: int, epoch: int, positions_B: np.ndarray, samples: Sequence[Sample]) -> Filling:
        picture, sentence = self._columns
        table = pa.table(
            {
                "pair_id": pa.array([bytes.fromhex(sample["__key__"]) for sample in samples], pa.binary()),
                picture: pa.array([sample["jpg"] for sample in samples], pa.large_binary()),
                sentence: pa.array([sample["txt"].decode() for sample in samples], pa.large_string()),
            }
        )
        slides_B = np.array(
            [self._number[json.loads(sample["json"])["slide_id"]] for sample in samples], dtype=np.int64
        )
        places_B2 = np.zeros((len(samples), 2), dtype=np.int64)  # nothing asks a lake for these rows
        window = Window(Rows(epoch, positions_B, places_B2, table), slides_B, None, None, None)
        drawn = None
        if self._augmentation is not None:
            drawn = draw(self._augmentation, seed=self._options.seed, epoch=epoch, positions_B=positions_B)
        mine = Slice(step, epoch, positions_B, places_B2)
        return Filling(self._frame, mine, [Segment(window, 0, len(samples), 0)], drawn)

    def _samples(self, epoch: int, first: int, fetchers: ThreadPoolExecutor) -> Iterator[Sample]:
        """Samples of this rank in an epoch that is begun at its step `first`, stream by stream in turn."""
        from webdataset import shuffle

        drawn = [self._options.seed, epoch, first]
        order_S = np.random.default_rng([_SHARD_LEVEL, *drawn]).permutation(len(self._set.shards))
        mine = [self._set.shards[number] for number in order_S[self._rank :: self._ranks]]
        streams = min(self._options.decoders, len(mine))
        buffer = max(1, self._options.window_rows // streams)
        live: deque[Iterator[Sample]] = deque()
        for stream in range(streams):
            state = np.random.SeedSequence([_SAMPLE_LEVEL, *drawn, self._rank, stream]).generate_state(4).tobytes()
            mixed = shuffle(buffer, initial=buffer, rng=random.Random(state))
            live.append(iter(mixed(self._stream(mine[stream::streams], fetchers))))
        return _in_turn(live)

    def _stream(self, shards: Sequence[Shard], fetchers: ThreadPoolExecutor) -> Iterator[Sample]:
        """The samples of some shards; the first is on its way at once, each other while the one before is used."""
        coming = fetchers.submit(self._set.read, shards[0])

        def samples() -> Iterator[Sample]:
            nonlocal coming
            for number, shard in enumerate(shards):
                data = coming.result()
                if number + 1 < len(shards):
                    coming = fetchers.submit(self._set.read, shards[number + 1])
                yield from self._set.samples(shard, data)

        return samples()

    def _surely(self, ranks: int) -> int:
        """Pairs that a rank has at least, whichever shards it is dealt."""
        rows = sorted(shard.rows for shard in self._set.shards)
        return sum(rows[: len(rows) // ranks])

    def _require(self, inputs: Sequence[Input], options: ReadOptions, ranks: int) -> None:
        held = " and ".join(self._columns)
        foreign = [
            each.key for each in inputs if not isinstance(each, (Picture, Sentence)) or each.column not in self._columns
        ]
        foreign += ["neighbours"] if options.neighbours else []
        if foreign:
            raise UsageError(
                f"The shards of {self._set.uri} hold {held} and nothing else, and {', '.join(foreign)} is asked for; "
                "train from the lake, which holds all of a pair."
            )
        if not options.shuffled:
            raise UsageError(f"The shards of {self._set.uri} are read shuffled; read the lake for the lake's order.")
        if options.sampling != "pairs":
            raise UsageError(
                f"Shards are read pair by pair, and the sampling {options.sampling!r} is asked for; "
                "train from the lake, where slides can be chosen."
            )
        if options.global_batch % ranks:
            raise UsageError(f"A global batch of {options.global_batch} cannot be divided among {ranks} workers.")
        if len(self._set.shards) < ranks:
            raise UsageError(
                f"{self._set.uri} has {len(self._set.shards)} shards for {ranks} workers; "
                "export again with fewer pairs a shard."
            )
        if self._surely(ranks) * ranks < options.global_batch:
            raise UsageError(
                f"A global batch of {options.global_batch} is larger than the {self._surely(ranks) * ranks} pairs that "
                f"{ranks} workers surely have; set a smaller global_batch, or export again with fewer pairs a shard."
            )


def _in_turn(streams: deque[Iterator[Sample]]) -> Iterator[Sample]:
    """One sample of each stream after the other, until all have ended."""
    while streams:
        sample = next(streams[0], None)
        if sample is None:
            streams.popleft()
            continue
        yield sample
        streams.rotate(-1)
