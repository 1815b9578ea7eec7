"""How a step computes: in which numbers, how exactly again, by which kernels, compiled or not.

    float32   full single precision
    tf32      single precision whose matrix products round their factors to 10 bits on GPUs that have it
    bf16      products in bfloat16 by autocast; weights, sums, and what lies outside (the scores) in single precision

Torch only. What is switched here holds for the process (that is how torch keeps it): one call of `compute_in` before
the first step, then `autocast` around every forward pass.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from histolake.platform.errors import UsageError

__all__ = ["COMPILE", "PRECISIONS", "attention_kernels", "autocast", "be_deterministic", "compiled", "compute_in"]

PRECISIONS = ("float32", "tf32", "bf16")
COMPILE = ("off", "layers", "whole")

# A block of layers is compiled anew for every width, mask, batch size and mode (training, validation, no gradients) it
# meets; torch gives up in silence, and runs the block uncompiled, after 8 of them.
RECOMPILES = 64
HOPPER = 9  # compute capability of H100 and H200


def compute_in(precision: str, device: torch.device | str) -> None:
    """Set the process to a precision. Raises `UsageError` for an unknown one, or where the device lacks bfloat16."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}.")
    device = torch.device(device)
    if precision == "bf16" and device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        raise UsageError(f"{torch.cuda.get_device_name(device)} has no bfloat16 units; set precision to float32.")
    rounded = precision == "tf32"
    torch.set_float32_matmul_precision("high" if rounded else "highest")
    torch.backends.cudnn.allow_tf32 = rounded


def autocast(precision: str, device: torch.device | str) -> Callable[[], AbstractContextManager[Any]]:
    """What to call the model inside of: `with autocast(...)(): model(batch)`. The loss belongs outside; the backward
    pass needs none. It is made anew for each pass, as gradient caching wants it."""
    if precision != "bf16":
        return nullcontext
    return partial(torch.autocast, torch.device(device).type, torch.bfloat16)


def be_deterministic(on: bool) -> None:
    """Only algorithms that give the same bits again, on the same machine and versions, at the price of speed (and no
    cuDNN attention). Call it before anything runs on a GPU: cuBLAS reads its workspace's size once."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(on)
    torch.backends.cudnn.deterministic = on
    torch.backends.cudnn.benchmark = not on
    # Filling fresh memory finds reads of what was never written; nothing here does that, and it costs a pass each time.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  # torch makes it on the fly


@contextmanager
def attention_kernels(device: torch.device | str, first: str = "best") -> Iterator[None]:
    """Which fused attention is tried first in all passes inside: `flash`, `cudnn`, or the `best`.

    Torch asks flash attention first everywhere. On Hopper (H100, H200) cuDNN's is 1.7 to 2.3 times as fast at shapes of
    training, on A100 and Blackwell slower (measured in huggingface/transformers#48163): so `best` is cuDNN on Hopper
    and torch's own order elsewhere, and where a trial shows that this build of cuDNN cannot do the shapes of a CLIP. A
    preference: what a kernel does not take goes to the next. What was compiled inside stays with the kernel that it was
    compiled with.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if first not in ("best", "flash", "cudnn"):
        raise UsageError(f"attention is {first!r}; it must be best, flash or cudnn.")
    device = torch.device(device)
    hopper = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == HOPPER
    if first == "flash" or (first == "best" and not (hopper and _cudnn_attends(device))):
        yield
        return
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others], set_priority=True):
        yield


@cache
def _cudnn_attends(device: torch.device) -> bool:
    """Whether cuDNN's attention, asked first, gets through a CLIP's shapes: pictures, and sentences with a mask."""
    for heads, tokens, masked in ((16, 257, False), (12, 77, True)):
        three = torch.randn(3, 2, heads, tokens, 64, device=device, dtype=torch.bfloat16, requires_grad=True)
        mask = torch.zeros(2, 1, tokens, tokens, device=device, dtype=torch.bfloat16) if masked else None
        try:
            with torch.enable_grad(), attention_kernels(device, "cudnn"):
                F.scaled_dot_product_attention(three[0], three[1], three[2], attn_mask=mask).sum().backward()
        except RuntimeError as error:
            warnings.warn(
                f"cuDNN's attention fails here ({str(error)[:200]}); torch's own order is kept.", stacklevel=2
            )
            return False
    return True


def compiled(model: nn.Module, how: str, *, backend: str = "inductor") -> nn.Module:
    """The same model, compiled in place: names, state dict and class stay.

    - `layers`: the parts that the model names (`compile_parts()`), each by itself. Layers that are alike share one
      compilation, so a ViT-L is ready in seconds; what must stay out of a graph stays out by not being named (batch
      statistics over processes, frozen encoders that change shape); gradients of the last layers are there before those
      of the first are computed, so that DistributedDataParallel can send them meanwhile.
    - `whole`: one graph. Saves a read of the activations a layer and what lies between layers; takes minutes to
      compile, and all gradients arrive at once, at the end. For one process.

    Call it after `synchronise_batchnorm` and before the model is wrapped for distribution. Shapes are taken as fixed
    (the kernels are faster): another batch size compiles once more. Dropout draws other numbers than uncompiled.
    """
    if how not in COMPILE:
        raise UsageError(f"compile is {how!r}; it must be one of {', '.join(COMPILE)}.")
    if how == "off":
        return model
    import torch._dynamo

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
    for part in _parts(model) if how == "layers" else [model]:
        part.compile(backend=backend, dynamic=False)
    return model


def _parts(model: nn.Module) -> list[nn.Module]:
    named = getattr(model, "compile_parts", None)
    if named is None:
        raise UsageError(f"A {type(model).__name__} names no layers to compile; set compile to off or whole.")
    parts: list[nn.Module] = named()
    return parts
