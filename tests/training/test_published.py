"""Checkpoint files as their authors publish them: written by open_clip's own CoCa, read back to the last bit;
the vectors are its own to rounding."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from histolake.platform.errors import ModelError
from histolake.training.inputs import Picture, Sentence, inputs_from_card
from histolake.training.models import from_published, load_model, save_model
from histolake.training.models.published import recognise
from histolake.training.tokenizers import BpeTokenizer
from histolake.training.torchvision_shim import import_torchvision

State = dict[str, torch.Tensor]

# The CPU-sized CoCa in open_clip's own words.
TINY: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 112,
        "layers": 3,
        "width": 128,
        "head_width": 32,
        "patch_size": 14,
        "attentional_pool": True,
        "attn_pooler_queries": 8,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 1,
        "embed_cls": True,
        "output_tokens": True,
    },
    "multimodal_cfg": {
        "context_length": 76,
        "vocab_size": 49408,
        "width": 128,
        "heads": 4,
        "layers": 1,
        "attn_pooler_heads": 4,
    },
}


def coca(**changed: Any) -> Any:
    """open_clip's own CoCa with random weights."""
    import_torchvision()
    from open_clip.coca_model import CoCa

    torch.manual_seed(5)
    made = CoCa(**{**TINY, **changed}).eval()
    torch.nn.init.normal_(made.text_decoder.text_projection, std=0.1)  # open_clip leaves it as memory was
    return made


@pytest.fixture(scope="module")
def stock() -> Any:
    return coca()


def trainer_file(path: Path, state: State) -> Path:
    """As open_clip's trainer writes it, from a compiled model under DistributedDataParallel."""
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 5e-6}]}
    held = {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 10, "name": "omiclip", "state_dict": held, "optimizer": optimizer}, path)
    return path


def bare_file(path: Path, state: State) -> Path:
    torch.save(state, path)
    return path


def old_file(path: Path, state: State) -> Path:
    """A file from before torch wrote archives, with a logit scale of one number and a mask among the weights."""
    odd = {"logit_scale": state["logit_scale"].reshape(1), "text.attn_mask": torch.zeros(77, 77)}
    torch.save(
        {f"_orig_mod.{name}": t for name, t in (state | odd).items()}, path, _use_new_zipfile_serialization=False
    )
    return path


def safe_file(path: Path, state: State) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("checkpoint.pt", trainer_file),
        ("open_clip_pytorch_model.bin", bare_file),
        ("old.pt", old_file),
        ("open_clip_model.safetensors", safe_file),
    ],
)
def test_vectors_equal_open_clips_own(
    tmp_path: Path, stock: Any, name: str, write: Callable[[Path, State], Path]
) -> None:
    from open_clip.tokenizer import SimpleTokenizer
    from open_clip.transform import image_transform

    encoder, card = from_published(write(tmp_path / name, stock.state_dict()))
    encoder.eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    sentences = ["EPCAM KRT18", "COL1A1 " * 60, "HLA-DRA VIM"]
    preprocess = image_transform(112, is_train=False)
    pixels = torch.stack([preprocess(Image.fromarray(image)) for image in images])
    tokens = torch.from_numpy(BpeTokenizer(card["context"])(sentences))
    with torch.no_grad():
        assert torch.equal(encoder.normalise(torch.from_numpy(images)), pixels)
        ours = encoder({"spot_image": torch.from_numpy(images), "sentence": tokens})
        theirs = {"image": stock.encode_image(pixels)}
        theirs["text"] = stock.encode_text(SimpleTokenizer(context_length=76)(sentences))
        for vector in theirs:
            torch.testing.assert_close(ours[vector], theirs[vector], atol=1e-6, rtol=0)
        assert torch.equal(ours["scale"], stock.logit_scale.exp())
    read, written = encoder.coca.state_dict(), stock.state_dict()
    assert read.keys() == written.keys() and all(torch.equal(read[key], written[key]) for key in written)


