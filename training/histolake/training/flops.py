"""What a model costs: floating-point operations a pair, model FLOPs utilisation, parameters, memory.

Everything is read off the model by running it on meta tensors, which have shapes and no numbers: a ViT-L takes a second
and no memory. Operations are those that torch's counter knows (products, convolutions, fused attention); a product of m
x k and k x n numbers is 2mkn. Element-wise work is none.

MFU is what training needs over what the chip could do in that time: 3 x the forward pass of the towers that are used
(the backward pass is two), over the data sheet's dense rate. Recomputed activations count once. A frozen tower has no
backward pass, so its forward pass counts once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from histolake.training.inputs import Input, Picture, Profile, Sentence

__all__ = ["Flops", "Footprint", "example_batch", "footprint", "forward_flops", "mfu", "peak_flops"]

ROWS = 2  # pairs that a count is taken over; batch statistics want more than one
HEADLESS = 3  # axes of a query (batch, tokens, width) that is not split into heads
ADAM_BYTES = 8  # both moments of a weight, in single precision

# Dense rates of products of bfloat16 with sums in float32, FLOP/s, from NVIDIA's data sheets (which print twice as much
# where "with sparsity" is meant). The first name that is found in the device's own is taken.
DENSE_BF16: tuple[tuple[str, float], ...] = (
    ("B200", 2250e12),  # DGX B200 data sheet: 72 PFLOPS fp8 with training, 36 bf16 with sparsity, for eight
    ("GH200", 989.4e12),  # GH200 data sheet
    ("H200 NVL", 835.5e12),  # H200 data sheet: 1,671 with sparsity
    ("H200", 989.4e12),  # H200 data sheet: 1,979 with sparsity
    ("H100 NVL", 835.5e12),  # H100 data sheet: 1,671 with sparsity
    ("H100 PCIe", 756e12),  # H100 PCIe product brief: 1,513 with sparsity
    ("H100", 989.4e12),  # H100 architecture white paper, SXM5
    ("H800", 989.4e12),  # an H100 whose links are slower
    ("A100", 312e12),  # A100 data sheet
    ("A800", 312e12),
    ("A30", 165e12),  # A30 data sheet
    ("A40", 149.7e12),  # A40 data sheet
    ("A10", 125e12),  # A10 data sheet
    ("L40S", 362.05e12),  # L40S data sheet: 733 with sparsity
    ("L40", 181.05e12),  # L40 data sheet
    ("L4", 121e12),  # L4 data sheet: 242 with sparsity
)


def peak_flops(device_name: str) -> float | None:
    """The dense bfloat16 rate of a device by the name that torch gives it, FLOP/s; None where it is not known, where it
    has no bfloat16 (V100, T4), or for a part of a GPU (MIG)."""
    if re.search(r"\bMIG\b", device_name):
        return None
    for name, rate in DENSE_BF16:
        if re.search(rf"\b{name}\b", device_name):
            return rate
    return None


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating-point operations of a forward pass, a pair."""

    trained: float  # in what has weights to train
    frozen: float  # in what has none

    @property
    def forward(self) -> float:
        """Of all."""
        return self.trained + self.frozen

    @property
    def step(self) -> float:
        """Of a step of training: forward and backward."""
        return 3 * self.trained + self.frozen


def mfu(pairs_per_s: float, flops: Flops, peak: float | None) -> float | None:
    """Model FLOPs utilisation, a share; None where the device's peak is not known."""
    return None if peak is None else pairs_per_s * flops.step / peak


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """How large a model is, and about how much memory a step takes."""

    parameters: int
    trained: int  # parameters, of these
    state_gb: float  # weights, gradients and both moments of AdamW, GB
    activations_gb: float  # what the backward pass keeps of a batch, GB

    @property
    def step_gb(self) -> float:
        """An estimate of a step's peak, GB; a compiled model takes less, an eager one a little more."""
        return self.state_gb + self.activations_gb


