"""What the report shows, as plain data: nothing here knows where it came from, and nothing in the report asks again.

Axes: S spots of a section, G genes. Positions are full-resolution pixels of the section's image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["ClassMap", "Evidence", "Figures", "GeneMap", "Hit", "Query", "Recipe", "Section"]

SIDE_NAMES = {"train": "training", "validation": "validation", "test": "test", "left_out": "left out"}


@dataclass(frozen=True, kw_only=True)
class Section:
    """One section as the lake has it, refused or published."""

    slide_id: str
    patient: str | None
    side: str  # train, validation, test or left_out
    published: bool
    technology: str | None
    um_per_px: float | None
    flags: tuple[str, ...]
    n_spots: int  # as read
    n_pairs: int  # kept
    refused: Mapping[str, int]  # rule -> spots; the whole section's rule where it was refused as a whole
    reason: str | None  # why it was refused as a whole, one sentence
    picture: bytes | None  # JPEG of the whole image, reduced
    width_px: int  # of the image at full resolution
    height_px: int
    spot_px: float  # diameter of a spot
    kept_S2: np.ndarray  # x, y of the spots kept
    refused_S2: np.ndarray  # x, y of the spots refused, where their position is known


@dataclass(frozen=True, kw_only=True)
class Figures:
    """One model on one side of its split, beside what simple methods reach there. None: it could not be had."""

    side: str
    slide_ids: tuple[str, ...]
    same_patient: bool  # the side shares a patient with the training sections
    n_pairs: int
    recall_at_5pct: float | None
    recall_at_10pct: float | None
    pcc_mean: float | None
    pcc_mean_predictor: float | None
    pcc_ridge: float | None = None
    chance_at_5pct: float | None = None
    chance_at_10pct: float | None = None
    cca_at_5pct: float | None = None
    cca_at_10pct: float | None = None
    genes: tuple[str, ...] = ()
    pcc_G: np.ndarray | None = None
    pcc_ridge_G: np.ndarray | None = None
    pcc_mean_predictor_G: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One recipe's registered model, how its loss fell, and its figures by side."""

    name: str
    about: str  # one phrase
    model_name: str
    model_version: str
    model_uri: str
    served: bool
    lake_version: int
    train_steps: int
    loss: tuple[tuple[int, float], ...]  # step, loss
    loss_first: float | None
    loss_last: float | None
    genes_surviving_tokenizer: float | None
    figures: Mapping[str, Figures] = field(default_factory=dict)  # side -> figures


@dataclass(frozen=True, kw_only=True)
class GeneMap:
    """One gene over one held-out section: as measured, and as the running server predicted it."""

    slide_id: str
    gene: str
    why: str  # "well predicted" or "marker"
    pcc: float
    spot_px: float
    xy_S2: np.ndarray
    measured_S: np.ndarray  # log1p of counts per 10^4
    predicted_S: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One training spot that the server found."""

    slide_id: str
    barcode: str
    score: float
    picture: bytes | None
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Query:
    """One held-out patch and what the server found for it."""

    slide_id: str
    barcode: str
    picture: bytes
    sentence: str  # as measured; the server saw the picture only
    hits: tuple[Hit, ...]


@dataclass(frozen=True, kw_only=True)
class ClassMap:
    """One marker sentence over one held-out section: the served score, and the markers as measured."""

    slide_id: str
    name: str
    markers: tuple[str, ...]
    pcc: float | None  # between score and measured markers, over the spots
    share: float  # of spots in which this class wins
    spot_px: float
    xy_S2: np.ndarray
    score_S: np.ndarray
    measured_S: np.ndarray  # mean over the markers of log1p of counts per 10^4


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that the report shows."""

    simulated: bool
    source: str  # what was chosen and why, one sentence
    lake_version: int
    software: str  # histolake's version
    shards: int
    sections: tuple[Section, ...]
    recipes: tuple[Recipe, ...]
    chosen_because: str  # why this recipe is served, one sentence
    maps: tuple[GeneMap, ...]
    queries: tuple[Query, ...]
    classes: tuple[ClassMap, ...]
    served_requests: int
    domain_agreement: Mapping[str, float] = field(
        default_factory=dict
    )  # slide_id -> share of spots, where truth is known
    seconds: Mapping[str, float] = field(default_factory=dict)  # step -> seconds
    commands: tuple[str, ...] = ()  # as they were called

    @property
    def served(self) -> Recipe:
        """The recipe whose model was served."""
        return next(recipe for recipe in self.recipes if recipe.served)

    @property
    def published(self) -> tuple[Section, ...]:
        """The sections with pairs."""
        return tuple(section for section in self.sections if section.published)
