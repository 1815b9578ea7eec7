"""What cannot be trained is refused in one sentence before anything is started: no Ray, no checkpoint."""

from __future__ import annotations

import dataclasses
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.errors import HistolakeError, ModelError, SplitError, UsageError
from histolake.platform.export import ExportSpec, export
from histolake.platform.lake import Snapshot
from histolake.platform.splits import Split
from histolake.platform.storage import Location
from histolake.platform.tracking import TrackingSettings
from histolake.training.loop import TrainPlan, fit
from histolake.training.loop.checkpoints import save_state
from histolake.training.models import build_encoder, save_model
from histolake.training.recipes import Recipe, find_recipe, with_overrides
from histolake.training.run import train
from histolake.training.tokenizers import make_tokenizer

SPLIT = Split.named(train=["gen/A", "gen/B"], validation=["gen/C"])
Ask = Callable[..., None]


@pytest.fixture
def ask(workplace: Path, snapshot: Snapshot, micro: Recipe, cluster: ClusterSettings) -> Ask:
    """Asks for a training that must be refused, and looks that nothing was begun."""

    def refused(
        error: type[HistolakeError], told: str, recipe: Recipe = micro, split: Split = SPLIT, **how: Any
    ) -> None:
        tracking = TrackingSettings(uri=f"sqlite:///{workplace}/runs.db")
        with pytest.raises(error, match=told) as caught:
            train(recipe, snapshot, split, tracking=tracking, cluster=cluster, storage=str(workplace / "kept"), **how)
        assert "\n" not in str(caught.value), "one sentence"
        assert not ray.is_initialized() and not (workplace / "kept").exists()

    return refused


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["coca-tny"], "There is no recipe 'coca-tny' (did you mean 'coca-tiny'?); `histolake recipes` lists them."),
        (["coca-tiny", "--set", "step=4"], "The recipe coca-tiny has no value 'step' (did you mean 'steps'?)."),
        (
            ["coca-tiny", "--set", "model.embed_dimm=4"],
            "has no value 'model.embed_dimm' (did you mean 'model.embed_dim'?)",
        ),
        (["coca-tiny", "--set", "lr=fast"], "lr is 'fast'; it must be of the type float, as 0.0005 is."),
        (["coca-tiny", "--set", "lr"], "--set is 'lr'; write key=value, such as --set lr=0.0005."),
        (["coca-tiny", "--set", "feed=shards"], "feed=shards and shards=FOLDER (or its URL) go together"),
        (["coca-tiny", "--set", "publish=best"], "validate_every must say how often the validation side is looked at"),
    ],
)
def test_names_and_values_that_are_not_known(words: list[str], told: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "histolake.platform", "train", *words, "--lake", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_sides_and_batches(ask: Ask, micro: Recipe) -> None:
    def changed(**values: Any) -> Recipe:
        return dataclasses.replace(micro, **values)

    ask(UsageError, "48 pairs to train on, fewer than one global batch of 64", changed(global_batch=64))
    ask(UsageError, "cannot be divided among 3 workers", workers=3)
    ask(UsageError, "0 workers cannot train", workers=0)
    ask(SplitError, "gen/X", split=Split.named(train=["gen/X"]))
    ask(SplitError, "leaks", split=Split.named(train=["gen/A"], validation=["gen/B"]))
    ask(UsageError, "training side of the split has no slides", split=Split.named(train=["gen/D"]))
    ask(UsageError, "training side of the split has no slides", where="patient = 'P2'")
    best = changed(validate_every=4, publish="best")
    ask(UsageError, "the validation side of the split has no slides to judge by", best, Split.named(train=["gen/A"]))


@pytest.mark.parametrize(
    ("recipe", "changes", "told"),
    [
        ("coca-tiny", {"model.text_heads": "7"}, "A configuration of coca cannot be used: .*num_heads"),
        ("st-align", {}, "The image encoder 'uni' needs its weights, and no file is named"),
        ("st-align-tiny", {"model.image_encoder": "unii"}, "unii"),
        (
            "st-align-tiny",
            {"model.gene_encoder": "vector", "model.vector_table": "scgpt"},
            "no .*'scgpt'|scgpt.* is not",
        ),
    ],
)
def test_models_that_cannot_be_built(ask: Ask, recipe: str, changes: Mapping[str, str], told: str) -> None:
    wanted = with_overrides(find_recipe(recipe), {"global_batch": "8", "genes": "4", **changes})
    ask(HistolakeError, told, wanted, workers=1)


def test_weights_of_another_architecture_or_tokenizer(ask: Ask, micro: Recipe, tmp_path: Path) -> None:
    theirs = build_encoder({**micro.model, "image_column": "niche_image", "embed_dim": 64})
    torch.save(theirs.coca.state_dict(), tmp_path / "wide.pt")
    ask(ModelError, "of another architecture than", dataclasses.replace(micro, weights=str(tmp_path / "wide.pt")))
    ask(ModelError, "There is no checkpoint file", dataclasses.replace(micro, weights=str(tmp_path / "none.pt")))
    tokenizer = make_tokenizer("gene", micro.context, ["EPCAM", "VIM"])
    genes = {**micro.model, "image_column": "niche_image", "tokenizer": "gene", "vocab_size": tokenizer.vocab_size}
    card = {"embed_dim": 32, "image_column": "niche_image", "image_px": 28, "tokenizer": "gene", "config": genes}
    save_model(tmp_path / "genes", build_encoder(genes), card | {"context": 76, "tokenizer_card": tokenizer.card()})
    ask(ModelError, "tokenizer", dataclasses.replace(micro, weights=str(tmp_path / "genes")))


def test_shards_of_other_slides(ask: Ask, micro: Recipe, snapshot: Snapshot, tmp_path: Path) -> None:
    def fed_by(image: str, slides: tuple[str, ...]) -> Recipe:
        name = f"{image}-{len(slides)}"
        to = Location.parse(tmp_path / name)
        export(snapshot, ExportSpec(name=name, image=image, slide_ids=slides, rows_per_shard=8), to)
        return dataclasses.replace(micro, image_column="spot_image", feed="shards", shards=to.uri)

    ask(UsageError, "hold 1 slides .* trains on 2 .* of which 1 are the same", fed_by("spot", ("gen/A",)))
    ask(UsageError, "hold niche_image and niche_sentence and nothing else", fed_by("niche", ("gen/A", "gen/B")))
    ask(UsageError, "no manifest.json", dataclasses.replace(micro, feed="shards", shards=str(tmp_path / "nowhere")))


def test_a_disk_without_room(ask: Ask, micro: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    few = shutil._ntuple_diskusage(total=10**6, used=10**6 - 10, free=10)  # type: ignore[attr-defined]  # what it gives
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: few)
    ask(ModelError, r"3 checkpoints of 0\.0 GB do not fit into the 0\.0 GB that are free", micro)


def test_a_checkpoint_that_the_disk_does_not_take(micro: Recipe, tmp_path: Path) -> None:
    encoder = build_encoder({**micro.model, "image_column": "niche_image"})
    optimizer = torch.optim.AdamW(encoder.parameters())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(ModelError, match=r"checkpoint after step 7 could not be written .* make room"):
            save_state(tmp_path, step=7, encoder=encoder, optimizer=optimizer, config=micro.model)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_more_workers_than_slots(micro: Recipe, snapshot: Snapshot, cluster: ClusterSettings, tmp_path: Path) -> None:
    plan = TrainPlan(
        recipe=dataclasses.replace(micro, feed="ray", feed_workers=2),
        lake_uri=snapshot.lake.uri,
        lake_version=snapshot.version,
        slide_ids=("gen/A",),
        steps=1,
        workers=2,
        run_name="crowd",
        storage=str(tmp_path),
    )
    with start_ray(cluster):
        with pytest.raises(UsageError, match=r"2 workers and 4 actors that decode take 6 CPU slots and .* have 4"):
            fit(plan, None)
        away = dataclasses.replace(plan.recipe, feed_workers=1, feed_slot="decode")
        with pytest.raises(UsageError, match=r"take 2 decode slots and .* have 0"):
            fit(dataclasses.replace(plan, recipe=away), None)