def example_batch(
    inputs: Sequence[Input], rows: int, device: torch.device | str = "meta", *, words: int = 1000, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A batch of drawn numbers that a model of these inputs can read. Sentences are full; `words` bounds their ids."""
    draw = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for one in inputs:
        if isinstance(one, Picture):
            shape: tuple[int, ...] = (rows, one.px, one.px, 3)
            made[one.key] = _drawn(device, shape, torch.uint8, 0, 256, draw)
        elif isinstance(one, Sentence):
            made[one.key] = _drawn(device, (rows, one.context), torch.int64, 1, words, draw)
        elif isinstance(one, Profile):
            made[one.key] = _drawn(device, (rows, len(one.gene_ids)), torch.float32, 0, 4, draw)
        else:
            made[one.key] = _drawn(device, (rows, one.width), torch.float32, -2, 3, draw)
    return made


def forward_flops(model: nn.Module) -> Flops:
    """What a forward pass of the model in its present mode (`train` or `eval`) costs a pair. The model may lie anywhere
    and is left as it was; compiled parts are counted as they are written."""
    counter = FlopCounterMode(display=False)
    with _on_meta(model, gradients=False) as run, counter, torch.no_grad():
        run(example_batch(_inputs(model), ROWS))
    total = counter.get_total_flops()
    by_module = counter.get_flop_counts()
    root = type(model).__name__
    frozen = sum(sum(by_module[f"{root}.{name}"].values()) for name in _frozen(model) if f"{root}.{name}" in by_module)
    return Flops(trained=(total - frozen) / ROWS, frozen=frozen / ROWS)


def footprint(model: nn.Module, rows: int, *, half: bool = True) -> Footprint:
    """Size and estimated memory at a batch of `rows` on a device; `half`: activations in bfloat16. A model that
    recomputes its activations keeps fewer, and is counted so."""
    weights = list(model.parameters())
    trained = sum(each.numel() for each in weights if each.requires_grad)
    held = sum(each.numel() * each.element_size() for each in [*weights, *model.buffers()])
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    dtype = torch.bfloat16 if half else None
    with _on_meta(model, dtype, gradients=True) as run, torch.enable_grad():
        own = {tensor.untyped_storage()._cdata for tensor in run.tensors}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), _FusedAttention():
            out = run(example_batch(_inputs(model), ROWS))
        activations = sum(size for storage, size in kept.items() if storage not in own) / ROWS
        del out
    state = held + trained * (4 + ADAM_BYTES)
    return Footprint(
        parameters=sum(each.numel() for each in weights),
        trained=trained,
        state_gb=state / 1e9,
        activations_gb=activations * rows / 1e9,
    )


class _Run:
    """A model called with stand-ins for its weights."""

    def __init__(self, model: nn.Module, dtype: torch.dtype | None, gradients: bool) -> None:
        self._model = model
        self._stand_ins: dict[str, torch.Tensor] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            stand_in = torch.empty_like(tensor, device="meta", dtype=wanted).detach()
            self._stand_ins[name] = stand_in.requires_grad_(gradients and tensor.requires_grad)

    @property
    def tensors(self) -> list[torch.Tensor]:
        return list(self._stand_ins.values())

    def __call__(self, batch: dict[str, torch.Tensor]) -> Any:
        return torch.func.functional_call(self._model, self._stand_ins, (batch,))


class _FusedAttention(TorchFunctionMode):
    """Attention as a GPU's fused kernels do it, which keep no scores; on meta tensors torch would write them out."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **named)
        query, key, value, *rest = args
        mask = rest[0] if rest else named.get("attn_mask")
        dropped = rest[1] if len(rest) > 1 else named.get("dropout_p", 0.0)
        if mask is not None:
            mask = mask.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
        if one_head := query.ndim == HEADLESS:
            query, key, value = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
        found = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, mask, True, dropped)[0]
        return found.squeeze(1) if one_head else found


@contextmanager
def _on_meta(model: nn.Module, dtype: torch.dtype | None = None, *, gradients: bool) -> Iterator[_Run]:
    with torch.compiler.set_stance("force_eager"):
        yield _Run(model, dtype, gradients)


def _inputs(model: nn.Module) -> Sequence[Input]:
    inputs: Sequence[Input] = model.inputs  # type: ignore[assignment]  # an Encoder, which mypy knows as a Module
    return inputs


def _frozen(model: nn.Module) -> list[str]:
    """The largest modules that hold weights and train none, by name."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        weights = [*module.parameters(), *module.buffers()]
        if name and not inside and weights and not any(each.requires_grad for each in weights):
            found.append(name)
    return found


def _drawn(
    device: torch.device | str, shape: tuple[int, ...], dtype: torch.dtype, low: int, high: int, draw: torch.Generator
) -> torch.Tensor:
    if torch.device(device).type == "meta":
        return torch.empty(shape, dtype=dtype, device="meta")
    if dtype.is_floating_point:
        return (torch.rand(shape, generator=draw) * (high - low) + low).to(device, dtype)
    return torch.randint(low, high, shape, generator=draw, dtype=dtype).to(device)
