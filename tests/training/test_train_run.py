"""Training on real Ray Train workers, tracked and registered in a real MLflow."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake import Lake, Snapshot
from histolake.platform.splits import Selection, Split
from histolake.platform.tracking import TrackingSettings, connect, models_that_saw
from histolake.training.evidence import code_commit
from histolake.training.inputs import Picture
from histolake.training.loop import TrainPlan, fit
from histolake.training.models import load_model
from histolake.training.progress import Watcher, make_board
from histolake.training.reading import PairReader, ReadOptions
from histolake.training.recipes import Recipe
from histolake.training.registry import lineage, list_models, promote, resolve_model
from histolake.training.run import train
from histolake.training.sides import choose_sides

SPLIT = Split.named(train=["gen/A", "gen/B"], validation=["gen/C"], test=["gen/D"])


def test_a_recipe_becomes_a_registered_model_that_knows_its_slides(
    workplace: Path, snapshot: Snapshot, micro: Recipe, cluster: ClusterSettings
) -> None:
    said: list[str] = []
    tracking = TrackingSettings(uri=f"sqlite:///{workplace}/runs.db")
    asked = {"tracking": tracking, "cluster": cluster, "where": "slide_id <> 'gen/X'"}
    trained = train(micro, snapshot, SPLIT, aliases=("fresh",), say=said.append, **asked)

    assert trained.train_steps == 12 and trained.train_pairs == 48
    assert trained.loss_last < trained.loss_first
    assert trained.genes_surviving_tokenizer == pytest.approx(8.0)
    assert any("step 12/12" in line for line in said)

    # The registry: aliases, figures, lineage.
    (row,) = list_models(tracking)
    assert (row["name"], row["version"], row["aliases"]) == ("omiclip", 1, "coca-micro,fresh")
    assert row["lake_version"] == snapshot.version and row["simulated"]
    assert row["where"] == trained.where == "slide_id <> 'gen/X'"
    assert row["validation_recall_at_10pct"] == pytest.approx(trained.validation_recall_at_10pct)
    traced = {slide["slide_id"]: slide for slide in lineage("omiclip@fresh", tracking)}
    assert {slide: found["side"] for slide, found in traced.items()} == {
        "gen/A": "train",
        "gen/B": "train",
        "gen/C": "validation",
        "gen/D": "test",
    }
    assert traced["gen/A"]["source"] == "generated:gen/A" and traced["gen/A"]["accession"] == "GSE1"
    assert models_that_saw(tracking, snapshot.lake.uri, ["gen/C"]) == ["omiclip/1 (validation)"]
    assert models_that_saw(tracking, snapshot.lake.uri, ["gen/elsewhere"]) == []
    promote(tracking, "omiclip", 1)
    resolved = resolve_model("models:/omiclip@champion", tracking)
    assert (resolved.name, resolved.version, resolved.uri) == ("omiclip", "1", "models:/omiclip/1")
    with pytest.raises(ModelError, match="no model"):
        resolve_model("models:/omiclip@nobody", tracking)

    check_folder(resolved.path, snapshot)
    check_run(tracking, trained.run_id)
    check_evidence(tracking, trained.run_id, resolved.path, snapshot)
    check_generic_model(resolved.uri, resolved.path, snapshot)

    runner = CliRunner()
    listed = runner.invoke(app, ["models", "--json", "--tracking", tracking.uri])
    assert json.loads(listed.stdout)[0]["aliases"] == "champion,coca-micro,fresh"
    shown = runner.invoke(app, ["models", "lineage", "omiclip/1", "--json", "--tracking", tracking.uri])
    assert len(json.loads(shown.stdout)) == 4
    lake = ["--lake", snapshot.lake.uri, "--tracking", tracking.uri, "--json"]
    embedded = json.loads(runner.invoke(app, ["embed", "omiclip@fresh", "--workers", "0", *lake]).stdout)
    assert (embedded[0]["table"], embedded[0]["model"], embedded[0]["pairs"]) == ("omiclip-v1", "models:/omiclip/1", 96)
    check_embeddings(resolved.path, snapshot)


def check_embeddings(folder: Path, snapshot: Snapshot) -> None:
    """The vectors of the whole lake begin with those that the model was published with."""
    reference = pq.read_table(folder / "reference" / "reference.parquet", columns=["pair_id", "image_vector"])
    rows = snapshot.lake.embeddings.open("omiclip-v1").dataset().to_table().to_pylist()
    found = {row["pair_id"]: row["vector"] for row in rows}
    for pair_id, vector in zip(reference["pair_id"].to_pylist(), reference["image_vector"].to_pylist(), strict=True):
        np.testing.assert_allclose(found[pair_id], vector, atol=1e-5)


def check_folder(folder: Path, snapshot: Snapshot) -> None:
    """The folder holds what serving reads, and the reference's vectors are the model's own."""
    model = load_model(folder)
    assert model.card["lake"] == {"uri": snapshot.lake.uri, "version": snapshot.version}
    assert model.card["where"] == "slide_id <> 'gen/X'"
    assert model.card["image_um"] == 500.0 and model.card["simulated"]
    reference = pq.read_table(folder / "reference" / "reference.parquet")
    assert reference.num_rows == 48
    images = [p for b in snapshot.pairs(["niche_image"], slide_ids=["gen/A"]) for p in b["niche_image"].to_pylist()]
    vectors = np.stack(reference["image_vector"].to_numpy()[: len(images)])
    np.testing.assert_allclose(vectors, model.embed_images(images), atol=1e-5)
    genes = json.loads((folder / "reference" / "genes.json").read_text())
    assert "EPCAM" in genes["symbols"] and len(genes["symbols"]) == len(genes["gene_ids"])
    assert len(reference["expression"][0]) == len(genes["symbols"])
    slides = json.loads((folder / "reference" / "slides.json").read_text())
    assert [slide["side"] for slide in slides] == ["train", "train", "validation", "test"]
    predict = json.loads((folder / "reference" / "calibration.json").read_text())["predict"]
    assert predict["side"] == "validation" and predict["top_k"] >= 1 and predict["temperature"] > 0


def check_run(tracking: TrackingSettings, run_id: str) -> None:
    """The run holds every step, the parameters and the lake's version."""
    client = connect(tracking)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run_id, "loss")] == list(range(12))
    assert run.data.params["lr"] == "0.003" and run.data.params["model.embed_dim"] == "32"
    assert json.loads(run.data.tags["histolake.split"]) == SPLIT.to_dict()
    assert run.data.tags["histolake.where"] == run.data.params["where"] == "slide_id <> 'gen/X'"
    assert run.data.metrics["genes_surviving_tokenizer"] == pytest.approx(8.0)
    assert run.data.tags["mlflow.source.git.commit"].partition("-")[0] == (code_commit() or "").partition("-")[0]
    at_each_step = ("negatives", "scale", "grad_norm", "waiting_share", "tflops", "host_gb")
    assert all(len(client.get_metric_history(run_id, name)) == 12 for name in at_each_step)
    assert 0.1 < run.data.metrics["host_gb"] < 4 and "mfu" not in run.data.metrics, "no CPU's peak is known"


