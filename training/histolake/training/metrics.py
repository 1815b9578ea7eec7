"""Figures of merit, in NumPy alone.

Axes: Q queries, C candidates, N spots, G genes, D embedding.
"""

from __future__ import annotations

import numpy as np

__all__ = ["pearson_per_gene", "rank_quantiles", "recall_at"]


def rank_quantiles(scores_QC: np.ndarray, own_Q: np.ndarray | None = None) -> np.ndarray:
    """Where each query's own candidate stands, as a share of the list in (0, 1): the number of candidates that score
    higher, plus half of those that tie (the own one counted), over C. A ranker that knows nothing is uniform."""
    own_Q = np.arange(len(scores_QC)) if own_Q is None else own_Q
    own_score_Q1 = np.take_along_axis(scores_QC, own_Q[:, None], axis=1)
    higher_Q = (scores_QC > own_score_Q1).sum(axis=1)
    tied_Q = (scores_QC == own_score_Q1).sum(axis=1)
    return (higher_Q + tied_Q / 2) / scores_QC.shape[1]


def recall_at(scores_QC: np.ndarray, fraction: float, own_Q: np.ndarray | None = None) -> float:
    """Share of the queries whose own candidate is among the best `fraction` of the list (Recall@5% is 0.05; METHODS
    1.3.4 of OmiCLIP: K is a quantile of the candidates, so a random ranker scores `fraction`).

    A candidate that straddles the border (because of a tie, or because C x fraction is no whole number) counts by the
    share of it that lies inside, so that chance is exactly `fraction` at any C.
    """
    own_Q = np.arange(len(scores_QC)) if own_Q is None else own_Q
    own_score_Q1 = np.take_along_axis(scores_QC, own_Q[:, None], axis=1)
    higher_Q = (scores_QC > own_score_Q1).sum(axis=1)
    tied_Q = (scores_QC == own_score_Q1).sum(axis=1)
    room_Q = fraction * scores_QC.shape[1] - higher_Q
    return float(np.clip(room_Q / tied_Q, 0.0, 1.0).mean())


def pearson_per_gene(predicted_NG: np.ndarray, measured_NG: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the spots, one a gene; NaN where either is constant."""
    a_NG = np.asarray(predicted_NG, dtype=np.float64)
    b_NG = np.asarray(measured_NG, dtype=np.float64)
    a_NG = a_NG - a_NG.mean(axis=0)
    b_NG = b_NG - b_NG.mean(axis=0)
    norm_a_G, norm_b_G = np.linalg.norm(a_NG, axis=0), np.linalg.norm(b_NG, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        r_G = (a_NG * b_NG).sum(axis=0) / (norm_a_G * norm_b_G)
    return np.where(_varies(predicted_NG, norm_a_G) & _varies(measured_NG, norm_b_G), r_G, np.nan)


def _varies(values_NG: np.ndarray, norm_G: np.ndarray) -> np.ndarray:
    """Whether a column has a spread, beyond the rounding noise that subtracting the mean of a constant leaves."""
    scale_G = np.sqrt(len(values_NG)) * np.abs(values_NG).max(axis=0, initial=0.0)
    return norm_G > 1e-7 * scale_G if values_NG.dtype == np.float32 else norm_G > 1e-12 * scale_G
