"""Embedding a whole lake: the model's own numbers, once each, whatever dies or is forgotten on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.forgetting import forget
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.schemas import REJECTIONS
from histolake.training.embed_pool import Crew, process_crew, ray_crew
from histolake.training.embedding import EmbedOutcome, embed_lake, model_uri, table_name
from histolake.training.models import Model, build_encoder, load_model, save_model
from histolake.training.models.files import model_digest
from histolake.training.recipes import Recipe
from histolake.training.registry import ResolvedModel

ALONE = Crew(workers=1, device="cpu")
Maker = Callable[..., Lake]
SLIDES: Mapping[str, Mapping[str, object]] = {f"gen/{name}": {"spot_um": 55.0} for name in "ABCDE"}


@pytest.fixture(scope="module")
def folder(micro: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CoCa with random weights."""
    import torch

    torch.manual_seed(3)
    card = {
        "embed_dim": micro.model["embed_dim"],
        "image_column": "spot_image",
        "image_um": 55.0,
        "image_px": micro.model["image_px"],
        "tokenizer": micro.tokenizer,
        "context": micro.context,
        "config": dict(micro.model) | {"image_column": "spot_image"},
    }
    return save_model(tmp_path_factory.mktemp("model") / "tiny", build_encoder(card["config"]), card)


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load_model(folder)


def named(folder: Path) -> ResolvedModel:
    return ResolvedModel(path=folder, name="tiny", version="4", uri="models:/tiny/4")


def here(lake: Lake, folder: Path, **asked: object) -> EmbedOutcome:
    """Embed the newest version in this process."""
    return embed_lake(lake.at(), named(folder), ALONE, ray=False, **asked)  # type: ignore[arg-type]


def vectors(lake: Lake, name: str = "tiny-v4") -> dict[bytes, tuple[object, object]]:
    """Both vectors by pair; fails where a pair is there twice."""
    rows = lake.embeddings.open(name).dataset().to_table().to_pylist()
    found = {row["pair_id"]: (row["vector"], row["sentence_vector"]) for row in rows}
    assert len(found) == len(rows)
    return found


def expected(lake: Lake, model: Model) -> dict[bytes, tuple[np.ndarray, np.ndarray]]:
    """What the model says of every pair, asked directly."""
    rows = pa.Table.from_batches(lake.at().pairs(["pair_id", "spot_image", "sentence"])).to_pydict()
    told = model.embed_images(rows["spot_image"]), model.embed_sentences(rows["sentence"])
    return dict(zip(rows["pair_id"], zip(*told, strict=True), strict=True))


def assert_same(lake: Lake, model: Model, name: str = "tiny-v4") -> None:
    found, wanted = vectors(lake, name), expected(lake, model)
    assert found.keys() == wanted.keys()
    for pair_id, pair in wanted.items():
        for side in (0, 1):
            np.testing.assert_allclose(found[pair_id][side], pair[side], atol=1e-5)


def test_a_lake_is_embedded_once_and_what_is_added_later_joins(
    tmp_path: Path, generated_lake: Maker, folder: Path, model: Model
) -> None:
    lake = generated_lake(tmp_path / "lake", {name: SLIDES[name] for name in ("gen/A", "gen/B")})
    told: list[tuple[str, int, int]] = []
    first = here(lake, folder, tell=lambda *news: told.append(news))
    assert (first.table, first.slides, first.embedded, first.pairs) == ("tiny-v4", 2, 2, 48)
    assert ("embedding pairs", 48, 48) in told and first.index.startswith("none")
    assert_same(lake, model)
    rows = lake.embeddings.open("tiny-v4").dataset().to_table(columns=["slide_id", "ingest_id"])
    assert set(rows["ingest_id"].to_pylist()) == set(lake.at().slides()["ingest_id"].to_pylist())

    again = here(lake, folder)
    assert (again.embedded, again.skipped, again.pairs) == (0, 2, 0)
    generated_lake(tmp_path / "lake", {"gen/C": {"spot_um": 100.0}})
    later = here(lake, folder, batch=7)
    assert (later.embedded, later.skipped, later.other_width) == (1, 2, 1)
    assert_same(lake, model)
    assert check(lake) == [] and vacuum(lake).embeddings == 0
    some = embed_lake(lake.at(1), ResolvedModel(path=folder, name="", version="", uri=str(folder)), ALONE, ray=False)
    assert some.table == f"tiny-{model_digest(folder)[:12]}" and some.embedded == 2 and some.lake_version == 1


def test_a_lake_in_an_object_store(bucket: str, generated_lake: Maker, folder: Path, model: Model) -> None:
    lake = generated_lake(f"{bucket}/lake", {name: SLIDES[name] for name in ("gen/A", "gen/B")})
    assert here(lake, folder).embedded == 2 and here(lake, folder).skipped == 2
    assert_same(lake, model)
    forget(lake, slide_id="gen/A")
    assert lake.embeddings.ingests("tiny-v4") == set(lake.at().slides()["ingest_id"].to_pylist())
    assert check(lake) == [] and lake.root.join("leases").list() == []


