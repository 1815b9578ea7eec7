"""What a recipe costs before anything is run: weights, memory of a training worker, operations, hours of a GPU.

    python -m histolake.training.cost       # counts all recipes anew and writes recipes/costs.json

All is counted on meta tensors (see `flops`). Hours are those of a GPU that reaches `SHARE` of the dense bfloat16 rate
of an H100 or H200 and never waits for pairs; two cores of a CPU take about ten thousand times as long. A count takes a
second or two a recipe, so those of the recipes as they are lie in a file beside them, which a test compares with a
count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from histolake.training.recipes import RECIPES, Recipe

__all__ = ["SHARE", "Cost", "cost_of", "known_costs"]

DEVICE = "NVIDIA H100"
SHARE = 0.4  # of its dense bfloat16 rate


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one recipe, three digits that count. A pair is a spot with its picture and its genes."""

    parameters_m: float  # millions of weights
    trained_m: float  # of these, that are trained
    memory_gb: float  # of one training worker, in a step: weights, gradients, moments, activations
    gflop_per_pair: float  # 10^9 operations of a step of training, forward and backward
    gpu_hours_per_million_pairs: float


def cost_of(recipe: Recipe, workers: int = 1) -> Cost:
    """What a recipe costs where `workers` share its batch. Raises `ModelError` for a model that cannot be built."""
    from histolake.training.flops import footprint, forward_flops, peak_flops
    from histolake.training.loop.plan import model_config
    from histolake.training.models.frozen.weights import RANDOM
    from histolake.training.preflight import build_on_meta
    from histolake.training.tokenizers import make_tokenizer

    vocab_size = make_tokenizer(recipe.tokenizer, recipe.context).vocab_size
    model = build_on_meta(model_config(recipe, vocab_size, range(recipe.genes)))
    if hasattr(model, "load_frozen"):
        model.load_frozen({"image_weights": RANDOM})
    rows = recipe.global_batch // workers
    size = footprint(model, min(recipe.chunk_rows or rows, rows), half=recipe.precision == "bf16")
    flops = forward_flops(model)
    rate = SHARE * (peak_flops(DEVICE) or 0)
    found = {
        "parameters_m": size.parameters / 1e6,
        "trained_m": size.trained / 1e6,
        "memory_gb": size.step_gb,
        "gflop_per_pair": flops.step / 1e9,
        "gpu_hours_per_million_pairs": 1e6 * flops.step / rate / 3600,
    }
    return Cost(**{name: float(f"{value:.3g}") for name, value in found.items()})


@cache
def known_costs() -> Mapping[str, Cost]:
    """Of every recipe as it is, with one worker."""
    return {name: Cost(**cost) for name, cost in json.loads(_file().read_text()).items()}


def _file() -> Path:
    return Path(str(files("histolake.training.recipes"))) / "costs.json"


if __name__ == "__main__":
    counted = {name: asdict(cost_of(recipe)) for name, recipe in RECIPES.items()}
    _file().write_text(json.dumps(counted, indent=1) + "\n")
