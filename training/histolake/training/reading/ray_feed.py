"""The batches of a `PairReader`, decoded by a Ray Data pipeline on other CPUs than those of the training worker.

A step's batch is a function of (seed, epoch, step, rank), so any process can make it. Consecutive steps of a window go
together as a run: an actor asks the lake for the rows of its run at once, so none is read twice (spots of niche
profiles are, by each run that needs them), and gives the run's batches one by one, each a block of its own. Ray Data
keeps the order of runs and of the batches in them, so the training worker sees what a reader of its own would give it,
to the bit; a step can be started at, and an actor that dies is started again and makes its run once more (Ray leaves
out what had arrived).

Choices, and what they answer:

- Pixels are many times the bytes of a JPEG, and blocks that grow in a map overrun the object store (ray#34041). So the
  pipeline's input is numbers alone, a block holds one batch, and `resource_limits` caps what waits, for each training
  worker: without it each of their pipelines takes the store for its own.
- Order is kept by giving out the blocks of the earliest run first. Actors that are ahead keep theirs in the store: what
  waits is up to `run_steps` batches an actor. Long runs ask the lake less often, short ones hold less.
- One run an actor at a time. Ray starts tasks of an actor in any order; a later run before an earlier one would only
  fill the store.
- Not for a machine that has the CPUs: a reader there copies nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from histolake.platform.errors import HistolakeError, ModelError, UsageError
from histolake.platform.splits import Selection
from histolake.training.inputs import Input
from histolake.training.reading.augmentation import Augmentation
from histolake.training.reading.batch import Batch
from histolake.training.reading.order import InOrder, Order
from histolake.training.reading.packing import pack, unpack
from histolake.training.reading.reader import PairReader, ReadOptions
from histolake.training.tokenizers import Tokenizer

__all__ = ["FeedOptions", "RayFeed", "in_groups", "runs_of"]

ERROR = "error"  # a column that stands alone: what a reader raised
MOST_RUNS = 2000  # of one pipeline; each is an object in Ray's store before it begins
ROOM = 2  # runs an actor for which there is room in the store: the one being made, and the one being used

Run = tuple[int, int]  # steps [first, last)


@dataclass(frozen=True, kw_only=True)
class FeedOptions:
    """Who decodes for one training worker."""

    workers: int = 2  # actors
    cpus: float = 1.0  # CPU slots of Ray each takes; `ReadOptions.decoders` threads run in it
    run_steps: int = 8  # steps that an actor makes in one go, at most
    # Slots of what a machine must offer, an actor, such as {"decode": 1.0}: keeps actors off machines with GPUs.
    resources: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """A reader as it travels: the lake and the tokenizers are opened where it arrives."""

    pairs: Selection
    inputs: tuple[Input, ...]
    options: ReadOptions
    tokenizers: Mapping[str, Mapping[str, Any]]  # their cards
    augmentation: Augmentation | None
    rank: int
    ranks: int

    def reader(self) -> PairReader:
        from histolake.training.tokenizers import tokenizer_from_card

        return PairReader(
            self.pairs,
            self.inputs,
            self.options,
            tokenizers={key: tokenizer_from_card(card) for key, card in self.tokenizers.items()},
            augmentation=self.augmentation,
            rank=self.rank,
            ranks=self.ranks,
        )


class RayFeed:
    """The batches of a `PairReader`, made elsewhere. Make one in each training worker, where Ray is running."""

    notice: str | None = None  # any step can be started at

    def __init__(
        self,
        pairs: Selection,
        inputs: Sequence[Input],
        options: ReadOptions,
        feed: FeedOptions | None = None,
        *,
        tokenizers: Mapping[str, Tokenizer] | None = None,
        augmentation: Augmentation | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        """As `PairReader`. `options.decoders` and `options.ahead` are those of each actor, `options.pinned` is of here.

        Raises `UsageError` where no machine that Ray knows could hold an actor: batches would be waited for in vain.
        """
        self._feed = feed or FeedOptions()
        self._require_room()
        self._reading = _Reading(
            pairs=pairs,
            inputs=tuple(inputs),
            options=replace(options, pinned=False),
            tokenizers={key: tokenizer.card() for key, tokenizer in (tokenizers or {}).items()},
            augmentation=augmentation,
            rank=rank,
            ranks=ranks,
        )
        self._reader = self._reading.reader()  # says which pairs come when, from the catalogue; it decodes nothing
        self._bytes = max(
            1, sum(tensor.nbytes for tensor in self._reader.frame.empty(options.global_batch // ranks).values())
        )
        self._frame = replace(self._reader.frame, pinned=options.pinned)

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches in an epoch."""
        return self._reader.steps_per_epoch

    @property
    def slide_ids(self) -> list[str]:
        """The slides that batches number."""
        return self._reader.slide_ids

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of steps [start, stop), in order. The pipeline ends with the iterator."""
        runs = runs_of(self._reader.order, start, stop, most=self._feed.run_steps)
        for some in in_groups(runs, MOST_RUNS):
            with closing(self._rows(some)) as rows:
                for row in rows:
                    if ERROR in row.column_names:
                        raise pickle.loads(row[ERROR][0].as_py())
                    yield unpack(row, self._frame)

    def _rows(self, runs: Sequence[Run]) -> Generator[pa.Table, None, None]:
        """Packed batches of some runs."""
        import ray

        rows = iter(self._pipeline(runs).iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
        try:
            yield from rows
        except ray.exceptions.RayTaskError:
            raise  # a defect, told as it was raised
        except ray.exceptions.RayError as error:
            told = str(error).strip().splitlines()
            raise ModelError(f"The actors that decode are lost: {told[-1] if told else error!r}") from error
        finally:
            if hasattr(rows, "close"):
                rows.close()

    def _pipeline(self, runs: Sequence[Run]) -> Any:
        import ray
        from ray.data import ActorPoolStrategy, DataContext, ExecutionResources

        feed = self._feed
        context = DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.target_max_block_size = max(1, self._bytes // 2)  # a block is given out as soon as it holds a batch
        context.execution_options.preserve_order = True
        context.execution_options.resource_limits = ExecutionResources.for_limits(
            object_store_memory=ROOM * feed.workers * feed.run_steps * self._bytes
        )
        with DataContext.current(context):
            return ray.data.from_blocks(
                [pa.table({"start": [first], "stop": [last]}) for first, last in runs]
            ).map_batches(
                _Decoder,
                fn_constructor_args=(self._reading,),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(size=feed.workers, max_tasks_in_flight_per_actor=1),
                num_cpus=feed.cpus,
                resources=dict(feed.resources) or None,
            )

    def _require_room(self) -> None:
        import ray

        feed = self._feed
        for name, wanted in {"CPU": feed.cpus, **feed.resources}.items():
            most = max((node["Resources"].get(name, 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
            if most < wanted:
                raise UsageError(
                    f"An actor that decodes takes {wanted:g} {name}, and no machine of Ray's has more than {most:g}; "
                    "ask for less, or start machines that offer it first."
                )


class _Decoder:
    """An actor of the pipeline: runs of steps in, packed batches out."""

    def __init__(self, reading: _Reading) -> None:
        self._reader = reading.reader()

    def __call__(self, runs: pa.Table) -> Iterator[pa.Table]:
        for run in runs.to_pylist():
            try:
                for batch in self._reader.batches(run["start"], run["stop"]):
                    yield pack(batch)
            except HistolakeError as error:  # its own words, without those that Ray Data would put around them
                yield pa.table({ERROR: pa.array([pickle.dumps(error)], pa.large_binary())})
                return


def in_groups(runs: Iterator[Run], most: int) -> Iterator[list[Run]]:
    """Runs in lists of at most `most`; nothing is taken from the iterator before its list is asked for."""
    while some := list(islice(runs, most)):
        yield some


def runs_of(order: Order | InOrder, start: int, stop: int, *, most: int) -> Iterator[Run]:
    """The steps [start, stop) as runs [first, last) of at most `most` steps that begin in one window of one epoch."""
    steps = order.steps_per_epoch
    while start < stop:
        epoch, batch = divmod(start, steps)
        window_end = order.window_end(epoch, batch * order.global_batch)
        begun = -(-window_end // order.global_batch)  # batches of the epoch that begin before the window ends
        last = min(stop, start + most, epoch * steps + min(begun, steps))
        yield start, last
        start = last
