"""What augmentation draws and does: a function of seed, epoch and position, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histolake.training.reading.augmentation import Augmentation, Drawn, _turned, augment, draw

BOTH = Augmentation(stain=0.2, density=0.1)


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Sixty-four pictures with no symmetry."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3), dtype=np.uint8))


def changed(pictures: torch.Tensor, first: int = 0, options: Augmentation = BOTH, **at: int) -> torch.Tensor:
    where = {"seed": 1, "epoch": 0} | at
    return augment(pictures, draw(options, **where, positions_B=np.arange(first, first + len(pictures))))


def test_it_is_drawn_from_the_position(pictures: torch.Tensor) -> None:
    whole = changed(pictures)
    for first, stop in ((0, 1), (7, 20), (63, 64)):
        assert torch.equal(changed(pictures[first:stop], first), whole[first:stop])
    for other in ({"seed": 2}, {"epoch": 1}, {"first": 100}):
        assert not torch.equal(changed(pictures, **other), whole)


def test_turning_alone_keeps_every_pixel(pictures: torch.Tensor) -> None:
    picture = pictures[:1]
    turned = changed(picture.expand(64, -1, -1, -1), options=Augmentation())
    square = {
        np.rot90(flip, turn).tobytes()
        for turn in range(4)
        for flip in (picture[0].numpy(), picture[0].numpy()[:, ::-1])
    }
    assert {np.ascontiguousarray(one.numpy()).tobytes() for one in turned} == square and len(square) == 8
    assert torch.equal(changed(pictures, options=Augmentation(flips=False)), pictures)


def test_a_cpu_turns_pictures_as_a_device_does(pictures: torch.Tensor) -> None:
    turn_B = torch.arange(64, dtype=torch.uint8) % 8
    assert torch.equal(augment(pictures, Drawn(turn_B, None)), _turned(pictures, turn_B))
    for turn in range(8):  # also all pictures alike, and a view that lies otherwise in memory
        alike_B = torch.full((64,), turn, dtype=torch.uint8)
        assert torch.equal(augment(pictures, Drawn(alike_B, None)), _turned(pictures, alike_B))
        other = pictures.transpose(1, 2)
        assert torch.equal(augment(other, Drawn(alike_B, None)), _turned(other, alike_B))


def test_stains_have_the_spread_that_is_asked_for() -> None:
    drawn = draw(Augmentation(stain=0.3), seed=0, epoch=0, positions_B=np.arange(4000))
    assert drawn.mixing_BCC is not None
    log_gain_BC = torch.linalg.eigvals(drawn.mixing_BCC.double()).real.log()
    assert abs(float(log_gain_BC.mean())) < 0.02 and abs(float(log_gain_BC.std()) - 0.3) < 0.02
    dense = draw(Augmentation(density=0.1), seed=0, epoch=0, positions_B=np.arange(4000)).mixing_BCC
    assert dense is not None and torch.allclose(dense[:, 0, 1], torch.zeros(4000), atol=1e-6)
    assert abs(float(dense[:, 0, 0].mean()) - 1) < 0.01 and abs(float(dense[:, 0, 0].std()) - 0.1) < 0.01


def test_white_stays_white_and_a_denser_stain_darkens() -> None:
    white = torch.full((8, 4, 4, 3), 255, dtype=torch.uint8)
    assert torch.equal(changed(white), white)
    grey = torch.full((64, 4, 4, 3), 128, dtype=torch.uint8)
    drawn = draw(Augmentation(flips=False, density=0.2), seed=3, epoch=0, positions_B=np.arange(64))
    assert drawn.mixing_BCC is not None
    denser = drawn.mixing_BCC[:, 0, 0] > 1.01
    assert (augment(grey, drawn)[denser] < 128).all() and (
        augment(grey, drawn)[drawn.mixing_BCC[:, 0, 0] < 0.99] >= 128
    ).all()
