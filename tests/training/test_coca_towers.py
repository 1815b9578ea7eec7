"""The short way through CoCa's towers is open_clip's own way: vectors and gradients agree with a stock CoCa of the same
weights in float64, in every case of padding, with and without captions and recomputation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.training.models.attention import PackedAttention
from histolake.training.models.coca import CocaEncoder, build_coca
from histolake.training.torchvision_shim import import_torchvision

SIZES: dict[str, Any] = {
    "embed_dim": 24,
    "image_px": 28,
    "patch_px": 7,
    "image_width": 32,
    "image_layers": 2,
    "image_head_width": 8,
    "pooler_heads": 4,
    "pooler_queries": 6,
    "text_width": 24,
    "text_heads": 3,
    "text_layers": 2,
    "decoder_layers": 1,
    "context": 9,
    "vocab_size": 40,
}


def pair(**changed: Any) -> tuple[CocaEncoder, nn.Module]:
    """Ours, and a stock CoCa that open_clip built of the same sizes, with the same weights, both in float64."""
    import_torchvision()
    from open_clip.coca_model import CoCa

    torch.manual_seed(3)
    ours = build_coca({**SIZES, **changed}).double()
    s = SIZES
    stock = CoCa(
        embed_dim=s["embed_dim"],
        vision_cfg={
            "image_size": s["image_px"],
            "layers": s["image_layers"],
            "width": s["image_width"],
            "head_width": s["image_head_width"],
            "patch_size": s["patch_px"],
            "attentional_pool": True,
            "attn_pooler_queries": s["pooler_queries"],
            "attn_pooler_heads": s["pooler_heads"],
            "output_tokens": True,
        },
        text_cfg={
            "context_length": s["context"],
            "vocab_size": s["vocab_size"],
            "width": s["text_width"],
            "heads": s["text_heads"],
            "layers": s["text_layers"],
            "embed_cls": True,
            "output_tokens": True,
        },
        multimodal_cfg={
            "context_length": s["context"],
            "vocab_size": s["vocab_size"],
            "width": s["text_width"],
            "heads": s["text_heads"],
            "layers": s["decoder_layers"],
            "attn_pooler_heads": s["text_heads"],
        },
    ).double()
    for name, weight in ours.coca.named_parameters():  # norms and biases that are no longer 1 and 0
        if weight.ndim < 2 and name != "logit_scale":
            weight.data += 0.1 * torch.randn_like(weight)
    stock.load_state_dict(ours.coca.state_dict())
    assert isinstance(stock.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)
    assert isinstance(ours.coca.visual.transformer.resblocks[0].attn, PackedAttention)
    return ours, stock


def batch() -> dict[str, torch.Tensor]:
    """Sentences that are full, one short of it, short, of start and end alone, and not there at all."""
    draw = torch.Generator().manual_seed(4)
    tokens = torch.randint(1, 38, (5, SIZES["context"]), generator=draw)
    for row, length in enumerate((9, 8, 4, 2, 0)):
        tokens[row, length:] = 0
    pictures = torch.randint(0, 256, (5, 28, 28, 3), dtype=torch.uint8, generator=draw)
    return {"niche_image": pictures, "sentence": tokens}


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    largest = max(float(value.abs().max()) for value in theirs.values())
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=1e-9, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_vectors_and_gradients_are_open_clips(training: bool, again: bool) -> None:
    ours, stock = pair(grad_checkpointing=again)
    ours.train(training), stock.train(training)
    given = batch()
    mine = ours(given)
    pixels = ours.normalise(given["niche_image"])
    image, text = stock.encode_image(pixels), stock.encode_text(given["sentence"])
    torch.testing.assert_close(mine["image"], image, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(mine["text"], text, rtol=1e-12, atol=1e-13)
    scores, wanted = mine["image"] @ mine["text"].T, image @ text.T
    labels = torch.arange(5)
    own = gradients(ours.coca, F.cross_entropy(mine["scale"] * scores, labels))
    their_own = gradients(stock, F.cross_entropy(stock.logit_scale.exp() * wanted, labels))
    assert own.keys() == their_own.keys() and len(own) > 50
    assert_same(own, their_own)
    assert float(own["visual.attn_pool.query"][0].abs().max()) > 0
    assert float(own["visual.attn_pool.query"][1:].abs().max()) == 0, "queries that nobody asks"


def test_captions_go_open_clips_own_way_with_the_same_attention() -> None:
    ours, stock = pair(caption_weight=1.0)
    given = batch()
    mine = ours(given)
    theirs = stock(ours.normalise(given["niche_image"]), given["sentence"])
    rows = slice(0, 4)  # open_clip's captions of a sentence that is not there are left to the mask
    torch.testing.assert_close(mine["caption_logits"][rows, :-1], theirs["logits"][rows], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(mine["text"], theirs["text_features"], rtol=1e-12, atol=1e-13)
    own = gradients(ours.coca, mine["caption_logits"][rows, :-1].square().mean())
    assert_same(own, gradients(stock, theirs["logits"][rows].square().mean()))


def test_a_fresh_model_draws_what_open_clip_draws() -> None:
    """Swapping the attention neither draws nor reorders."""
    torch.manual_seed(0)
    first = build_coca(SIZES)
    names = [name for name, _ in first.coca.named_parameters()]
    _, stock = pair()
    assert names == [name for name, _ in stock.named_parameters()]


def test_half_precision_is_no_further_from_the_truth_than_open_clips() -> None:
    ours, stock = pair()
    given = batch()
    with torch.no_grad():
        pixels = ours.normalise(given["niche_image"])
        true = stock.encode_image(pixels), stock.encode_text(given["sentence"])
        ours.float(), stock.float()
        with torch.autocast("cpu", torch.bfloat16):
            mine = ours(given)
            theirs = stock.encode_image(pixels.float()), stock.encode_text(given["sentence"])
    assert mine["image"].dtype == mine["text"].dtype == torch.float32, "scores are taken in single precision"
    for vector, other, exact in zip((mine["image"], mine["text"]), theirs, true, strict=True):
        error, their_error = ((found.double() - exact).norm() / exact.norm() for found in (vector, other))
        assert error < 2e-2 and error < 1.5 * their_error + 1e-3
