"""Contrastive batches larger than memory, by gradient caching (Gao et al. 2021, "Scaling Deep Contrastive Learning
Batch Size under Memory Limited Setup").

The vectors of all chunks are computed without a graph; the loss over them gives a gradient for each vector; then each
chunk is computed again, with a graph, and its vectors' gradients are sent through it. Memory holds the graph of one
chunk, for the price of a second forward pass. The gradient is that of the whole batch at once: dropout draws the same
in both passes.

What it cannot do: statistics over a batch (BatchNorm) are those of a chunk; outputs that are no vectors, such as
caption logits, are not cached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from histolake.platform.errors import UsageError
from histolake.training.objectives.base import NO_MASKS, Masks, Objective

__all__ = ["backward"]

SCALE = "scale"


def backward(
    model: nn.Module,
    chunks: Sequence[Mapping[str, torch.Tensor]],
    objective: Objective,
    *,
    present: Masks = NO_MASKS,
    ignore_BN: torch.Tensor | None = None,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> dict[str, torch.Tensor]:
    """Add the gradient of the loss of all chunks together to the parameters; gives what the objective gave, detached.

    `chunks` are the batch cut along its rows; `present` and `ignore_BN` are of the whole batch. The model is called
    inside `precision()` (autocast). Under DistributedDataParallel the processes meet once, with the last chunk, and all
    must have the same number of chunks.
    """
    device = next(model.parameters()).device
    states, found = [], []
    with _counted_once(model):
        for chunk in chunks:
            states.append(_random_state(device))
            with torch.no_grad(), precision():
                found.append(model(chunk))
    if odd := [name for name, value in found[0].items() if name != SCALE and value.ndim != 2]:
        raise UsageError(
            f"Gradients of {', '.join(odd)} cannot be cached, for they are no vectors; set chunk_rows to 0, or the "
            "caption weight to 0."
        )
    joined = {name: torch.cat([each[name] for each in found]) for name in found[0] if name != SCALE}
    joined[SCALE] = found[0][SCALE]
    leaves = {name: value.detach().requires_grad_() for name, value in joined.items()}
    losses = objective(leaves, present=present, ignore_BN=ignore_BN)
    losses["loss"].backward()

    first = 0
    for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
        last = number == len(chunks) - 1
        rows = slice(first, first + len(next(value for name, value in found[number].items() if name != SCALE)))
        first = rows.stop
        with _meeting(model, last), _replayed(state, device):
            with precision():
                vectors = model(chunk)
            _send_back(vectors, leaves, rows, last)
    return {name: value.detach() for name, value in losses.items()}


def _send_back(
    vectors: Mapping[str, torch.Tensor], leaves: Mapping[str, torch.Tensor], rows: slice, last: bool
) -> None:
    """The gradients of a chunk's vectors through the model. That of the scale goes with the last chunk, once."""
    outputs, gradients = [], []
    for name, value in vectors.items():
        gradient = leaves[name].grad
        if gradient is None or not value.requires_grad or (name == SCALE and not last):
            continue
        outputs.append(value)
        gradients.append((gradient if name == SCALE else gradient[rows]).to(value.dtype))
    if outputs:
        torch.autograd.backward(outputs, gradients)


def _meeting(model: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Where the processes are to add up their gradients, or not yet."""
    wait = getattr(model, "no_sync", None)
    return nullcontext() if last or wait is None else wait()


@contextmanager
def _counted_once(model: nn.Module) -> Iterator[None]:
    """Running statistics afterwards as they were before: the second pass counts them."""
    counting = [module for module in model.modules() if getattr(module, "running_mean", None) is not None]
    before = [{name: value.clone() for name, value in module.named_buffers(recurse=False)} for module in counting]
    yield
    for module, buffers in zip(counting, before, strict=True):
        for name, value in buffers.items():
            module.get_buffer(name).copy_(value)


def _random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device) -> Iterator[None]:
    """Draw again what was drawn from this state on, and go on afterwards as if nothing had been drawn."""
    with torch.random.fork_rng(devices=[] if state[1] is None else [device]):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
