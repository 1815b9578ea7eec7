"""Whether a step computes what it should: a small CoCa on the device against float64 on the CPU.

Vectors and gradients are compared by the norm of their difference over the norm of the true ones. Single precision must
be single precision (no TF32 by accident); bfloat16, compiled, with whichever attention kernel is taken, must be no
further from the truth than open_clip's own modules with the same weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from gpu_steps import stock_coca

from histolake.training.flops import example_batch
from histolake.training.models.coca import CocaEncoder, build_coca
from histolake.training.objectives import Contrastive, backward
from histolake.training.precision import attention_kernels, autocast, compiled, compute_in

__all__ = ["correctness"]

ROWS = 32
SMALL: dict[str, Any] = {
    "embed_dim": 128,
    "image_px": 56,
    "patch_px": 14,
    "image_width": 128,
    "image_layers": 2,
    "image_head_width": 64,
    "pooler_heads": 2,
    "pooler_queries": 8,
    "text_width": 128,
    "text_heads": 2,
    "text_layers": 2,
    "decoder_layers": 1,
    "context": 20,
    "vocab_size": 500,
}
MOST = {"float32": (1e-5, 1e-4), "bf16": (2e-2, 1e-1)}  # of vectors, of gradients

Found = tuple[torch.Tensor, torch.Tensor]


def correctness(device: torch.device, backend: str) -> dict[str, float | bool]:
    """Errors by name, and `correct`."""
    torch.manual_seed(1)
    weights = build_coca(SMALL).state_dict()
    batch = example_batch(_ours(weights, torch.device("cpu")).inputs, ROWS, "cpu", words=498)
    batch["sentence"][::3, 9:] = 0  # some sentences are short
    true = _found(_ours(weights, torch.device("cpu")).double(), batch)
    there = {key: value.to(device) for key, value in batch.items()}
    figures: dict[str, float | bool] = {}
    correct = True
    with attention_kernels(device):
        for precision in ("float32", "bf16"):
            compute_in(precision, device)
            model = _ours(weights, device)
            if precision == "bf16":
                compiled(model, "layers", backend=backend)
            errors = _errors(_found(model, there, precision), true)
            chunked = _errors((true[0], _chunked(model, there, precision)), true)[1]
            figures |= {f"error_vectors_{precision}": errors[0], f"error_gradients_{precision}": errors[1]}
            figures[f"error_gradients_cached_{precision}"] = chunked
            correct &= errors[0] < MOST[precision][0] and max(errors[1], chunked) < MOST[precision][1]
    stock = _errors(_stock_found(weights, there, device), true)
    figures |= {"error_vectors_bf16_open_clip": stock[0], "error_gradients_bf16_open_clip": stock[1]}
    correct &= errors[0] < 1.5 * stock[0] + 1e-3 and errors[1] < 1.5 * stock[1] + 1e-3
    return {"correct": correct, **figures}


def _ours(weights: dict[str, torch.Tensor], device: torch.device) -> CocaEncoder:
    model = build_coca(SMALL)
    model.load_state_dict(weights)
    return model.to(device).train()


def _found(model: CocaEncoder, batch: dict[str, torch.Tensor], precision: str = "float32") -> Found:
    """Vectors of both towers and the gradient of all weights, each as one row."""
    with autocast(precision, next(model.parameters()).device)():
        vectors = model(batch)
    Contrastive()(vectors)["loss"].backward()
    found = torch.cat([vectors["image"].flatten(), vectors["text"].flatten()]).detach()
    return found, _gradient(model)


def _chunked(model: CocaEncoder, batch: dict[str, torch.Tensor], precision: str) -> torch.Tensor:
    """The gradient by gradient caching, in chunks of a quarter."""
    model.zero_grad(set_to_none=True)
    quarter = ROWS // 4
    chunks = [{key: value[at : at + quarter] for key, value in batch.items()} for at in range(0, ROWS, quarter)]
    backward(model, chunks, Contrastive(), precision=autocast(precision, batch["sentence"].device))
    return _gradient(model)


def _stock_found(weights: dict[str, torch.Tensor], batch: dict[str, torch.Tensor], device: torch.device) -> Found:
    """The same of open_clip's own modules in bf16."""
    reference, model = _ours(weights, device), stock_coca(SMALL, device)
    model.load_state_dict(reference.coca.state_dict())
    with autocast("bf16", device)():
        image = model.encode_image(reference.normalise(batch["niche_image"]))
        text = model.encode_text(batch["sentence"])
    vectors = {"image": image.float(), "text": text.float(), "scale": model.logit_scale.exp()}
    Contrastive()(vectors)["loss"].backward()
    return torch.cat([vectors["image"].flatten(), vectors["text"].flatten()]).detach(), _gradient(model)


def _gradient(model: torch.nn.Module) -> torch.Tensor:
    named = sorted((name.removeprefix("coca."), weight) for name, weight in model.named_parameters())
    return torch.cat([weight.grad.flatten() for _, weight in named if weight.grad is not None])


def _errors(found: Found, true: Found) -> tuple[float, float]:
    """Of vectors and of gradients; what is no number is infinitely wrong."""
    told = []
    for mine, exact in zip(found, true, strict=True):
        error = float((mine.double().cpu() - exact).norm() / exact.norm())
        told.append(error if error == error else float("inf"))
    return told[0], told[1]