def test_half_an_ingest_is_replaced(tmp_path: Path, generated_lake: Maker, folder: Path, model: Model) -> None:
    lake = generated_lake(tmp_path / "lake", {name: SLIDES[name] for name in ("gen/A", "gen/B")})
    here(lake, folder)
    row = lake.at().slides().to_pylist()[0]
    table = lake.embeddings.open("tiny-v4")
    wrong, every = np.ones((5, 32), np.float32), np.ones(5, bool)
    table.append([table.writer(row["ingest_id"], "gen/A").write([b"x" * 16] * 5, wrong, every, wrong, every)])
    assert len(check(lake)) == 1
    outcome = here(lake, folder)
    assert (outcome.embedded, outcome.skipped) == (1, 1)
    assert_same(lake, model)
    assert check(lake) == []


def test_pairs_without_a_picture_or_a_sentence_have_no_vector(tmp_path: Path, folder: Path, snapshot: object) -> None:
    source: Lake = snapshot.lake  # type: ignore[attr-defined]
    rows = pa.Table.from_batches(source.at().pairs(source.pairs.open().schema.names, slide_ids=["gen/A"]))
    columns = rows.to_pydict()
    columns["spot_image"][1] = None
    columns["sentence"][2], columns["sentence"][3] = None, "  "
    lake = Lake.open(tmp_path / "lake", create=True)
    publish(lake, "gen/holes", pa.Table.from_pydict(columns, schema=rows.schema))
    outcome = here(lake, folder)
    assert (outcome.pairs, outcome.without_image, outcome.without_sentence) == (24, 1, 2)
    found = list(vectors(lake).values())
    assert [row for row, pair in enumerate(found) if pair[0] is None] == [1]
    assert [row for row, pair in enumerate(found) if pair[1] is None] == [2, 3]


def publish(lake: Lake, slide_id: str, rows: pa.Table) -> None:
    attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="s", source="generated")
    nothing = REJECTIONS.empty_table().drop_columns(["ingest_id", "slide_id"])
    attempt.stage({"cohort": "gen", "n_spots": rows.num_rows}, [attempt.pairs.write(rows)], nothing)
    lake.publish([attempt])


def test_a_slide_that_cannot_be_embedded_stops_no_other(
    tmp_path: Path, generated_lake: Maker, folder: Path, snapshot: object
) -> None:
    lake = generated_lake(tmp_path / "lake", {"gen/A": {}, "gen/C": {}})
    source: Lake = snapshot.lake  # type: ignore[attr-defined]
    rows = pa.Table.from_batches(source.at().pairs(source.pairs.open().schema.names, slide_ids=["gen/B"]))
    columns = rows.to_pydict()
    columns["spot_image"][5] = b"no picture"
    publish(lake, "gen/B", pa.Table.from_pydict(columns, schema=rows.schema))
    command = ["embed", str(folder), "--lake", lake.uri, "--workers", "0", "--json"]
    ended = CliRunner().invoke(app, command)
    assert ended.exit_code == 1
    (row,) = json.loads(ended.stdout)
    assert (row["embedded"], row["failed"], row["pairs"]) == (2, 1, 48)
    assert "A picture of gen/B (rows 0 to 24): 10 bytes are no JPEG or PNG" in row["problems"]
    assert "gen/B: A picture" in ended.stderr
    listed = json.loads(CliRunner().invoke(app, ["embed", "--list", "--lake", lake.uri, "--json"]).stdout)
    assert [(r["rows"], r["slides"], r["of_slides"], r["index"]) for r in listed] == [(48, 2, 3, None)]
    dropped = CliRunner().invoke(app, ["embed", "--drop", listed[0]["table"], "--lake", lake.uri, "--json"])
    assert json.loads(dropped.stdout)[0]["bytes"] == listed[0]["bytes"] and lake.embeddings.names() == []


def test_a_slide_forgotten_meanwhile_leaves_nothing(tmp_path: Path, generated_lake: Maker, folder: Path) -> None:
    lake = generated_lake(tmp_path / "lake", SLIDES)
    gone: list[str] = []

    def forget_one(what: str, done: int, total: int) -> None:
        if what == "embedding pairs" and not gone:
            gone.extend(["gen/A", "gen/D"])  # the one that was just embedded, and one that is to come
            for slide_id in gone:
                forget(Lake.open(lake.uri), slide_id=slide_id)

    outcome = here(lake, folder, tell=forget_one)
    assert (outcome.embedded, outcome.forgotten, outcome.failed) == (3, 2, 0)
    assert lake.embeddings.ingests("tiny-v4") == set(lake.at().slides()["ingest_id"].to_pylist())
    vacuum(lake, clock_slack_s=-1)
    for path in Path(lake.uri).rglob("*"):
        assert path.is_dir() or b"gen/A" not in path.read_bytes()