def check_evidence(tracking: TrackingSettings, run_id: str, folder: Path, snapshot: Snapshot) -> None:
    """What was read is an MLflow dataset a side, and the card for people says it in words."""
    client = connect(tracking)
    read = {}
    for each in client.get_run(run_id).inputs.dataset_inputs:
        source = json.loads(each.dataset.source)
        assert source["lake"] == snapshot.lake.uri and source["version"] == snapshot.version
        assert source["where"] == "slide_id <> 'gen/X'" and source["split"] == SPLIT.to_dict()
        read[each.tags[0].value] = json.loads(each.dataset.profile)
    assert read == {
        "training": {"pairs": 48, "slides": 2},
        "validation": {"pairs": 24, "slides": 1},
        "testing": {"pairs": 24, "slides": 1},
    }
    text = (folder / "MODEL_CARD.md").read_text()
    assert client.get_model_version("omiclip", "1").description == text
    for words in (
        "# omiclip: coca-micro",
        "Research use only",
        "simulated",
        "`slide_id <> 'gen/X'` is true",
        "| train | 2 | 1 | 1 | 48 |",
        "It saw 1 known patients",
        "the catalogue states no licence",
        "recall at 10pct",
        f"Run {run_id}",
        "histolake 0.1.0",
    ):
        assert words in text, words


def check_generic_model(uri: str, folder: Path, snapshot: Snapshot) -> None:
    """MLflow's own loader gives the same vectors."""
    import mlflow

    generic = mlflow.pyfunc.load_model(uri)
    answered = generic.predict(pd.DataFrame({"sentence": ["EPCAM KRT18", "VIM"]}))
    expected = load_model(folder).embed_sentences(["EPCAM KRT18", "VIM"])
    np.testing.assert_allclose(np.array(answered["vector"].tolist()), expected, atol=1e-5)


def test_a_resumed_run_and_the_undisturbed_one_have_the_same_losses(
    workplace: Path, snapshot: Snapshot, micro: Recipe, cluster: ClusterSettings
) -> None:
    def losses(recipe: Recipe, folder: str) -> dict[int, float]:
        seen: dict[int, float] = {}
        plan = TrainPlan(
            recipe=recipe,
            lake_uri=snapshot.lake.uri,
            lake_version=snapshot.version,
            slide_ids=("gen/A", "gen/B"),
            steps=recipe.steps,
            workers=2,
            run_name="run",
            storage=str(workplace / folder),
        )
        board = make_board()
        with Watcher(board, lambda rows: seen.update({row["step"]: row["loss"] for row in rows})):
            fit(plan, board)
        return seen

    with start_ray(cluster):
        whole = losses(micro, "whole")
        first = losses(dataclasses.replace(micro, stop_after=8), "cut")
        second = losses(micro, "cut")
    assert sorted(whole) == list(range(12))
    assert sorted(first) == list(range(8)) and sorted(second) == list(range(8, 12))
    assert first | second == whole


