"""What every feed promises, on all three; and what each promises beyond it."""

from __future__ import annotations

import functools
import http.server
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.processes import descendants

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.errors import IntegrityError, ModelError, UsageError
from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Lake, Snapshot
from histolake.platform.schemas import PAIRS
from histolake.platform.splits import Selection
from histolake.platform.storage import Location
from histolake.training.images import decode
from histolake.training.inputs import Picture, Profile, Sentence, Vector
from histolake.training.reading import (
    Augmentation,
    Batch,
    Feed,
    FeedOptions,
    Order,
    PairReader,
    RayFeed,
    ReadOptions,
    ShardReader,
)
from histolake.training.reading.packing import pack, unpack
from histolake.training.reading.ray_feed import in_groups, runs_of
from histolake.training.tokenizers import make_tokenizer

SLIDES = ["gen/A", "gen/B", "gen/C", "gen/D"]
INPUTS = (Picture(column="spot_image", px=28), Sentence(column="sentence", tokenizer="bpe", context=20))
TOKENIZER = make_tokenizer("bpe", 20)
HOW: dict[str, Any] = {"tokenizers": {"sentence": TOKENIZER}, "augmentation": Augmentation(stain=0.1)}
OPTIONS = ReadOptions(seed=3, global_batch=8, chunk_rows=5, window_rows=30, decoders=2)
SMALL_RUNS = FeedOptions(workers=2, cpus=0.5, run_steps=2)

Maker = Callable[..., Feed]


