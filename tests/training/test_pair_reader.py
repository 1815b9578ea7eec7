"""Batches from a real lake: the order's rows with the right bytes, the same at any number of workers, from any step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake import Snapshot
from histolake.platform.splits import Selection
from histolake.training.images import decode
from histolake.training.inputs import Input, Picture, Profile, Sentence
from histolake.training.reading import Augmentation, Batch, PairReader, ReadOptions
from histolake.training.reading.fill import _bytes
from histolake.training.reading.memory import Reused
from histolake.training.tokenizers import make_tokenizer

SLIDES = ["gen/A", "gen/B", "gen/C"]
PAIR = (
    Picture(column="niche_image", px=28),
    Picture(column="spot_image", px=48),
    Sentence(column="sentence", tokenizer="bpe", context=20),
)
TOKENIZER = make_tokenizer("bpe", 20)
RESTAINED = Augmentation(stain=0.1, density=0.1)


def reader(
    snapshot: Snapshot, inputs: Sequence[Input] = PAIR, *, slides: Sequence[str] = SLIDES, **changes: Any
) -> PairReader:
    told = {name: changes.pop(name) for name in ("rank", "ranks", "augmentation") if name in changes}
    options = ReadOptions(**({"global_batch": 8, "chunk_rows": 5, "decoders": 2} | changes))
    tokenizers = {each.key: TOKENIZER for each in inputs if isinstance(each, Sentence)}
    return PairReader(Selection(snapshot, slides), inputs, options, tokenizers=tokenizers, **told)


def equal(some: Batch, other: Batch) -> None:
    """Whether two batches are the same to the bit, also after augmentation."""
    assert (some.step, some.epoch, some.pair_ids) == (other.step, other.epoch, other.pair_ids)
    for a, b in ((some, other), (some.to("cpu"), other.to("cpu"))):
        assert a.tensors.keys() == b.tensors.keys() and a.present.keys() == b.present.keys()
        for key in a.tensors:
            assert torch.equal(a.tensors[key], b.tensors[key]), key


def joined(parts: Sequence[Batch]) -> Batch:
    """The batches of all workers as that of one."""
    parts = [part.to("cpu") for part in parts]
    tensors = {key: torch.cat([part.tensors[key] for part in parts]) for key in parts[0].tensors}
    names = [pair for part in parts for pair in part.pair_ids]
    first = parts[0]
    return Batch(
        step=first.step,
        epoch=first.epoch,
        positions_B=np.concatenate([part.positions_B for part in parts]),
        pair_ids=names,
        slides_B=torch.cat([part.slides_B for part in parts]),
        ids_B=torch.cat([part.ids_B for part in parts]),
        tensors=tensors,
        present={},
    )


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("window_rows", [12, 4096])
def test_workers_together_read_the_batches_of_one(snapshot: Snapshot, ranks: int, window_rows: int) -> None:
    how: dict[str, Any] = {"window_rows": window_rows, "augmentation": RESTAINED}
    alone = list(reader(snapshot, **how).batches(0, 11))
    shared = [list(reader(snapshot, rank=rank, ranks=ranks, **how).batches(0, 11)) for rank in range(ranks)]
    for step, batch in enumerate(alone):
        equal(joined([worker[step] for worker in shared]), batch.to("cpu"))


def test_a_reader_that_starts_later_continues_the_sequence(snapshot: Snapshot) -> None:
    whole = list(reader(snapshot, augmentation=RESTAINED, window_rows=20).batches(0, 20))
    assert [batch.epoch for batch in whole] == [0] * 9 + [1] * 9 + [2] * 2
    for resumed, batch in zip(
        reader(snapshot, augmentation=RESTAINED, window_rows=20).batches(7, 20), whole[7:], strict=True
    ):
        equal(resumed, batch)
    equal(reader(snapshot, augmentation=RESTAINED, window_rows=20).batch(13), whole[13])


@pytest.mark.parametrize(("decoders", "ahead"), [(1, 0), (1, 3), (4, 1)])
def test_threads_change_nothing(snapshot: Snapshot, decoders: int, ahead: int) -> None:
    for some, other in zip(
        reader(snapshot, decoders=decoders, ahead=ahead).batches(0, 12), reader(snapshot).batches(0, 12), strict=True
    ):
        equal(some, other)


def test_rows_are_those_of_the_lake(snapshot: Snapshot) -> None:
    columns = ["pair_id", "slide_id", "niche_image", "spot_image", "sentence"]
    truth = {row["pair_id"]: row for batch in snapshot.pairs(columns) for row in batch.to_pylist()}
    made = reader(snapshot, window_rows=16)
    for batch in made.batches(0, 9):
        for number, pair in enumerate(batch.pair_ids):
            row = truth[pair]
            assert made.slide_ids[int(batch.slides_B[number])] == row["slide_id"]
            assert int(batch.ids_B[number]) == int.from_bytes(pair[:8], "little", signed=True)
            for key, px in (("niche_image", 28), ("spot_image", 48)):
                np.testing.assert_array_equal(batch.tensors[key][number], decode(row[key], px))
            np.testing.assert_array_equal(batch.tensors["sentence"][number], TOKENIZER([row["sentence"]])[0])
        sentences = [truth[pair]["sentence"] for pair in batch.pair_ids]
        assert batch.genes_surviving == pytest.approx(TOKENIZER.genes_surviving(sentences))
        assert not batch.present, "these pairs lack nothing"


def test_pictures_reach_the_decoder_as_the_bytes_they_are(snapshot: Snapshot) -> None:
    (chunk, *_) = snapshot.chunks(SLIDES, rows=5)
    for column in (snapshot.read(chunk, ["spot_image"])["spot_image"], pa.chunked_array([[b"\xff\xd8", None, b"abc"]])):
        for piece in column.chunks:
            data, at = _bytes(piece)
            told = [data[start:stop] for start, stop in pairwise(at)]
            assert told == [picture or b"" for picture in piece.to_pylist()], "compared as bytes, not as signed numbers"


def test_rows_that_lack_an_input_say_so(snapshot: Snapshot) -> None:
    inputs = (*PAIR[:1], Sentence(column="niche_sentence", tokenizer="bpe", context=20))
    for batch in reader(snapshot, inputs).batches(0, 2):
        assert not batch.present["niche_sentence"].any() and not batch.tensors["niche_sentence"].any()
        assert "niche_image" not in batch.present and np.isnan(batch.genes_surviving)


def test_neighbours_are_the_spots_of_the_niche(snapshot: Snapshot) -> None:
    truth = {row["pair_id"]: row["niche"] for b in snapshot.pairs(["pair_id", "niche"]) for row in b.to_pylist()}
    for batch in reader(snapshot, PAIR[:1], neighbours=True, window_rows=16).batches(0, 9):
        assert batch.neighbours_BK is not None
        for pair, found in zip(batch.pair_ids, batch.neighbours_BK.tolist(), strict=True):
            assert found == [int.from_bytes(other[:8], "little", signed=True) for other in truth[pair]]


@pytest.mark.parametrize("include_self", [True, False])
def test_profiles_are_those_of_the_spot_and_of_its_niche(snapshot: Snapshot, include_self: bool) -> None:
    columns = ["pair_id", "gene_ids", "counts", "niche"]
    truth = {row["pair_id"]: row for batch in snapshot.pairs(columns) for row in batch.to_pylist()}
    every = sorted({gene for row in truth.values() for gene in row["gene_ids"]})
    genes = (every[5], every[0], every[3], every[-1])  # in the model's own order, and not all

    def dense(pairs: list[bytes]) -> np.ndarray:
        """Naively: the mean of all counts of some spots, then scaled, then the logarithm of the model's genes."""
        mean = dict.fromkeys(every, 0.0)
        for pair in pairs:
            for gene, count in zip(truth[pair]["gene_ids"], truth[pair]["counts"], strict=True):
                mean[gene] += count / len(pairs)
        return np.log1p([1e4 * mean[gene] / sum(mean.values()) for gene in genes])

    inputs = (Profile(of="spot", gene_ids=genes), Profile(of="niche", gene_ids=genes))
    for batch in reader(snapshot, inputs, niche_include_self=include_self, window_rows=16).batches(0, 9):
        for number, pair in enumerate(batch.pair_ids):
            spots = [*([pair] if include_self else []), *truth[pair]["niche"]]
            np.testing.assert_allclose(batch.tensors["profile"][number], dense([pair]), rtol=1e-5)
            np.testing.assert_allclose(batch.tensors["niche_profile"][number], dense(spots), rtol=1e-5)
        assert not batch.present