def test_a_loss_that_is_no_number_ends_the_run_with_one_sentence(
    workplace: Path, snapshot: Snapshot, micro: Recipe, cluster: ClusterSettings
) -> None:
    tracking = TrackingSettings(uri=f"sqlite:///{workplace}/runs.db")
    wild = dataclasses.replace(micro, lr=1e30, warmup_steps=0)
    with pytest.raises(ModelError, match="not a number at step"):
        train(wild, snapshot, SPLIT, tracking=tracking, cluster=cluster, max_failures=0)
    assert list_models(tracking) == []


def test_a_side_without_slides_has_no_pairs(snapshot: Snapshot) -> None:
    assert Selection(snapshot, []).n_pairs == 0 and list(Selection(snapshot, []).pairs(["pair_id"])) == []
    assert snapshot.chunks([]) == []


def test_slides_of_low_resolution_train_only_when_asked_for(snapshot: Snapshot) -> None:
    split = Split.named(train=["gen/A", "gen/D"], validation=["gen/C"])
    said: list[str] = []
    kept_out = choose_sides(snapshot, split, include_low_resolution=False, say=said.append)
    assert kept_out == {"gen/A": "train", "gen/C": "validation"} and "gen/D" in said[0]
    assert choose_sides(snapshot, split, include_low_resolution=True, say=said.append)["gen/D"] == "train"


def test_a_filter_leaves_slides_out_and_moves_none(tmp_path: Path, generated_lake: Callable[..., Lake]) -> None:
    licences = {
        "gen/A": "CC BY 4.0",
        "gen/B": "CC BY-NC 4.0",
        "gen/C": "Creative Commons Attribution 4.0",
        "gen/D": None,
    }
    slides = {
        slide_id: {"patient": slide_id, "licence": licence, "accession": f"GSE{n}"}
        for n, (slide_id, licence) in enumerate(licences.items())
    }
    snapshot = generated_lake(tmp_path / "lake", slides).at()
    split = Split.named(train=["gen/A", "gen/B"], validation=["gen/C"], test=["gen/D"])
    said: list[str] = []

    def sides(where: str | None, split: Split = split) -> dict[str, str]:
        return choose_sides(snapshot, split, include_low_resolution=False, where=where, say=said.append)

    assert sides("licence_id like 'CC-BY-4%'") == {"gen/A": "train", "gen/C": "validation"}
    assert said == ["2 of 4 slides left out by the filter \"licence_id like 'CC-BY-4%'\": gen/B, gen/D"]
    assert sides("licence like 'CC BY%' or accession = 'GSE3'") == {"gen/A": "train", "gen/B": "train", "gen/D": "test"}
    drawn = Split.by_unit({"train": 0.5, "test": 0.5}, seed=3)
    everything = sides(None, drawn)
    kept = sides("accession in ('GSE0', 'GSE2')", drawn)
    assert kept == {slide_id: everything[slide_id] for slide_id in ("gen/A", "gen/C")}
    with pytest.raises(UsageError, match="'licnce', which is no column"):
        sides("licnce = 'x'")

    # The order of what is left is a pure function of it: leaving a slide out by the filter or by its name is the same.
    def order(slides: list[str]) -> list[list[bytes]]:
        picture = Picture(column="niche_image", px=28)
        reader = PairReader(Selection(snapshot, slides), (picture,), ReadOptions(global_batch=8, seed=1))
        return [reader.batch(step).pair_ids for step in range(4)]

    filtered = [slide_id for slide_id, side in sides("patient <> 'gen/B'").items() if side == "train"]
    assert filtered == ["gen/A"] and order(filtered) == order(["gen/A"]) != order(["gen/B"])


def test_slides_without_an_image_are_on_no_side(tmp_path: Path, generated_lake: Callable[..., Lake]) -> None:
    flags = {"gen/A": [], "gen/B": ["image: none"], "gen/C": ["image: none", "low_resolution"]}
    lake = generated_lake(tmp_path / "lake", {s: {"patient": s, "flags": f} for s, f in flags.items()})
    said: list[str] = []
    split = Split.named(train=["gen/A", "gen/B"], validation=["gen/C"])
    assert choose_sides(lake.at(), split, include_low_resolution=True, say=said.append) == {"gen/A": "train"}
    assert said == ["left out, for they have no image: gen/B, gen/C"]
