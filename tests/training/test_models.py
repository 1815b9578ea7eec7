"""Both architectures: a folder gives back the same numbers, whatever the batch, and names what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake import Snapshot
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.models.files import config_defaults
from histolake.training.recipes import RECIPES, Recipe, find_recipe, with_overrides
from histolake.training.tokenizers import BpeTokenizer


@pytest.fixture(scope="module")
def pairs(snapshot: Snapshot) -> tuple[list[bytes], list[str]]:
    batch = next(snapshot.pairs(["niche_image", "sentence"], batch_rows=40))
    return batch["niche_image"].to_pylist(), batch["sentence"].to_pylist()


def card_of(recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "embed_dim": recipe.model["embed_dim"],
        "image_px": recipe.model["image_px"],
        "tokenizer": "bpe",
        "context": recipe.context,
        "config": dict(recipe.model),
    }


def saved(folder: Path, recipe: Recipe) -> Path:
    torch.manual_seed(0)
    return save_model(folder, build_encoder(recipe.model), card_of(recipe))


def clip_recipe() -> Recipe:
    return with_overrides(find_recipe("clip-lite0"), {"model.image_px": "32", "model.text_width": "16"})


@pytest.mark.parametrize("name", ["coca", "clip-lite"])
def test_a_folder_gives_the_same_unit_rows_in_any_batch(
    tmp_path: Path, micro: Recipe, pairs: tuple[list[bytes], list[str]], name: str
) -> None:
    recipe = micro if name == "coca" else clip_recipe()
    model = load_model(saved(tmp_path, recipe))
    images, sentences = pairs
    for embed, inputs in ((model.embed_images, images), (model.embed_sentences, sentences)):
        whole = embed(inputs)  # type: ignore[operator]  # mypy joins the two signatures to object
        assert whole.shape == (len(inputs), recipe.model["embed_dim"]) and whole.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
        single = np.concatenate([embed([one]) for one in inputs[:5]])  # type: ignore[operator]
        np.testing.assert_allclose(single, whole[:5], atol=1e-5)
        assert embed([]).shape == (0, recipe.model["embed_dim"])  # type: ignore[operator]


def test_coca_is_open_clips_and_its_contrastive_half_gives_the_same_vectors(micro: Recipe) -> None:
    encoder = build_encoder(micro.model).eval()
    image_BHWC = torch.randint(0, 255, (3, 28, 28, 3), dtype=torch.uint8)
    tokens_BL = torch.from_numpy(BpeTokenizer()(["EPCAM KRT18", "COL1A1", "VIM ACTB"]))
    with torch.no_grad():
        ours = encoder({"niche_image": image_BHWC, "sentence": tokens_BL})
        theirs = encoder.coca(encoder.normalise(image_BHWC), tokens_BL)
    assert set(ours) == {"image", "text", "scale"}
    torch.testing.assert_close(ours["image"], theirs["image_features"])
    torch.testing.assert_close(ours["text"], theirs["text_features"])
    torch.testing.assert_close(ours["scale"], theirs["logit_scale"])


def test_every_weight_that_is_trained_has_a_gradient(micro: Recipe) -> None:
    for recipe in (micro, clip_recipe()):
        encoder = build_encoder(recipe.model).train()
        images = torch.randint(0, 255, (4, recipe.model["image_px"], recipe.model["image_px"], 3), dtype=torch.uint8)
        tokens = torch.from_numpy(BpeTokenizer()(["VIM", "ACTB", "KRT18", "IGKC"]))
        vectors = encoder({"niche_image": images, "sentence": tokens})
        (vectors["scale"] * (vectors["image"] * vectors["text"]).sum()).backward()
        idle = [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
        assert idle == []


def test_warm_start_brings_the_packaged_weights_and_standardises() -> None:
    encoder: Any = build_encoder(clip_recipe().model)
    before = encoder.trunk.net._conv_stem.weight.clone()
    pictures = torch.randint(0, 255, (40, 32, 32, 3), dtype=torch.uint8)
    encoder.warm_start(pictures)
    assert not torch.equal(before, encoder.trunk.net._conv_stem.weight)
    read = (encoder.trunk(pictures) - encoder.centre_W) / encoder.spread_W
    assert read.mean(dim=0).abs().max() < 1e-3
    assert all(not module.training for module in encoder.train().trunk.modules())


def test_a_quarter_turn_of_a_picture_does_not_change_its_vector() -> None:
    encoder: Any = build_encoder(clip_recipe().model)
    encoder.warm_start(torch.randint(0, 255, (20, 32, 32, 3), dtype=torch.uint8))
    encoder.eval()
    pictures = torch.randint(0, 255, (4, 32, 32, 3), dtype=torch.uint8)
    turned = torch.rot90(pictures, 1, (1, 2))
    torch.testing.assert_close(encoder.encode_images(turned), encoder.encode_images(pictures), atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_named(tmp_path: Path, micro: Recipe) -> None:
    with pytest.raises(ModelError, match=r"no model\.json"):
        load_model(tmp_path)
    folder = saved(tmp_path / "m", micro)
    card = json.loads((folder / "model.json").read_text())
    for change, words in (
        ({"format_version": 9}, "version 9"),
        ({"config": {**card["config"], "image_width": 64}}, "another architecture"),
        ({"config": {**card["config"], "architecture": "vae"}}, "no architecture 'vae'"),
        ({"tokenizer": "words"}, "no tokenizer 'words'"),
        ({"context": 52}, "another tokenizer: the one asked for has context 52 and not 76"),
        ({"config": {**card["config"], "image_column": "he"}}, "column is 'he'; it must be spot_image or niche_image"),
    ):
        (folder / "model.json").write_text(json.dumps(card | change))
        with pytest.raises(ModelError, match=words):
            load_model(folder)
    with pytest.raises(ModelError, match="reads spot_image, but its encoder reads niche_image, sentence"):
        save_model(tmp_path / "n", build_encoder(micro.model), card | {"image_column": "spot_image"})
    (folder / "weights.safetensors").unlink()
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="no weights"):
        load_model(folder)


def test_recipes_can_be_built_and_a_wrong_key_names_the_nearest() -> None:
    for recipe in RECIPES.values():
        assert set(recipe.model) - {"architecture"} <= set(config_defaults(recipe.model["architecture"])), recipe.name
    for name in ("coca-tiny", "coca-tiny-genes", "clip-lite0", "st-align-tiny"):
        model = dict(RECIPES[name].model)
        encoder = build_encoder(model | ({"gene_ids": range(64)} if model["architecture"] == "st-align" else {}))
        assert encoder.embed_dim == model["embed_dim"] == 128
    changed = with_overrides(find_recipe("coca-tiny"), {"lr": "0.01", "model.image_layers": "2", "steps": "7"})
    assert (changed.lr, changed.model["image_layers"], changed.steps) == (0.01, 2, 7)
    for key, value, words in (
        ("stepps", "3", "did you mean 'steps'"),
        ("model.image_layer", "3", "did you mean 'model.image_layers'"),
        ("steps", "many", "of the type int"),
        ("steps", "0", "at least 1"),
        ("image_column", "he", "spot_image or niche_image"),
        ("model.vocab_size", "9", "no value 'model.vocab_size'"),
    ):
        with pytest.raises(UsageError, match=words):
            with_overrides(find_recipe("coca-tiny"), {key: value})
    with pytest.raises(UsageError, match="did you mean 'coca-tiny'"):
        find_recipe("coca-tinny")