def test_two_runs_at_once_share_the_slides(tmp_path: Path, generated_lake: Maker, folder: Path, model: Model) -> None:
    lake = generated_lake(tmp_path / "lake", {f"gen/{number}": {} for number in range(12)})
    both = threading.Barrier(2)
    outcomes: list[EmbedOutcome] = []

    def run() -> None:
        own = Lake.open(lake.uri)
        both.wait()
        outcomes.append(here(own, folder))

    runs = [threading.Thread(target=run) for _ in range(2)]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert sum(outcome.embedded for outcome in outcomes) == 12 and sum(outcome.pairs for outcome in outcomes) == 288
    assert all(outcome.embedded + outcome.skipped + outcome.elsewhere == 12 for outcome in outcomes)
    assert_same(lake, model)
    assert lake.root.join("leases").list() == []


# Runs the command in a process that kills itself right after the nth call of a method.
KILLED = """
import importlib, os, signal, sys
from histolake.platform.cli import main
owner, path, nth = sys.argv[1], sys.argv[2].split("."), int(sys.argv[3])
kind = getattr(importlib.import_module(owner), path[0])
original, calls = getattr(kind, path[1]), []
def dying(*args, **kwargs):
    answer = original(*args, **kwargs)
    calls.append(1)
    if len(calls) == nth:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer
setattr(kind, path[1], dying)
sys.argv = ["histolake", *sys.argv[4:]]
main()
"""


@pytest.mark.parametrize(
    ("owner", "method", "nth", "whole"),
    [
        ("histolake.platform.lake.embeddings.table", "EmbeddingsWriter.write", 3, 2),
        ("histolake.platform.lake.embeddings.table", "EmbeddingTable.append", 2, 2),
    ],
)
def test_a_run_that_was_killed_is_taken_up(
    owner: str, method: str, nth: int, whole: int, tmp_path: Path, generated_lake: Maker, folder: Path, model: Model
) -> None:
    lake = generated_lake(tmp_path / "lake", SLIDES)
    words = ["embed", str(folder), "--lake", lake.uri, "--workers", "0"]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, owner, method, str(nth), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    assert killed.returncode == -9, killed.stderr
    (name,) = lake.embeddings.names()
    assert len(lake.embeddings.ingests(name)) == whole
    assert len(lake.root.join("leases").list()) == 2  # of the run, and of the slide it died at
    found = embed_lake(lake.at(), ResolvedModel(path=folder, name="", version="", uri=str(folder)), ALONE, ray=False)
    assert (found.table, found.embedded, found.skipped) == (name, 5 - whole, whole)
    assert_same(lake, model, name)
    vacuum(lake, clock_slack_s=-1)
    assert lake.root.join("leases").list() == [] and check(lake) == []
    files = {file.path for part in lake.embeddings.open(name).dataset().get_fragments() for file in part.data_files()}
    on_disk = {path.name for path in (Path(lake.uri) / "embeddings" / f"{name}.lance" / "data").iterdir()}
    assert on_disk == files


def test_actors_on_ray_give_the_same_numbers(
    tmp_path: Path, generated_lake: Maker, folder: Path, model: Model, cluster: ClusterSettings
) -> None:
    lake = generated_lake(tmp_path / "lake", SLIDES)
    with start_ray(cluster):
        crew = ray_crew("auto", 2)
        assert (crew.workers, crew.device, crew.gpus) == (2, "cpu", 0.0)
        with pytest.raises(UsageError, match="Ray sees no GPU"):
            ray_crew("cuda", None)
        outcome = embed_lake(lake.at(), named(folder), crew)
        assert (outcome.embedded, outcome.pairs, outcome.problems) == (5, 120, ())
        assert embed_lake(lake.at(), named(folder), crew).skipped == 5
    assert_same(lake, model)


def test_a_model_is_named_as_a_person_would(folder: Path, tmp_path: Path, micro: Recipe) -> None:
    assert model_uri("omiclip@champion") == "models:/omiclip@champion"
    assert model_uri("omiclip/3") == "models:/omiclip/3"
    assert model_uri("models:/omiclip/3") == "models:/omiclip/3" and model_uri(str(folder)) == str(folder)
    assert table_name(named(folder), "d" * 64) == "tiny-v4"
    odd = ResolvedModel(path=folder, name="a model, odd", version="1", uri="")
    assert table_name(odd, "d" * 64) == "a_model_odd-v1"
    ended = CliRunner().invoke(app, ["embed", str(folder), "--lake", str(tmp_path), "--device", "tpu"])
    assert isinstance(ended.exception, UsageError) and "--device" in str(ended.exception)

    card = json.loads((folder / "model.json").read_text())
    other = save_model(tmp_path / "other", build_encoder(card["config"]), card)
    assert model_digest(other) != model_digest(folder) == model_digest(folder)
    lake = Lake.open(tmp_path / "lake", create=True)
    here(lake, folder)
    with pytest.raises(ModelError, match="with other weights"):
        here(lake, other)
    assert process_crew("cpu").threads == os.cpu_count()
