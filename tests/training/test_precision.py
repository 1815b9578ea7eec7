"""What is switched is switched; a compiled model is the same model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from histolake.platform.errors import UsageError
from histolake.training.flops import example_batch
from histolake.training.models.coca import CocaEncoder, build_coca
from histolake.training.objectives import Contrastive, backward
from histolake.training.precision import (
    PRECISIONS,
    attention_kernels,
    autocast,
    be_deterministic,
    compiled,
    compute_in,
)

SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "image_px": 28,
    "patch_px": 14,
    "image_width": 32,
    "image_layers": 2,
    "image_head_width": 16,
    "pooler_heads": 2,
    "pooler_queries": 3,
    "text_width": 16,
    "text_heads": 2,
    "text_layers": 2,
    "decoder_layers": 1,
    "context": 8,
    "vocab_size": 50,
}


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """The process's switches as they were."""
    before = dict(os.environ)
    yield
    be_deterministic(False)
    compute_in("float32", "cpu")
    torch.backends.cudnn.benchmark = False
    os.environ.clear()
    os.environ.update(before)
    torch._dynamo.reset()


def model(**changed: Any) -> CocaEncoder:
    torch.manual_seed(5)
    return build_coca({**SIZES, **changed}).train()


def gradients(encoder: nn.Module, rows: int = 6, precision: str = "float32") -> dict[str, torch.Tensor]:
    batch = example_batch(encoder.inputs, rows, "cpu", words=48)  # type: ignore[arg-type]  # an Encoder
    with autocast(precision, "cpu")():
        vectors = encoder(batch)
    encoder.zero_grad()
    Contrastive()(vectors)["loss"].backward()
    return {name: weight.grad for name, weight in encoder.named_parameters() if weight.grad is not None}


def test_precisions_are_switched_and_unknown_ones_refused() -> None:
    for precision in PRECISIONS:
        compute_in(precision, "cpu")
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        assert torch.backends.cudnn.allow_tf32 is (precision == "tf32")
        with autocast(precision, "cpu")():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    with pytest.raises(UsageError, match="one of float32, tf32, bf16"):
        compute_in("fp8", "cpu")


def test_half_precision_gives_nearly_the_gradients_of_full() -> None:
    encoder = model()
    full, half = gradients(encoder), gradients(encoder, precision="bf16")
    assert half.keys() == full.keys() and {value.dtype for value in half.values()} == {torch.float32}
    flat = [torch.cat([value.flatten() for value in found.values()]) for found in (full, half)]
    assert 0 < (flat[1] - flat[0]).norm() / flat[0].norm() < 0.05


def test_deterministic_algorithms_are_asked_for_and_let_go() -> None:
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    be_deterministic(True)
    assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    first, second = gradients(model()), gradients(model())
    assert all(torch.equal(first[name], second[name]) for name in first)
    be_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_order_of_attention_kernels_is_a_preference() -> None:
    from torch.nn.attention import SDPBackend

    usual = torch._C._get_sdp_priority_order()
    with attention_kernels("cpu"):
        assert torch._C._get_sdp_priority_order() == usual, "no GPU, nothing to prefer"
    with attention_kernels("cpu", "cudnn"):
        assert torch._C._get_sdp_priority_order()[0] == SDPBackend.CUDNN_ATTENTION.value
        here = gradients(model())
    assert torch._C._get_sdp_priority_order() == usual
    there = gradients(model())
    assert all(torch.equal(here[name], there[name]) for name in here)
    with pytest.raises(UsageError, match="best, flash or cudnn"), attention_kernels("cpu", "xformers"):
        pass


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("how", ["layers", "whole"])
def test_a_compiled_model_is_the_same_model(how: str, again: bool) -> None:
    plain, fast = model(), model(grad_checkpointing=again)
    names = list(fast.state_dict())
    assert compiled(fast, how, backend="aot_eager") is fast and list(fast.state_dict()) == names
    torch._dynamo.utils.counters.clear()
    for rows in (6, 4):  # another batch size is compiled once more
        wanted, found = gradients(plain, rows), gradients(fast, rows)
        assert wanted.keys() == found.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2 and not torch._dynamo.utils.counters["graph_break"]
    if how == "layers" and not again:
        # A layer of each tower, and for the sentence's last layer none: it is asked for one token.
        assert graphs == 4, "layers that are alike share one compilation"


def test_gradients_of_chunks_go_through_a_compiled_model() -> None:
    plain, fast = model(), compiled(model(), "layers", backend="aot_eager")
    wanted = gradients(plain, 6)
    batch = example_batch(plain.inputs, 6, "cpu", words=48)
    chunks = [{key: value[rows] for key, value in batch.items()} for rows in (slice(0, 3), slice(3, 6))]
    backward(fast, chunks, Contrastive())
    for name, weight in fast.named_parameters():
        if name in wanted:
            torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)


def test_what_cannot_be_compiled_says_so() -> None:
    with pytest.raises(UsageError, match="off, layers, whole"):
        compiled(model(), "max")
    with pytest.raises(UsageError, match="A Linear names no layers"):
        compiled(nn.Linear(2, 2), "layers")
    untouched = nn.Linear(2, 2)
    assert compiled(untouched, "off") is untouched and untouched._compiled_call_impl is None
