"""How well a worker's machine is used: pairs, operations and memory, for the rows of a run."""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

from histolake.training.flops import forward_flops, mfu, peak_flops

__all__ = ["Gauge"]


class Gauge:
    """One model on one device. Make it before the model is compiled, distributed or given shared batch statistics: what
    a pass costs is counted on a copy without numbers, by one process alone."""

    def __init__(self, encoder: nn.Module, device: torch.device) -> None:
        self._device = device
        on_gpu = device.type == "cuda"
        self._peak = peak_flops(torch.cuda.get_device_name(device)) if on_gpu else None
        self._flops = forward_flops(encoder)

    def read(self, pairs_per_s: float, ranks: int) -> dict[str, float]:
        """`pairs_per_s` of all workers; of one: `tflops` (10^12 operations a second that training needs), `mfu` (their
        share of what the device can do in dense bfloat16, where that is known), `peak_gb` (largest memory so far, of
        the GPU), `host_gb` (of the process)."""
        own = pairs_per_s / ranks
        row = {"pairs_per_s": pairs_per_s, "tflops": own * self._flops.step / 1e12, "host_gb": _host_gb()}
        if (share := mfu(own, self._flops, self._peak)) is not None:
            row["mfu"] = share
        if self._device.type == "cuda":
            row["peak_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        return row


def _host_gb() -> float:
    """Largest resident memory of this process so far, GB; Linux counts it in KiB, macOS in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