def test_two_lists_of_genes_are_refused(snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match="over the same genes"):
        reader(snapshot, (Profile(of="spot", gene_ids=(1, 2)), Profile(of="niche", gene_ids=(1, 3))))


def test_an_error_while_reading_reaches_the_one_who_waits(snapshot: Snapshot) -> None:
    class Refuses:
        """A tokenizer for which every sentence is too much."""

        def counted(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            raise ModelError(f"{len(sentences)} sentences are too much.")

    options = ReadOptions(global_batch=8, decoders=2)
    broken = PairReader(Selection(snapshot, SLIDES), PAIR, options, tokenizers={"sentence": Refuses()})
    with pytest.raises(ModelError, match="8 sentences are too much"):
        list(broken.batches(0, 2))


def test_a_reader_that_is_left_early_leaves_no_thread_behind(snapshot: Snapshot) -> None:
    import threading

    before = set(threading.enumerate())
    batches = reader(snapshot, global_batch=2).batches(0, 10**6)
    next(batches)
    batches.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if "pairs" in thread.name]
    assert left == []


def test_bytes_that_are_no_picture_are_named_so() -> None:
    for broken in (b"\xff\xd8\xffbroken", b"text"):
        with pytest.raises(ModelError, match="no JPEG or PNG"):
            decode(broken, 28)


def test_a_sampling_balances_what_it_names(snapshot: Snapshot) -> None:
    every = ["gen/A", "gen/B", "gen/C", "gen/D"]
    made = reader(snapshot, PAIR[:1], slides=every, sampling="slides", global_batch=16)
    seen = torch.cat([batch.slides_B for batch in made.batches(0, made.order.steps_per_epoch)])
    assert torch.bincount(seen).tolist() == [24, 24, 24, 24]
    with pytest.raises(UsageError, match="no sampling 'organ'; there are pairs, slides, organs"):
        reader(snapshot, PAIR[:1], sampling="organ")


def test_memory_is_used_again_once_nobody_holds_it() -> None:
    memory = Reused()
    first = memory.empty((4, 8), torch.float32)
    place, view = first.data_ptr(), first[1:3].numpy()
    del first
    other = memory.empty((4, 8), torch.float32)
    assert other.data_ptr() != place, "a view holds it"
    del view
    again = memory.empty((4, 16), torch.int16)
    assert again.data_ptr() == place and again.shape == (4, 16) and again.dtype == torch.int16
    many = [memory.empty((2, 2, 2), torch.uint8) for _ in range(100)]
    assert len({each.data_ptr() for each in many}) == 100
