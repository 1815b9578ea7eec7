"""Tables of embeddings: rows by ingest, search within a lake version, an index that keeps nothing that was dropped."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.embeddings.claims import let_go, take
from histolake.platform.lake.embeddings.index import INDEX_ROWS, IndexPlan, index_state, keep_up, plan_index
from histolake.platform.lake.embeddings.nearest import whole_fragments
from histolake.platform.lake.embeddings.table import About, EmbeddingTable
from histolake.platform.lake.forgetting import forget
from histolake.platform.lake.leases import Lease
from histolake.platform.lake.vacuum import vacuum

WIDTH = 16
ABOUT = About(model="m", version="1", digest="d" * 64, width=WIDTH, image_column="spot_image", image_um=55.0)


def unit(seed: str, rows: int) -> np.ndarray:
    """Clustered unit vectors, a pure function of the seed."""
    draw = np.random.default_rng(list(seed.encode()))
    centres = np.random.default_rng(7).normal(size=(40, WIDTH))
    found = centres[draw.integers(40, size=rows)] + 0.4 * draw.normal(size=(rows, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def pair_ids(slide_id: str, rows: int) -> list[bytes]:
    return [f"{slide_id[-8:]:>8}{number:08d}".encode() for number in range(rows)]


def fill(table: EmbeddingTable, lake: Lake, rows: int, *, slides: list[str] | None = None, text: str = "") -> None:
    """Vectors for every slide of the newest version, or some; every seventh pair has no picture."""
    held = {row["slide_id"]: row["ingest_id"] for row in lake.at().slides().to_pylist()}
    for slide_id in slides or list(held):
        writer = table.writer(held[slide_id], slide_id)
        has_N = np.arange(rows) % 7 != 3
        vectors = unit(slide_id + held[slide_id], rows), unit(slide_id + "text" + text, rows)
        table.append([writer.write(pair_ids(slide_id, rows), vectors[0], has_N, vectors[1], np.ones(rows, bool))])


@pytest.fixture
def four(lake: Lake, writer: ModuleType) -> Lake:
    """Four slides of six pairs; c/a was ingested twice, so that its first ingest is retired."""
    for slide_id, digest in (("c/a", "one"), ("c/b", "one"), ("c/a", "two"), ("c/c", "one"), ("c/d", "one")):
        writer.ingest(lake, slide_id, digest, 6, patient=slide_id, refused=0)
    return lake


def test_an_ingest_is_in_the_table_once_however_often_it_is_appended(four: Lake) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    (row, *_) = four.at().slides().to_pylist()
    writer = table.writer(row["ingest_id"], row["slide_id"])
    fragments = [
        writer.write(pair_ids("x", 4), unit("x", 4), np.ones(4, bool), unit("y", 4), np.zeros(4, bool)) for _ in "ab"
    ]
    assert table.ingests() == {}  # written is not committed
    table.append(fragments)
    table.append(fragments)
    assert table.ingests() == {row["ingest_id"]: 8}
    assert four.embeddings.names() == ["m-v1"] and four.embeddings.ingests("m-v1") == {row["ingest_id"]}
    rows = pa.Table.from_batches(table.read(four.at(), ["pair_id", "vector", "sentence_vector"]))
    assert rows["pair_id"].to_pylist() == pair_ids("x", 4) * 2
    np.testing.assert_array_equal(np.stack(rows["vector"].to_pylist()[:4]).astype(np.float32), unit("x", 4))
    assert rows["sentence_vector"].null_count == 8
    assert table.about == ABOUT == four.embeddings.create("m-v1", ABOUT).about
    with pytest.raises(ModelError, match="with other weights"):
        four.embeddings.create("m-v1", replace(ABOUT, digest="e" * 64))
    with pytest.raises(ModelError, match="no embeddings 'n-v1'"):
        four.embeddings.open("n-v1")


def brute(lake: Lake, version: int, rows: int, query_QD: np.ndarray, k: int, slides: list[str]) -> list[list[bytes]]:
    """The answer of the definition."""
    ids, vectors = [], []
    for row in lake.at(version).slides().to_pylist():
        if row["slide_id"] in slides:
            keep = np.arange(rows) % 7 != 3
            vectors.append(unit(row["slide_id"] + row["ingest_id"], rows)[keep])
            ids += [one for one, kept in zip(pair_ids(row["slide_id"], rows), keep, strict=True) if kept]
    order = np.argsort(-(query_QD @ np.concatenate(vectors).T), axis=1)[:, :k]
    return [[ids[at] for at in row] for row in order]


def answer(found: pa.Table) -> list[list[bytes]]:
    told: dict[int, list[bytes]] = {}
    for row in found.to_pylist():
        assert row["rank"] == len(told.setdefault(row["query"], []))
        told[row["query"]].append(row["pair_id"])
    return [told[query] for query in sorted(told)]


def test_the_nearest_are_those_of_the_version_that_is_asked(four: Lake) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    fill(table, four, 30)
    old = four.at(2)  # with the first ingest of c/a
    first = old.slides(where="slide_id = 'c/a'")["ingest_id"][0].as_py()
    retired = table.writer(first, "c/a")
    rows = pair_ids("c/a", 30), unit("c/a" + first, 30), np.arange(30) % 7 != 3, unit("t", 30), np.ones(30, bool)
    table.append([retired.write(*rows)])

    query_QD = unit("query", 5)
    every = ["c/a", "c/b", "c/c", "c/d"]
    for version, where, slides in ((5, None, every), (2, None, every), (5, "patient = 'c/b'", ["c/b"])):
        found = four.embeddings.nearest("m-v1", 3 * query_QD, 12, four.at(version), where=where)
        assert answer(found) == brute(four, version, 30, query_QD, 12, slides)
        assert found["score"][0].as_py() >= found["score"][11].as_py()
        assert set(found["slide_id"].to_pylist()) <= set(slides)
    few = four.embeddings.nearest("m-v1", query_QD[0], 100, four.at(), where="slide_id = 'c/b'")
    assert few.num_rows == 26 and pa.compute.is_in(few["slide_id"], pa.array(["c/b"])).to_pylist() == [True] * 26
    text = four.embeddings.nearest("m-v1", unit("c/dtext", 30)[3], 1, four.at(), side="sentence_vector")
    assert text.to_pylist()[0]["pair_id"] == pair_ids("c/d", 30)[3]
    assert text["score"][0].as_py() == pytest.approx(1.0, abs=1e-6)
    nothing = four.embeddings.nearest("m-v1", query_QD, 3, four.at(), where="slide_id = 'none'")
    assert nothing.num_rows == 0

    for wrong, message in (
        (lambda: four.embeddings.nearest("m-v1", np.ones(3), 1, four.at()), "expected"),
        (lambda: four.embeddings.nearest("m-v1", np.zeros(WIDTH), 1, four.at()), "direction"),
        (lambda: four.embeddings.nearest("m-v1", np.ones(WIDTH), 0, four.at()), "at least 1"),
        (lambda: four.embeddings.nearest("m-v1", np.ones(WIDTH), 1, four.at(), side="v"), "no side"),
    ):
        with pytest.raises(UsageError, match=message):
            wrong()


def test_an_index_answers_like_all_vectors_within_a_version(four: Lake) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    rows = INDEX_ROWS // 2
    fill(table, four, rows)
    first = four.at(1).slides()["ingest_id"][0].as_py()  # retired; its vectors are those of c/a's second ingest
    known = unit("c/a" + four.at().slides()["ingest_id"][0].as_py(), rows)
    every = np.ones(rows, bool)
    table.append([table.writer(first, "c/a").write([b"retired!" * 2] * rows, known, every, known, every)])
    states = table.index()
    assert [(s.side, s.kind, s.parts, s.unindexed_rows) for s in states] == [
        ("vector", "IVF_FLAT", 1, 0),
        ("sentence_vector", "IVF_FLAT", 1, 0),
    ]
    query_QD = unit("query", 40)
    for where, slides in ((None, ["c/a", "c/b", "c/c", "c/d"]), ("patient in ('c/a', 'c/d')", ["c/a", "c/d"])):
        found = four.embeddings.nearest("m-v1", query_QD, 10, four.at(), where=where)
        exact = four.embeddings.nearest("m-v1", query_QD, 10, four.at(), where=where, exact=True)
        assert answer(exact) == brute(four, four.version, rows, query_QD, 10, slides)
        assert b"retired!" * 2 not in found["pair_id"].to_pylist()
        assert agreement(found, exact) > 0.97
        np.testing.assert_allclose(found["score"][:10], exact["score"][:10], atol=2e-3)
    everything = four.embeddings.nearest("m-v1", query_QD[0], 5 * rows, four.at())
    assert everything.num_rows == sum(np.arange(rows) % 7 != 3) * 4  # what the index leaves out is nobody's

    keep_up(table.dataset, "vector", IndexPlan(kind="IVF_PQ", cells=50, sample_rate=64, sub_vectors=8))
    made = index_state(table.dataset(), "vector")
    assert made is not None and (made.kind, made.cells) == ("IVF_PQ", 50)
    found = four.embeddings.nearest("m-v1", query_QD, 10, four.at())
    exact = four.embeddings.nearest("m-v1", query_QD, 10, four.at(), exact=True)
    assert agreement(found, exact) > 0.95


def agreement(found: pa.Table, exact: pa.Table) -> float:
    pairs = [set(zip(t["query"].to_pylist(), t["pair_id"].to_pylist(), strict=True)) for t in (found, exact)]
    return len(pairs[0] & pairs[1]) / len(pairs[1])


def test_a_set_ofwhole_fragments_is_what_lance_takes(four: Lake) -> None:
    """The bytes are of Lance's format; row by row it is Lance itself that writes them."""
    from lance.dataset import serialize_row_addrs

    table = four.embeddings.create("m-v1", ABOUT)
    fill(table, four, 30)
    dataset, parts = table.dataset(), table.view().parts
    chosen = [parts[2], parts[0]]
    addresses = [(part.fragment_id << 32) + row for part in chosen for row in range(part.rows)]
    told = [
        dataset.scanner(columns=["ingest_id"], row_addr_allowlist=blob).to_table()["ingest_id"].to_pylist()
        for blob in (whole_fragments(chosen), serialize_row_addrs(addresses))
    ]
    assert told[0] == told[1] and set(told[0]) == {part.ingest_id for part in chosen}