def test_masks_of_older_open_clip_give_the_class_token_the_same_vector() -> None:
    """open_clip 2.x lets every token but the class token see padding that comes before it; 3.x lets none."""
    text = coca(text_cfg={**TINY["text_cfg"], "layers": 3}).text
    tokens = torch.from_numpy(BpeTokenizer()(["VIM", "COL1A1 " * 60, "EPCAM KRT18 ACTB"]))
    with torch.no_grad():
        embedded, mask = text._embeds(tokens)
        older = text.attn_mask.expand_as(mask).clone()
        older[:, -1] = mask[:, -1]
        assert not torch.equal(older, mask)
        both = [text.transformer(embedded, attn_mask=one)[:, -1] for one in (mask, older)]
    torch.testing.assert_close(both[0], both[1])


def test_a_published_file_becomes_a_model_folder(tmp_path: Path, stock: Any) -> None:
    encoder, card = from_published(trainer_file(tmp_path / "checkpoint.pt", stock.state_dict()), image_um=55.0)
    assert card["published"]["size"] == "tiny" and len(card["published"]["sha256"]) == 64
    assert (card["image_column"], card["image_um"], card["image_px"]) == ("spot_image", 55.0, 112)
    model = load_model(save_model(tmp_path / "model", encoder, card))
    assert inputs_from_card(model.card["inputs"]) == (
        Picture(column="spot_image", px=112),
        Sentence(column="sentence", tokenizer="bpe", context=76),
    )
    tokens = torch.from_numpy(model.tokenizer(["VIM ACTB"]))
    with torch.no_grad():
        np.testing.assert_allclose(model.embed_sentences(["VIM ACTB"]), stock.encode_text(tokens), atol=1e-6)


@pytest.mark.parametrize(("size", "name"), [("vit-l-14", "coca_ViT-L-14"), ("vit-b-32", "coca_ViT-B-32")])
def test_the_published_sizes_are_recognised_by_shape(size: str, name: str) -> None:
    import_torchvision()
    import open_clip
    from open_clip.coca_model import CoCa

    config = open_clip.get_model_config(name)
    assert config is not None and config.pop("custom_text")
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in CoCa(**config).state_dict().items()}
    assert recognise(shapes) == size
    with pytest.raises(ModelError) as refused:
        recognise(shapes | {"text.positional_embedding": (78, *shapes["text.positional_embedding"][1:])}, "x.pt")
    said = str(refused.value)
    assert said.startswith("x.pt holds a ViT of patch ") and ", 77 tokens and 49408 words" in said
    assert f"against {size} it has in another shape 1 weights (the first is text.positional_embedding: (78," in said


def test_another_architecture_is_refused_in_one_sentence(tmp_path: Path, stock: Any) -> None:
    state: State = stock.state_dict()
    text = TINY["text_cfg"]
    clip = {key: value for key, value in state.items() if not key.startswith("text_decoder.")}
    words = coca(text_cfg={**text, "vocab_size": 500}, multimodal_cfg={**TINY["multimodal_cfg"], "vocab_size": 500})
    for number, (weights, said) in enumerate(
        (
            (clip, r"no caption decoder \(a CLIP\).*against tiny it lacks \d+ weights .the first is text_decoder\."),
            (
                words.state_dict(),
                r"76 tokens and 500 words.*token_embedding\.weight: \(500, 128\) and not \(49408, 128",
            ),
            (state | {"logit_bias": torch.zeros(())}, r"it has besides 1 weights .the first is logit_bias"),
            ({"fc.weight": torch.zeros(2, 2)}, r"holds 1 weights such as fc\.weight, which is no CoCa"),
        )
    ):
        with pytest.raises(ModelError, match=said) as refused:
            from_published(bare_file(tmp_path / f"{number}.pt", weights))
        assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.bin").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("not a checkpoint")
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "code.pt")
    torch.save({"epoch": 3, "optimizer": {}}, tmp_path / "none.pt")
    for name, words in (
        ("text.pt", "text.pt is no checkpoint that can be read as tensors alone"),
        ("empty.bin", "empty.bin is no checkpoint"),
        ("text.safetensors", "no safetensors file that can be read"),
        ("code.pt", "code.pt is no checkpoint that can be read as tensors alone"),
        ("none.pt", "holds a dict of epoch, optimizer; a checkpoint holds tensors by name"),
        ("gone.pt", "no checkpoint file"),
    ):
        with pytest.raises(ModelError, match=words) as refused:
            from_published(tmp_path / name)
        assert "\n" not in str(refused.value)
