"""Learning rate and weight decay at each step, as plain functions."""

from __future__ import annotations

import math

__all__ = ["cosine", "warmup_cosine"]


def warmup_cosine(step: int, *, steps: int, warmup_steps: int, floor: float = 0.0) -> float:
    """The factor on the peak learning rate at `step` (from 0): a line up over the warm-up, then half a cosine down to
    `floor` at the last step."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - 1 - warmup_steps)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def cosine(step: int, *, steps: int, first: float, last: float) -> float:
    """From `first` at step 0 to `last` at the last step by half a cosine (ST-Align's weight decay: 0.04 to 0.4)."""
    done = min(1.0, step / max(1, steps - 1))
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * done))
