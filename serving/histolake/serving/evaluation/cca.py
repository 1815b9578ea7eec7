"""Principal components, and linear canonical correlation between image features and expression on top of them.

Both sides are reduced to principal components (features standardised, expression centred), whitened, and turned so that
the pairs of directions correlate most. With a few hundred spots and over a thousand features, an unrestrained CCA finds
perfect correlations that mean nothing; the number of components and the shrinkage hold it back.

Axes: N and M spots, F features or genes, P and Q components of image and expression, R pairs of directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Components", "LinearCCA"]

# Components whose standard deviation is below this share of the first one's are rounding.
LEAST_SHARE = 1e-5


@dataclass(frozen=True)
class Components:
    """Principal components of some spots: `scores_NP` of these, `project` for others."""

    mean_F: np.ndarray
    scale_F: np.ndarray
    axes_FP: np.ndarray
    variance_P: np.ndarray  # falling
    scores_NP: np.ndarray

    @classmethod
    def fit(cls, values_NF: np.ndarray, *, standardise: bool) -> Components:
        """All components, through the smaller of the two matrices of inner products."""
        mean_F = values_NF.mean(axis=0, dtype=np.float64)
        spread_F = values_NF.std(axis=0, dtype=np.float64)
        scale_F = np.where(spread_F > 0, spread_F, 1.0) if standardise else np.ones_like(mean_F)
        x_NF = (values_NF - mean_F) / scale_F
        if len(x_NF) <= x_NF.shape[1]:
            squared_P, left_NP = _largest_first(x_NF @ x_NF.T)
            axes_FP = x_NF.T @ left_NP / np.sqrt(squared_P)
        else:
            squared_P, axes_FP = _largest_first(x_NF.T @ x_NF)
        return cls(mean_F, scale_F, axes_FP, squared_P / len(x_NF), x_NF @ axes_FP)

    def project(self, values_MF: np.ndarray, count: int | None = None) -> np.ndarray:
        """Scores (M, P) of other spots on the first `count` components."""
        return ((values_MF - self.mean_F) / self.scale_F) @ self.axes_FP[:, :count]


def _largest_first(inner_KK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values_K, vectors_KK = np.linalg.eigh(inner_KK)
    held_K = values_K > LEAST_SHARE**2 * max(values_K[-1], 1e-300)
    return values_K[held_K][::-1], vectors_KK[:, held_K][:, ::-1]


@dataclass(frozen=True)
class LinearCCA:
    """A fitted CCA; `variates` puts images and profiles side by side."""

    image: Components
    expression: Components
    image_PR: np.ndarray
    expression_QR: np.ndarray
    correlation_R: np.ndarray  # of each pair of directions on the training spots, falling

    @classmethod
    def fit(
        cls,
        image: Components,
        expression: Components,
        *,
        image_components: int,
        expression_components: int,
        shrinkage: float,
    ) -> LinearCCA:
        """CCA on the first P and Q components of the same spots. `shrinkage` is added to each side's variances as a
        share of their mean, which pulls the directions towards those of large variance."""
        x_NP, x_scale_P = _whitening(image, image_components, shrinkage)
        y_NQ, y_scale_Q = _whitening(expression, expression_components, shrinkage)
        cross_PQ = (x_NP * x_scale_P).T @ (y_NQ * y_scale_Q) / len(x_NP)
        u_PR, s_R, vt_RQ = np.linalg.svd(cross_PQ, full_matrices=False)
        return cls(image, expression, x_scale_P[:, None] * u_PR, y_scale_Q[:, None] * vt_RQ.T, s_R)

    def variates(self, features_NF: np.ndarray, expression_MG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows (N, R) and (M, R) of both sides' canonical variates, each weighted by its correlation; their inner
        products are the cosines by which images and profiles are compared."""
        x_NP = self.image.project(features_NF, len(self.image_PR))
        y_MQ = self.expression.project(expression_MG, len(self.expression_QR))
        x_NR, y_MR = x_NP @ self.image_PR * self.correlation_R, y_MQ @ self.expression_QR * self.correlation_R
        return _unit(x_NR), _unit(y_MR)


def _whitening(side: Components, count: int, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    variance_P = side.variance_P[:count]
    return side.scores_NP[:, :count], 1 / np.sqrt(variance_P + shrinkage * variance_P.mean())


def _unit(values_NR: np.ndarray) -> np.ndarray:
    return values_NR / np.maximum(np.linalg.norm(values_NR, axis=1, keepdims=True), 1e-12)
