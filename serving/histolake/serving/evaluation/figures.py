"""From predictions to figures.

Axes: N spots, G genes. Pearson's correlation has two directions here, and they are different numbers: per gene over the
spots (does the map of a gene look right?) and per spot over the genes (does the profile of a spot look right?). The
second is high for anything that knows which genes are abundant, the mean predictor included; the first is what counts.

A prediction that is constant over the spots has no correlation. It counts as 0, because it explains nothing of the
variation, and it is counted: leaving such genes out would reward a method for giving up on them. A gene whose measured
values are constant leaves nothing to explain; it is left out for every method, and counted.
"""

from __future__ import annotations

import numpy as np

from histolake.training.metrics import pearson_per_gene, recall_at

__all__ = ["gene_correlations", "prediction_figures", "section_recall"]

# Queries ranked at once; a section of 50,000 spots then needs 100 MB and not 10 GB.
BLOCK_QUERIES = 512


def section_recall(image_ND: np.ndarray, partner_ND: np.ndarray, share: float) -> float:
    """Share of a section's spots whose own partner (the same row) is among the best `share` of all its partners by
    inner product; `share` is what chance reaches (METHODS 1.3.4 b)."""
    inside = 0.0
    for start in range(0, len(image_ND), BLOCK_QUERIES):
        block_QD = image_ND[start : start + BLOCK_QUERIES]
        own_Q = np.arange(start, start + len(block_QD))
        inside += len(block_QD) * recall_at(block_QD @ partner_ND.T, share, own_Q)
    return inside / len(image_ND)


def gene_correlations(predicted_NG: np.ndarray, measured_NG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pearson per gene over the spots, and which predictions were constant.

    Correlations are NaN where the measured values are constant, 0 where only the prediction is.
    """
    flat_G, constant_G = _constant(measured_NG), _constant(predicted_NG)
    pcc_G = np.where(constant_G, 0.0, pearson_per_gene(predicted_NG, measured_NG))
    return np.where(flat_G, np.nan, pcc_G), constant_G & ~flat_G


def prediction_figures(predicted_NG: np.ndarray, measured_NG: np.ndarray) -> dict[str, float | int | None]:
    """`pcc_mean` (per gene over spots), `pcc_spot_mean` (per spot over genes), `mse`, and the genes that were constant.

    A mean over nothing is None.
    """
    pcc_G, constant_G = gene_correlations(predicted_NG, measured_NG)
    pcc_N, _ = gene_correlations(predicted_NG.T, measured_NG.T)
    squared_NG = (predicted_NG.astype(np.float64) - measured_NG) ** 2
    return {
        "pcc_mean": _mean(pcc_G),
        "pcc_spot_mean": _mean(pcc_N),
        "mse": float(squared_NG.mean()),
        "genes_constant_predicted": int(constant_G.sum()),
        "genes_constant_measured": int(np.isnan(pcc_G).sum()),
    }


def _constant(values_NG: np.ndarray) -> np.ndarray:
    """Which columns vary by no more than rounding in float32 does."""
    return np.ptp(values_NG, axis=0) <= 1e-6 * np.abs(values_NG).max(axis=0)


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None