def test_what_is_added_joins_the_index_and_growth_draws_it_anew(four: Lake, writer: ModuleType) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    rows = INDEX_ROWS // 2
    assert plan_index(INDEX_ROWS - 1, WIDTH) is None
    fill(table, four, rows, slides=["c/a", "c/b", "c/c"])
    (before, _) = table.index()
    fill(table, four, 500, slides=["c/d"])
    four.embeddings.drop(())  # tidies, and leaves an index alone that holds nothing dropped
    (added, _) = table.index()
    assert (added.cells, added.parts, added.unindexed_rows) == (before.cells, 2, 0)
    hit = four.embeddings.nearest("m-v1", unit("c/dtext", 500)[:20], 1, four.at(), side="sentence_vector")
    assert hit["pair_id"].to_pylist() == pair_ids("c/d", 500)[:20]

    for number in range(5):
        writer.ingest(four, f"c/more{number}", "one", 6, refused=0)
        fill(table, four, rows, slides=[f"c/more{number}"])
    (grown, _) = table.index()
    assert grown.cells > 1.4 * before.cells and (grown.parts, grown.unindexed_rows) == (1, 0)


def test_forgetting_leaves_no_vector_in_table_or_index(four: Lake) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    rows = INDEX_ROWS // 2
    fill(table, four, rows)
    ingests = {row["slide_id"]: row["ingest_id"] for row in four.at().slides().to_pylist()}
    table.index()
    gone = np.concatenate([unit("c/b" + ingests["c/b"], rows)[::500], unit("c/btext", rows)[::500]])
    needles = [vector[:8].tobytes() for vector in gone] + [pair_ids("c/b", rows)[number] for number in (0, 17)]
    assert all(_held(four, needle) for needle in needles)

    receipt = forget(four, slide_id="c/b")
    assert receipt.embeddings == rows
    assert [needle for needle in needles if _held(four, needle)] == []
    assert {state.stale for state in table.index_state()} == {False}
    found = four.embeddings.nearest("m-v1", gone[:5], 10, four.at())
    assert found.num_rows == 50 and "c/b" not in found["slide_id"].to_pylist()
    assert not any(finding.slide_id == "c/b" or finding.severity == "waste" for finding in check(four))


