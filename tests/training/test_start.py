"""Where a run starts from: a published file, a model's folder; and what does not fit is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from histolake.platform.errors import ModelError
from histolake.training.loop.start import start_from
from histolake.training.models import build_encoder, save_model
from histolake.training.recipes import Recipe
from histolake.training.tokenizers import make_tokenizer


def encoder_of(recipe: Recipe, seed: int, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return build_encoder({**recipe.model, "image_column": "niche_image", **changes})


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def write_model(folder: Path, theirs: Any, recipe: Recipe) -> None:
    """A model of ours as a folder, that reads byte pairs."""
    card = {
        "embed_dim": 32,
        "image_column": "niche_image",
        "image_px": 28,
        "tokenizer": "bpe",
        "context": recipe.context,
    }
    card |= {
        "tokenizer_card": make_tokenizer("bpe", recipe.context).card(),
        "config": {**recipe.model, "image_column": "niche_image"},
    }
    save_model(folder, theirs, card)


def test_a_published_file_and_a_folder_fill_the_model(micro: Recipe, tmp_path: Path) -> None:
    theirs, tokenizer = encoder_of(micro, 1), make_tokenizer("bpe", micro.context)
    weights = {f"module.{name}": value for name, value in theirs.coca.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "checkpoint.pt")
    write_model(tmp_path / "model", theirs, micro)
    for place in ("checkpoint.pt", "model"):
        ours = encoder_of(micro, 2)
        assert not same(ours, theirs)
        start_from(str(tmp_path / place), ours, tokenizer)
        assert same(ours, theirs), place


def test_what_does_not_fit_is_refused(micro: Recipe, tmp_path: Path) -> None:
    theirs, tokenizer = encoder_of(micro, 1), make_tokenizer("bpe", micro.context)
    torch.save(theirs.coca.state_dict(), tmp_path / "weights.pt")
    wide = encoder_of(micro, 2, embed_dim=64)
    with pytest.raises(ModelError, match=r"of another architecture than the recipe's model: .*and \d+ more differ"):
        start_from(str(tmp_path / "weights.pt"), wide, tokenizer)
    with pytest.raises(ModelError, match="There is no checkpoint file"):
        start_from(str(tmp_path / "nothing.pt"), wide, tokenizer)
    write_model(tmp_path / "model", theirs, micro)
    with pytest.raises(ModelError, match=r"was trained with another tokenizer: .*context 52 and not 76"):
        start_from(str(tmp_path / "model"), encoder_of(micro, 2), make_tokenizer("bpe", 52))