@pytest.fixture(scope="module")
def shards(snapshot: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of all 96 pairs in ten shards."""
    place = tmp_path_factory.mktemp("export") / "all"
    export(snapshot, ExportSpec(name="all", rows_per_shard=10), Location.parse(place))
    return place


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    with start_ray(ClusterSettings(cpus=2, object_store_mb=100)):
        yield


@pytest.fixture(params=["lake", "shards", "ray"])
def make(request: pytest.FixtureRequest, snapshot: Snapshot) -> Maker:
    """A feed of each kind, for some rank."""
    pairs = Selection(snapshot, SLIDES)
    if request.param == "shards":
        folder = request.getfixturevalue("shards")
        return lambda rank=0, ranks=1: ShardReader(str(folder), INPUTS, OPTIONS, rank=rank, ranks=ranks, **HOW)
    if request.param == "lake":
        return lambda rank=0, ranks=1: PairReader(pairs, INPUTS, OPTIONS, rank=rank, ranks=ranks, **HOW)
    request.getfixturevalue("on_ray")
    return lambda rank=0, ranks=1: RayFeed(pairs, INPUTS, OPTIONS, SMALL_RUNS, rank=rank, ranks=ranks, **HOW)


def equal(some: Batch, other: Batch) -> None:
    """Whether two batches are the same to the bit."""
    assert (some.step, some.epoch, some.pair_ids) == (other.step, other.epoch, other.pair_ids)
    np.testing.assert_array_equal(some.positions_B, other.positions_B)
    np.testing.assert_equal(some.genes_surviving, other.genes_surviving)
    assert torch.equal(some.slides_B, other.slides_B) and torch.equal(some.ids_B, other.ids_B)
    assert (some.neighbours_BK is None) == (other.neighbours_BK is None)
    if some.neighbours_BK is not None and other.neighbours_BK is not None:
        assert torch.equal(some.neighbours_BK, other.neighbours_BK)
    for a, b in ((some, other), (some.to("cpu"), other.to("cpu"))):
        assert a.tensors.keys() == b.tensors.keys() and a.present.keys() == b.present.keys()
        assert all(torch.equal(a.tensors[key], b.tensors[key]) for key in a.tensors)
        assert all(torch.equal(a.present[key], b.present[key]) for key in a.present)


def test_every_feed_gives_the_pairs_of_an_epoch_in_whole_batches_and_ends_with_its_iterator(
    make: Maker, snapshot: Snapshot
) -> None:
    columns = ["pair_id", "slide_id", "spot_image", "sentence"]
    truth = {row["pair_id"]: row for batch in snapshot.pairs(columns) for row in batch.to_pylist()}
    workers = [make(rank, 2) for rank in range(2)]
    steps = workers[0].steps_per_epoch
    assert steps == workers[1].steps_per_epoch and 96 // 8 - 2 <= steps <= 96 // 8
    assert all(worker.slide_ids == SLIDES for worker in workers)
    assert all(worker.notice is None or "\n" not in worker.notice for worker in workers)
    read = [list(worker.batches(0, steps + 1)) for worker in workers]
    seen: list[list[bytes]] = [[], []]
    for rank, batches in enumerate(read):
        assert [(batch.step, batch.epoch) for batch in batches] == [(n, n // steps) for n in range(steps + 1)]
        for batch in batches:
            first = (batch.step % steps) * 8 + rank * 4
            np.testing.assert_array_equal(batch.positions_B, np.arange(first, first + 4))
            assert batch.tensors["spot_image"].shape == (4, 28, 28, 3) and not batch.present
            assert batch.drawn is not None
            for number, pair in enumerate(batch.pair_ids):
                row = truth[pair]
                assert SLIDES[int(batch.slides_B[number])] == row["slide_id"]
                assert int(batch.ids_B[number]) == int.from_bytes(pair[:8], "little", signed=True)
                np.testing.assert_array_equal(batch.tensors["spot_image"][number], decode(row["spot_image"], 28))
                np.testing.assert_array_equal(batch.tensors["sentence"][number], TOKENIZER([row["sentence"]])[0])
            sentences = [truth[pair]["sentence"] for pair in batch.pair_ids]
            assert batch.genes_surviving == pytest.approx(TOKENIZER.genes_surviving(sentences))
            seen[batch.epoch] += batch.pair_ids
    assert len(seen[0]) == len(set(seen[0])) == steps * 8, "no pair comes twice in an epoch, on whichever rank"
    assert seen[1][:4] != read[0][0].pair_ids, "another epoch has another order"
    before = set(threading.enumerate())
    again = make(0, 2).batches(0, 10**6)
    for batch in read[0][:3]:
        equal(next(again), batch)
    again.close()  # type: ignore[attr-defined]  # what all of them give can be closed
    assert [thread.name for thread in set(threading.enumerate()) - before if "pairs" in thread.name] == []
    assert wait_until(lambda: not decoding(), 60.0), "actors outlive the batches"


def decoding() -> list[int]:
    """Process ids of actors that decode for these tests."""
    return [pid for pid, command in descendants(os.getpid()) if "MapBatches(_Decoder)" in command]


def wait_until(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


# -- Ray Data


@pytest.mark.usefixtures("on_ray")
def test_batches_made_elsewhere_are_those_of_a_reader_here_to_the_bit_also_when_an_actor_dies(
    snapshot: Snapshot,
) -> None:
    inputs = (*INPUTS, Sentence(column="niche_sentence", tokenizer="bpe", context=20))
    options = ReadOptions(seed=3, global_batch=8, chunk_rows=5, window_rows=30, neighbours=True)
    how = HOW | {"tokenizers": {"sentence": TOKENIZER, "niche_sentence": TOKENIZER}}
    pairs = Selection(snapshot, SLIDES)
    batches = RayFeed(pairs, inputs, options, SMALL_RUNS, **how).batches(5, 125)
    elsewhere = [next(batches)]
    victims = decoding()
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    seen: set[int] = set()
    for batch in batches:
        elsewhere.append(batch)
        seen |= set(decoding())
    assert seen - set(victims), "another came for the one that died"
    here = list(PairReader(pairs, inputs, options, **how).batches(5, 125))
    assert [batch.step for batch in elsewhere] == list(range(5, 125))
    for some, other in zip(elsewhere, here, strict=True):
        equal(some, other)
    assert "niche_sentence" in here[0].present and here[0].neighbours_BK is not None


@pytest.mark.usefixtures("on_ray")
def test_what_cannot_be_made_elsewhere_is_said_in_a_sentence(snapshot: Snapshot, lake: Lake) -> None:
    with pytest.raises(UsageError, match="takes 1 decode, and no machine of Ray's has more than 0"):
        RayFeed(Selection(snapshot, SLIDES), INPUTS, OPTIONS, FeedOptions(resources={"decode": 1.0}), **HOW)
    rows = pa.Table.from_batches(snapshot.pairs(PAIRS.names, ["gen/A"]))
    broken = pa.array([b"text", *rows["spot_image"].to_pylist()[1:]], pa.binary())
    attempt = lake.begin("gen/A", source_digest="1", settings_digest="s", source="generated")
    place = rows.schema.get_field_index("spot_image")
    fragment = attempt.pairs.write(rows.set_column(place, rows.schema.field(place), broken))
    attempt.stage({"n_spots": 24, "simulated": True}, [fragment], pa.table({"rule": pa.array([], "string")}))
    lake.publish([attempt])
    refusing = RayFeed(Selection(lake.at(), ["gen/A"]), INPUTS, OPTIONS, SMALL_RUNS, **HOW)
    with pytest.raises(ModelError, match=r"^4 bytes are no JPEG or PNG that can be decoded .*\.$"):
        list(refusing.batches(0, 3))


def test_a_selection_is_opened_again_where_it_is_sent_to(snapshot: Snapshot) -> None:
    pairs = Selection(snapshot, SLIDES[:1], {snapshot.chunks(SLIDES[:1])[0].ingest_id: np.arange(24) % 3 == 0})
    sent = pickle.loads(pickle.dumps(pairs))
    assert sent.parts() == pairs.parts() and sent.n_pairs == 8 and sent.snapshot.version == snapshot.version
    assert pa.Table.from_batches(sent.pairs(["pair_id"])).equals(pa.Table.from_batches(pairs.pairs(["pair_id"])))


@pytest.mark.parametrize(("start", "stop", "most"), [(0, 40, 3), (7, 8, 8), (5, 100, 64), (3, 3, 8)])
def test_runs_are_the_steps_once_each_and_begin_in_one_window(start: int, stop: int, most: int) -> None:
    order = Order([20, 31, 7, 44, 18], seed=1, global_batch=6, window_rows=40)
    runs = list(runs_of(order, start, stop, most=most))
    assert [step for first, last in runs for step in range(first, last)] == list(range(start, stop))
    groups = list(in_groups(iter(runs), 4))
    assert [run for group in groups for run in group] == runs and all(len(group) == 4 for group in groups[:-1])
    for first, last in runs:
        windows = {
            (order.slice(step).epoch, order.window(order.slice(step).epoch, int(order.slice(step).positions_B[0])))
            for step in range(first, last)
        }
        assert len(windows) == 1 and last - first <= most


def test_a_batch_that_was_packed_is_the_same(snapshot: Snapshot) -> None:
    genes = tuple(snapshot.lake.resolve_genes(["EPCAM", "VIM"]).tolist())
    inputs = (*INPUTS, Profile(of="niche", gene_ids=genes), Sentence(column="niche_sentence", tokenizer="b", context=9))
    tokenizers = {"sentence": TOKENIZER, "niche_sentence": make_tokenizer("bpe", 9)}
    for augmentation in (None, Augmentation(), Augmentation(density=0.2)):
        made = PairReader(
            Selection(snapshot, SLIDES), inputs, OPTIONS, tokenizers=tokenizers, augmentation=augmentation
        )
        schemas = set()
        for batch in made.batches(0, 3):
            row = pack(batch)
            assert row.num_rows == 1
            schemas.add(str(row.schema))
            equal(unpack(row, made.frame), batch)
        assert len(schemas) == 1


# -- shards


def test_an_epoch_of_shards_begins_alike_and_a_step_inside_it_does_not(shards: Path) -> None:
    made = ShardReader(str(shards), INPUTS, OPTIONS, **HOW)
    assert made.steps_per_epoch == 12 and made.manifest.pairs == 96
    whole = list(made.batches(0, 24))
    for some, other in zip(made.batches(12, 24), whole[12:], strict=True):
        equal(some, other)
    rest = list(made.batches(5, 12))
    assert [batch.step for batch in rest] == list(range(5, 12)) and rest[0].pair_ids != whole[5].pair_ids
    assert "resumed inside an epoch" in made.notice and "\n" not in made.notice


def test_samples_of_a_shard_are_mixed_with_others(shards: Path, snapshot: Snapshot) -> None:
    slide_of = {
        row["pair_id"]: row["slide_id"] for b in snapshot.pairs(["pair_id", "slide_id"]) for row in b.to_pylist()
    }
    batches = list(ShardReader(str(shards), INPUTS, OPTIONS, **HOW).batches(0, 12))
    slides = [len({slide_of[pair] for pair in batch.pair_ids}) for batch in batches]
    assert np.mean(slides) > 2, "a batch of eight from shards of ten pairs holds several slides"


def test_shards_come_from_a_web_server_too(shards: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_address[1]}/"
            for some, other in zip(
                ShardReader(url, INPUTS, OPTIONS, **HOW).batches(0, 12),
                ShardReader(str(shards), INPUTS, OPTIONS, **HOW).batches(0, 12),
                strict=True,
            ):
                equal(some, other)
            with pytest.raises(UsageError, match=r"holds no manifest\.json"):
                ShardReader(url + "elsewhere", INPUTS, OPTIONS, **HOW)
        finally:
            server.shutdown()
            thread.join()


def test_shards_come_from_an_object_store_too(shards: Path, bucket: str) -> None:
    place = Location.parse(f"{bucket}/all")
    for path in sorted(shards.iterdir()):
        place.join(path.name).write_bytes(path.read_bytes())
    for some, other in zip(
        ShardReader(place, INPUTS, OPTIONS, **HOW).batches(0, 3),
        ShardReader(str(shards), INPUTS, OPTIONS, **HOW).batches(0, 3),
        strict=True,
    ):
        equal(some, other)


def test_shards_that_are_not_whole_are_refused(shards: Path, tmp_path: Path) -> None:
    def copied(name: str) -> Path:
        return Path(shutil.copytree(shards, tmp_path / name))

    def opened(folder: Path) -> ShardReader:
        return ShardReader(str(folder), INPUTS, OPTIONS, **HOW)

    lacking = copied("lacking")
    (lacking / "all-000003.tar").unlink()
    (lacking / "all-000004.tar").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"1 of its 10 shards are gone \(all-000003.*1 have another size"):
        opened(lacking)
    flipped = copied("flipped")
    data = bytearray((flipped / "all-000003.tar").read_bytes())
    data[2000] ^= 1
    (flipped / "all-000003.tar").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"all-000003\.tar .*another SHA-256"):
        list(opened(flipped).batches(0, 12))
    fewer = copied("fewer")
    about = (fewer / "manifest.json").read_text().replace('"pairs": 96', '"pairs": 97')
    (fewer / "manifest.json").write_text(about)
    with pytest.raises(IntegrityError, match="its shards hold 96 pairs and it has 97"):
        opened(fewer)
    (fewer / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(UsageError, match="not of a histolake export"):
        opened(fewer)
    (fewer / "manifest.json").unlink()
    with pytest.raises(UsageError, match="no export was finished"):
        opened(fewer)


@pytest.mark.parametrize(
    ("inputs", "changes", "ranks", "said"),
    [
        (
            (Profile(of="spot", gene_ids=(1,)), Vector(table="t", width=2)),
            {},
            1,
            "hold spot_image and sentence .*profile, vector",
        ),
        ((Picture(column="niche_image", px=28),), {}, 1, "niche_image is asked for; train from the lake"),
        (INPUTS, {"neighbours": True}, 1, "neighbours is asked for"),
        (INPUTS, {"shuffled": False}, 1, "are read shuffled"),
        (INPUTS, {"sampling": "organs"}, 1, "sampling 'organs' is asked for"),
        (INPUTS, {"global_batch": 97}, 1, "larger than the 96 pairs that 1 workers surely have"),
        (INPUTS, {"global_batch": 22}, 11, "10 shards for 11 workers"),
        (INPUTS, {"global_batch": 8}, 3, "cannot be divided among 3"),
    ],
)
def test_what_shards_do_not_hold_is_refused(
    shards: Path, inputs: Any, changes: dict[str, Any], ranks: int, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        ShardReader(str(shards), inputs, ReadOptions(**changes), ranks=ranks)
