"""What is drawn at random about a pair's pictures, and how it is done to them.

What is drawn is a function of (seed, epoch, position in the epoch): a pair is changed in the same way however many
workers share the work, and after a resume. It is drawn where pairs are read, a few numbers a pair, and done where the
model is, to the whole batch at once: on a GPU it costs next to nothing.

Axes: B pairs, H height, W width, C channels (RGB) or stains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Augmentation", "Drawn", "augment", "draw"]

# Optical density of haematoxylin, eosin and what is left (Ruifrok and Johnston 2001), rows of unit length.
STAINS_CC = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
NUMBERS = 8  # drawn for a pair; two steps of the generator, which gives four at a time


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may be drawn about a picture."""

    flips: bool = True  # flips and quarter turns: tissue has no up
    stain: float = 0.0  # standard deviation of the log gain of each stain, dimensionless
    density: float = 0.0  # relative standard deviation of the whole optical density, dimensionless


@dataclass(frozen=True)
class Drawn:
    """What was drawn for the pairs of a batch."""

    turn_B: torch.Tensor  # uint8, 0 to 7: bits say transposed, upside down, mirrored
    mixing_BCC: torch.Tensor | None  # float32, from the optical densities of the channels to those wanted

    def to(self, device: torch.device | str) -> Drawn:
        """The same on another device."""
        mixing_BCC = None if self.mixing_BCC is None else self.mixing_BCC.to(device, non_blocking=True)
        return Drawn(self.turn_B.to(device, non_blocking=True), mixing_BCC)


def draw(options: Augmentation, *, seed: int, epoch: int, positions_B: np.ndarray) -> Drawn:
    """The draws of consecutive positions of an epoch."""
    from scipy.special import ndtri

    # The counter of Philox is the position: it need not be gone through from the start.
    generator = np.random.Philox(key=[seed, epoch], counter=int(positions_B[0]) * NUMBERS // 4)
    raw_BN = generator.random_raw(len(positions_B) * NUMBERS).reshape(-1, NUMBERS)
    turn_B = (raw_BN[:, 0] >> np.uint64(61)).astype(np.uint8) * np.uint8(options.flips)
    if not (options.stain or options.density):
        return Drawn(torch.from_numpy(turn_B), None)
    normal_B4 = ndtri(((raw_BN[:, 1:5] >> np.uint64(11)) + 0.5) / 2.0**53)
    gain_BC = np.exp(options.stain * normal_B4[:, :3])
    mixing_BCC = np.einsum("ij,bj,jk->bik", np.linalg.inv(STAINS_CC), gain_BC, STAINS_CC)
    mixing_BCC *= 1 + options.density * normal_B4[:, 3, None, None]
    return Drawn(torch.from_numpy(turn_B), torch.from_numpy(mixing_BCC.astype(np.float32)))


def augment(image_BHWC: torch.Tensor, drawn: Drawn) -> torch.Tensor:
    """The pictures as drawn, uint8 (B, H, W, C) with H = W. A picture's outcome does not depend on the others."""
    if image_BHWC.device.type != "cpu":
        image_BHWC = _turned(image_BHWC, drawn.turn_B)
    elif drawn.turn_B.any():
        image_BHWC = _turned_one_by_one(image_BHWC, drawn.turn_B)
    return image_BHWC if drawn.mixing_BCC is None else _restained(image_BHWC, drawn.mixing_BCC)


def _turned(image_BHWC: torch.Tensor, turn_B: torch.Tensor) -> torch.Tensor:
    """All pictures at once: nothing waits for the device to say which were drawn."""
    for bit, change in ((1, lambda x: x.transpose(1, 2)), (2, lambda x: x.flip(1)), (4, lambda x: x.flip(2))):
        chosen_B111 = (turn_B & bit).bool()[:, None, None, None]
        image_BHWC = torch.where(chosen_B111, change(image_BHWC), image_BHWC)
    return image_BHWC


def _turned_one_by_one(image_BHWC: torch.Tensor, turn_B: torch.Tensor) -> torch.Tensor:
    """The same where memory is what it costs: each picture is copied once, a channel at a time (bytes that lie apart
    are copied several times as fast as groups of three)."""
    turned_BHWC = torch.empty_like(image_BHWC, memory_format=torch.contiguous_format)
    for turn, picture_HWC, into_HWC in zip(turn_B.tolist(), image_BHWC.numpy(), turned_BHWC.numpy(), strict=True):
        if turn & 1:
            picture_HWC = picture_HWC.transpose(1, 0, 2)
        if turn & 2:
            picture_HWC = picture_HWC[::-1]
        if turn & 4:
            picture_HWC = picture_HWC[:, ::-1]
        if turn & 5:
            for channel in range(picture_HWC.shape[2]):
                into_HWC[..., channel] = picture_HWC[..., channel]
        else:
            into_HWC[:] = picture_HWC
    return turned_BHWC


def _restained(image_BHWC: torch.Tensor, mixing_BCC: torch.Tensor) -> torch.Tensor:
    """Other optical densities; white stays white. Three products each, added in one order on every machine."""
    density_BHWC = _DENSITY.to(image_BHWC.device)[image_BHWC.int()]
    mixing = mixing_BCC[:, None, None]
    mixed_BHWC = density_BHWC[..., :1] * mixing[..., 0, :]
    for channel in (1, 2):
        mixed_BHWC = mixed_BHWC + density_BHWC[..., channel : channel + 1] * mixing[..., channel, :]
    return (255.0 * torch.exp(-mixed_BHWC)).clamp(0, 255).to(torch.uint8)


# -log(v / 255), with black held one step away from infinity.
_DENSITY = -torch.log(torch.arange(256).clamp(min=1) / 255.0)