def _held(lake: Lake, needle: bytes) -> bool:
    folder = Path(lake.uri) / "embeddings"
    return any(needle in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_drop_that_died_before_the_index_was_made_anew_is_finished(four: Lake) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    rows = INDEX_ROWS // 2
    fill(table, four, rows)
    table.index()
    ingest_id = four.at().slides()["ingest_id"][1].as_py()
    needle = unit("c/b" + ingest_id, rows)[0, :8].tobytes()
    assert table.drop([ingest_id]) == rows  # and here it died
    assert _held(four, needle)
    assert any("holds dropped rows" in finding.finding for finding in check(four))
    vacuum(four, clock_slack_s=0)
    assert not _held(four, needle)
    assert not any("holds dropped rows" in finding.finding for finding in check(four))


def test_vacuum_keeps_what_is_being_written_and_drops_what_nobody_names(four: Lake) -> None:
    table = four.embeddings.create("m-v1", ABOUT)
    fill(table, four, 6)
    assert check(four) == []
    every = np.ones(6, bool)
    row = four.at().slides().to_pylist()[0]
    with four.at().reading("embed m-v1"):
        coming = table.writer(row["ingest_id"], "c/a").write(
            pair_ids("c/a", 6), unit("a", 6), every, unit("b", 6), every
        )
        table.append(
            [table.writer("0" * 32, "c/gone").write(pair_ids("g", 6), unit("g", 6), every, unit("h", 6), every)]
        )
        (finding,) = check(four)
        assert finding.severity == "waste" and "6 rows of no version" in finding.finding
        done = vacuum(four, clock_slack_s=0)
        assert done.embeddings == 6 and check(four) == []
        with pytest.raises(UsageError, match="being written"):
            four.embeddings.remove("m-v1")
        table.append([coming])  # its file is still there
    (finding,) = check(four)
    assert finding.severity == "error" and "12 of 6 pairs" in finding.finding and finding.slide_id == "c/a"

    dead = Path(table.location.uri) / "_indices" / "00000000-dead" / "index.idx"
    dead.parent.mkdir(parents=True)
    dead.write_bytes(b"half an index")
    unnamed = table.writer(row["ingest_id"], "c/a").write(pair_ids("c/a", 6), unit("a", 6), every, unit("b", 6), every)
    vacuum(four, clock_slack_s=-1)
    assert not dead.exists()
    assert not (Path(table.location.uri) / "data" / unnamed.files[0]).exists()
    assert four.embeddings.remove("m-v1") > 0
    assert four.embeddings.names() == [] and check(four) == []


def test_a_claim_has_one_holder_and_a_dead_one_is_taken_over(lake: Lake) -> None:
    other = Lake.open(lake.uri)
    claim = take(lake.root, lake.keeper, "embed", "m-1")
    assert claim == "embed-m-1"
    assert take(other.root, other.keeper, "embed", "m-1") is None
    let_go(lake.keeper, claim)
    assert take(other.root, other.keeper, "embed", "m-1") == claim
    let_go(other.keeper, claim)

    # One that another machine has left behind.
    dead = Lease(lease_id="embed-m-2", kind="embed", purpose="", machine="other", pid=1, process_started="1")
    place = Path(dead.location(lake.root).uri)
    long_ago = time.time() - 9000
    dead.write(lake.root)
    assert take(lake.root, lake.keeper, "embed", "m-2") is None  # it was written a moment ago
    os.utime(place, (long_ago, long_ago))
    assert dead.seal(lake.root, "embed")
    assert take(lake.root, lake.keeper, "embed", "m-2") is None  # somebody is about to take it over
    Path(dead.seal_location(lake.root).uri).unlink()
    assert take(lake.root, lake.keeper, "embed", "m-2") == "embed-m-2"
    assert take(other.root, other.keeper, "embed", "m-2") is None
    let_go(lake.keeper, "embed-m-2")
    assert lake.root.join("leases").list() == []

    dead.write(lake.root)
    os.utime(place, (long_ago, long_ago))
    vacuum(lake)
    assert lake.root.join("leases").list() == []


def test_tables_in_an_object_store(bucket: str, writer: ModuleType) -> None:
    lake = Lake.open(f"{bucket}/lake", create=True)
    for slide_id in ("c/a", "c/b"):
        writer.ingest(lake, slide_id, "one", 6, refused=0)
    table = lake.embeddings.create("m-v1", ABOUT)
    rows = INDEX_ROWS * 3 // 4
    fill(table, lake, rows)
    assert [state.kind for state in table.index()] == ["IVF_FLAT", "IVF_FLAT"]
    query_QD = unit("query", 10)
    found = lake.embeddings.nearest("m-v1", query_QD, 10, lake.at())
    assert agreement(found, lake.embeddings.nearest("m-v1", query_QD, 10, lake.at(), exact=True)) > 0.97
    receipt = forget(lake, slide_id="c/a")
    assert receipt.embeddings == rows and table.index_state() == []  # too few are left for an index
    found = lake.embeddings.nearest("m-v1", query_QD, 10, lake.at())
    assert set(found["slide_id"].to_pylist()) == {"c/b"} and found.num_rows == 100
    assert lake.embeddings.remove("m-v1") > 0 and lake.embeddings.names() == []
