"""The shape of a simulated section: where its tissue lies, which domain is where, and how it is warped.

A patient's anatomy is a set of smooth fields in the patient's own coordinates (micrometres). A section looks at them
through its warp, so that two sections of a patient show the same structures a little displaced, and by exactly how
much is known.

Axes: D domains, Y and X a grid of `GRID_UM`, N points, 2 = (x, y).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates

__all__ = ["DOMAINS", "GRID_UM", "HEIGHT_UM", "WIDTH_UM", "Anatomy", "Warp", "make_anatomy", "make_warp"]

WIDTH_UM, HEIGHT_UM = 3600.0, 4000.0
GRID_UM = 10.0
MARGIN_UM = 600.0  # the fields reach this far beyond the frame, so that a warped look never leaves them

DOMAINS = ("tumour", "gland", "stroma", "adipose", "immune", "necrosis")
_BIAS = {"tumour": 0.25, "gland": -0.05, "stroma": 0.25, "adipose": 0.0, "immune": -0.4, "necrosis": -9.0}
_SMOOTH_UM = {"tumour": 330.0, "gland": 260.0, "stroma": 400.0, "adipose": 300.0, "immune": 190.0, "necrosis": 150.0}
_SHARPNESS = 9.0  # how quickly one domain passes into the next
_NECROTIC_DEPTH = 1.35  # tumour field above which its core dies


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Section coordinates to patient coordinates: a turn about the middle, a shift and a gentle swell."""

    turn_rad: float = 0.0
    shift_um: tuple[float, float] = (0.0, 0.0)
    swell_um: float = 0.0
    phase_rad: tuple[float, float] = (0.0, 0.0)

    def __call__(self, xy_um_N2: np.ndarray) -> np.ndarray:
        """Where points of the section lie in the patient."""
        middle = np.array([WIDTH_UM, HEIGHT_UM]) / 2
        c, s = np.cos(self.turn_rad), np.sin(self.turn_rad)
        turned = (xy_um_N2 - middle) @ np.array([[c, s], [-s, c]]) + middle
        wave = 2 * np.pi * xy_um_N2[:, ::-1] / np.array([HEIGHT_UM, WIDTH_UM]) + np.array(self.phase_rad)
        return turned + np.array(self.shift_um) + self.swell_um * np.sin(wave)


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """One patient's fields, on a grid that reaches `MARGIN_UM` beyond the frame."""

    scores_DYX: np.ndarray  # how much a place wants to be of each domain
    tissue_YX: np.ndarray  # above 0 inside the tissue, in micrometres from its edge, roughly
    stream_YX: np.ndarray  # its level lines are the fibres of the stroma

    def domains_at(self, xy_um_N2: np.ndarray) -> np.ndarray:
        """Shares of the domains at points of the patient, (N, D), summing to 1."""
        scores_ND = np.stack([_sample(field, xy_um_N2) for field in self.scores_DYX], axis=1)
        raised = np.exp(_SHARPNESS * (scores_ND - scores_ND.max(axis=1, keepdims=True)))
        return raised / raised.sum(axis=1, keepdims=True)

    def tissue_at(self, xy_um_N2: np.ndarray) -> np.ndarray:
        """How deep in the tissue points lie; negative on glass."""
        return _sample(self.tissue_YX, xy_um_N2)

    def stream_at(self, xy_um_N2: np.ndarray) -> np.ndarray:
        """The stream function of the fibres."""
        return _sample(self.stream_YX, xy_um_N2)


def _sample(field_YX: np.ndarray, xy_um_N2: np.ndarray) -> np.ndarray:
    at = (xy_um_N2[:, ::-1] + MARGIN_UM) / GRID_UM
    return map_coordinates(field_YX, at.T, order=1, mode="nearest")


def _smooth(rng: np.random.Generator, shape: tuple[int, int], sigma_um: float) -> np.ndarray:
    """Smooth noise with mean 0 and deviation 1."""
    field = gaussian_filter(rng.standard_normal(shape), sigma_um / GRID_UM, mode="wrap")
    return (field - field.mean()) / field.std()


def make_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw one patient."""
    shape = (round((HEIGHT_UM + 2 * MARGIN_UM) / GRID_UM), round((WIDTH_UM + 2 * MARGIN_UM) / GRID_UM))
    y, x = np.meshgrid(*(np.arange(n) * GRID_UM - MARGIN_UM for n in shape), indexing="ij")
    fields = {name: _smooth(rng, shape, _SMOOTH_UM[name]) + _BIAS[name] for name in DOMAINS}
    # Fat lies at the rim, tumour in the middle.
    radius = np.hypot((x - WIDTH_UM / 2) / (WIDTH_UM / 2), (y - HEIGHT_UM / 2) / (HEIGHT_UM / 2))
    fields["adipose"] = fields["adipose"] + 1.3 * (radius - 0.55)
    fields["tumour"] = fields["tumour"] - 0.5 * (radius - 0.4)
    deep = fields["tumour"] > _NECROTIC_DEPTH
    fields["necrosis"] = np.where(deep, fields["tumour"] + 2.0 * (fields["tumour"] - _NECROTIC_DEPTH), -9.0)
    angle = np.arctan2(y - HEIGHT_UM / 2, x - WIDTH_UM / 2)
    lobes = sum(rng.uniform(0.02, 0.06) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4, 5))
    rim = 0.86 + lobes + 0.012 * _smooth(rng, shape, 60.0)
    tissue = (rim - radius) * WIDTH_UM / 2
    stream = 900.0 * _smooth(rng, shape, 420.0) + 0.5 * x + 0.8 * y
    return Anatomy(scores_DYX=np.stack([fields[name] for name in DOMAINS]), tissue_YX=tissue, stream_YX=stream)


def make_warp(rng: np.random.Generator) -> Warp:
    """Draw how the second section of a patient lies on the first."""
    return Warp(
        turn_rad=float(rng.uniform(-0.14, 0.14)),
        shift_um=(float(rng.uniform(-120, 120)), float(rng.uniform(-120, 120))),
        swell_um=float(rng.uniform(50, 90)),
        phase_rad=(float(rng.uniform(0, 2 * np.pi)), float(rng.uniform(0, 2 * np.pi))),
    )
