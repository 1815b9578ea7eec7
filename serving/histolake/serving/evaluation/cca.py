"""Linear canonical correlation between image features and expression, regularised by components and shrinkage.

Both sides are reduced to principal components (features standardised, expression centred), whitened, and turned so that
the pairs of directions correlate most. With a few hundred spots and over a thousand features, an unrestrained CCA finds
perfect correlations that mean nothing; the number of components and the shrinkage hold it back.

Axes: N spots, F features, G genes, P and Q components of image and expression, R pairs of directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Components", "LinearCCA"]


@dataclass(frozen=True)
class _Side:
    """Principal components of one side: `project` gives scores whose columns fall in variance."""

    mean_F: np.ndarray
    scale_F: np.ndarray
    axes_FP: np.ndarray
    variance_P: np.ndarray

    @classmethod
    def fit(cls, values_NF: np.ndarray, *, standardise: bool) -> _Side:
        mean_F = values_NF.mean(axis=0, dtype=np.float64)
        spread_F = values_NF.std(axis=0, dtype=np.float64)
        scale_F = np.where(spread_F > 0, spread_F, 1.0) if standardise else np.ones_like(mean_F)
        _, s_R, vt_RF = np.linalg.svd((values_NF - mean_F) / scale_F, full_matrices=False)
        held = s_R > 1e-6 * max(s_R[0], 1e-300)
        return cls(mean_F, scale_F, vt_RF[held].T, s_R[held] ** 2 / len(values_NF))

    def project(self, values_NF: np.ndarray, count: int) -> np.ndarray:
        return ((values_NF - self.mean_F) / self.scale_F) @ self.axes_FP[:, :count]


@dataclass(frozen=True)
class Components:
    """Both sides' components on the same spots, from which a CCA of any size follows cheaply."""

    image: _Side
    expression: _Side
    image_NP: np.ndarray
    expression_NQ: np.ndarray

    @classmethod
    def fit(cls, features_NF: np.ndarray, expression_NG: np.ndarray) -> Components:
        """Principal components of the features (N, F) and of the expression (N, G) of the same spots."""
        image, expression = _Side.fit(features_NF, standardise=True), _Side.fit(expression_NG, standardise=False)
        width, height = len(image.variance_P), len(expression.variance_P)
        return cls(image, expression, image.project(features_NF, width), expression.project(expression_NG, height))


@dataclass(frozen=True)
class LinearCCA:
    """A fitted CCA; `scores` compares images with profiles."""

    components: Components
    image_PR: np.ndarray
    expression_QR: np.ndarray
    correlation_R: np.ndarray  # of each pair of directions on the training spots, falling

    @classmethod
    def fit(
        cls, components: Components, image_components: int, expression_components: int, shrinkage: float
    ) -> LinearCCA:
        """CCA on the first P and Q components. `shrinkage` is added to each side's variances as a share of their mean,
        which pulls the directions towards those of large variance."""
        x_NP = components.image_NP[:, :image_components]
        y_NQ = components.expression_NQ[:, :expression_components]
        x_P, y_Q = (components.image.variance_P[: x_NP.shape[1]], components.expression.variance_P[: y_NQ.shape[1]])
        x_scale_P = 1 / np.sqrt(x_P + shrinkage * x_P.mean())
        y_scale_Q = 1 / np.sqrt(y_Q + shrinkage * y_Q.mean())
        cross_PQ = (x_NP * x_scale_P).T @ (y_NQ * y_scale_Q) / len(x_NP)
        u_PR, s_R, vt_RQ = np.linalg.svd(cross_PQ, full_matrices=False)
        return cls(components, x_scale_P[:, None] * u_PR, y_scale_Q[:, None] * vt_RQ.T, s_R)

    def scores(self, features_NF: np.ndarray, expression_MG: np.ndarray) -> np.ndarray:
        """Cosine (N, M) of canonical variates, each weighted by its correlation."""
        x_NP = self.components.image.project(features_NF, len(self.image_PR))
        y_MQ = self.components.expression.project(expression_MG, len(self.expression_QR))
        return (
            _unit(x_NP @ self.image_PR * self.correlation_R) @ _unit(y_MQ @ self.expression_QR * self.correlation_R).T
        )


def _unit(values_NR: np.ndarray) -> np.ndarray:
    return values_NR / np.maximum(np.linalg.norm(values_NR, axis=1, keepdims=True), 1e-12)
