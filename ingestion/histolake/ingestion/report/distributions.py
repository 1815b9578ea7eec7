"""How a quality measure spreads over spots, in bins that are the same for every section, so that they can be added.

Genes, counts and focus span decades and are binned by their logarithm; a fraction is binned as it is. Quantiles are
exact for a section and read off the bins for a cohort, so that no cohort's spots are ever held together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

__all__ = ["MEASURES", "Distribution", "Measure", "measured"]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One per-spot quality, its bins, and the rules and settings that draw a line through it."""

    name: str  # its column in the pairs
    title: str
    unit: str
    low: float
    high: float
    bins: int
    log: bool
    rules: tuple[str, ...] = ()  # rules on spots whose figure is of this measure
    zero_is_unknown: bool = False  # a 0 says that it could not be told
    settings: tuple[str, ...] = ()  # keys of the settings section `quality` that hold a limit

    def edges(self) -> np.ndarray:
        """The bins' edges, (B+1,)."""
        if self.log:
            return np.geomspace(self.low, self.high, self.bins + 1)
        return np.linspace(self.low, self.high, self.bins + 1)


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            name="n_genes", title="Expressed genes", unit="genes a spot", low=1, high=1e5, bins=80, log=True,
            rules=("min_genes",), settings=("min_genes",),
        ),
        Measure(
            name="n_counts", title="Counts", unit="counts a spot", low=1, high=1e7, bins=112, log=True,
            rules=("min_counts",), settings=("min_counts",),
        ),
        Measure(
            name="tissue_fraction", title="Tissue in the patch", unit="share of the patch that is tissue", low=0,
            high=1, bins=40, log=False, rules=("min_tissue", "min_tissue_fraction"),
            settings=("min_tissue", "min_tissue_fraction"),
        ),
        Measure(
            name="focus", title="Focus", unit="sharpness of the patch (higher is sharper)", low=1e-3, high=1e2,
            bins=80, log=True, rules=("min_focus",), zero_is_unknown=True, settings=("min_focus",),
        ),
    )
}  # fmt: skip


@dataclass(eq=False)
class Distribution:
    """Spots a bin, and the five quantiles of `QUANTILES`."""

    measure: Measure
    count_B: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    quantiles: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.count_B):
            self.count_B = np.zeros(self.measure.bins, dtype=np.int64)

    @property
    def n(self) -> int:
        """How many spots."""
        return int(self.count_B.sum())

    @property
    def median(self) -> float:
        """The middle spot's value."""
        return self.quantiles[2]

    def add(self, values: np.ndarray) -> None:
        """Count more values; those beyond the bins go into the outermost. Values that are not numbers are left out."""
        finite = np.asarray(values, dtype=np.float64)
        finite = np.clip(finite[np.isfinite(finite)], self.measure.low, self.measure.high)
        self.count_B = self.count_B + np.histogram(finite, bins=self.measure.edges())[0]

    @classmethod
    def total(cls, measure: Measure, parts: Iterable[Distribution]) -> Distribution | None:
        """The sum of several, with quantiles read off the bins; None where there is no spot."""
        counts = sum((part.count_B for part in parts), np.zeros(measure.bins, dtype=np.int64))
        if not counts.sum():
            return None
        edges = measure.edges()
        share = np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])
        return cls(measure, counts, tuple(float(np.interp(q, share, edges)) for q in QUANTILES))


def measured(measure: Measure, values: np.ndarray) -> Distribution | None:
    """The distribution of some values, those that are not numbers left out; None where none is a number."""
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    finite = finite[finite > 0] if measure.zero_is_unknown else finite
    if not len(finite):
        return None
    found = Distribution(measure, quantiles=tuple(float(q) for q in np.quantile(finite, QUANTILES)))
    found.add(finite)
    return found
