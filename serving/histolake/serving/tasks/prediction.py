"""Predict: expression of a patch from the expression of the reference pairs that it resembles.

Two methods. `top-k`, the default and what is served: the k nearest references, weighted by a softmax of their cosine
over a temperature (both chosen on validation slides). `weighted`: the similarity-weighted sum over all references as
Loki PredEx prints it (METHODS 1.3.5); it gives nearly the same weight to every reference and so shrinks each prediction
to the mean: small squared error, little variation left. Kept for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from histolake.platform.errors import UsageError
from histolake.serving.tasks.retrieval import ExactIndex
from histolake.serving.tasks.scoring import unit_rows

__all__ = ["Prediction", "predict"]

# Scores or gathered profiles held at once: 2^22 float64 are 32 MiB.
BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Predicted expression and how near the nearest reference was."""

    expression_NG: np.ndarray  # float32, in the unit of the references' expression
    nearest_similarity_N: np.ndarray  # float32, cosine; low means that the query resembles nothing in the reference


def predict(
    query_ND: np.ndarray,
    reference_MD: np.ndarray | ExactIndex,
    expression_MG: np.ndarray,
    *,
    top_k: int = 50,
    temperature: float = 0.05,
    method: Literal["top-k", "weighted"] = "top-k",
    keep_M: np.ndarray | None = None,
) -> Prediction:
    """Expression of each query as a weighted mean of the references'.

    `query_ND`: image vectors. `reference_MD`: vectors of the reference pairs (an `ExactIndex` saves building one).
    `expression_MG`: their expression, in any unit (the published references hold log1p of counts per 10^4). `keep_M`
    (bool) leaves references out. `top_k` beyond the number of references takes them all.

    top-k:     X_i = sum_j w_ij X_j over the k nearest,  w_ij = softmax_j(cos_ij / temperature)
    weighted:  X_i = sum_j w_ij X_j / sum_j w_ij over all references, w_ij = max(cos_ij, 0). PredEx prints the cosine
               itself (METHODS 1.3.5); a negative one would make the denominator vanish, so it is clamped. A query
               without any positive cosine gets the plain mean.

    Never holds the N x M matrix. Raises `UsageError` if expression and references differ in number, or if `top_k` or
    `temperature` is not positive.
    """
    index = reference_MD if isinstance(reference_MD, ExactIndex) else ExactIndex(reference_MD)
    expression_MG = np.asarray(expression_MG, dtype=np.float32)
    if expression_MG.ndim != 2 or len(expression_MG) != len(index):
        raise UsageError(
            f"There are {len(index)} references, but expression of shape {expression_MG.shape}; give one row each."
        )
    if top_k < 1 or not temperature > 0:
        raise UsageError(f"top_k is {top_k} and temperature {temperature}; both must be above 0.")
    query_ND = unit_rows("query", query_ND, index.vectors_MD.shape[1])
    if method == "top-k":
        return _top_k(query_ND, index, expression_MG, top_k, temperature, keep_M)
    if method == "weighted":
        return _weighted(query_ND, index, expression_MG, keep_M)
    raise UsageError(f"There is no method {method!r} to predict with; there are 'top-k' and 'weighted'.")


def _top_k(
    query_ND: np.ndarray,
    index: ExactIndex,
    expression_MG: np.ndarray,
    top_k: int,
    temperature: float,
    keep_M: np.ndarray | None,
) -> Prediction:
    left = len(index) if keep_M is None else int(keep_M.sum())
    hits = index.search(query_ND, min(top_k, max(left, 1)), keep_M)
    scaled_NK = hits.scores_NK.astype(np.float64) / temperature
    weight_NK = np.exp(scaled_NK - scaled_NK[:, :1])
    weight_NK /= weight_NK.sum(axis=1, keepdims=True)
    predicted_NG = np.empty((len(query_ND), expression_MG.shape[1]), dtype=np.float32)
    step = max(1, BLOCK_NUMBERS // max(1, weight_NK.shape[1] * expression_MG.shape[1]))
    for start in range(0, len(query_ND), step):
        part = slice(start, start + step)
        profiles_NKG = expression_MG[hits.rows_NK[part]].astype(np.float64)
        predicted_NG[part] = np.einsum("nk,nkg->ng", weight_NK[part], profiles_NKG)
    return Prediction(expression_NG=predicted_NG, nearest_similarity_N=hits.scores_NK[:, 0])


def _weighted(
    query_ND: np.ndarray, index: ExactIndex, expression_MG: np.ndarray, keep_M: np.ndarray | None
) -> Prediction:
    nearest_N = index.search(query_ND, 1, keep_M).scores_NK[:, 0]
    vectors_MD = index.vectors_MD if keep_M is None else index.vectors_MD[keep_M]
    profiles_MG = expression_MG if keep_M is None else expression_MG[keep_M]
    sums_NG = np.zeros((len(query_ND), profiles_MG.shape[1]))
    weights_N = np.zeros(len(query_ND))
    step = max(1, BLOCK_NUMBERS // max(1, len(query_ND), profiles_MG.shape[1], vectors_MD.shape[1]))
    for start in range(0, len(vectors_MD), step):
        part = slice(start, start + step)
        weight_NM = np.maximum(query_ND.astype(np.float64) @ vectors_MD[part].T.astype(np.float64), 0.0)
        sums_NG += weight_NM @ profiles_MG[part].astype(np.float64)
        weights_N += weight_NM.sum(axis=1)
    mean_G = profiles_MG.mean(axis=0, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        predicted_NG = np.where(weights_N[:, None] > 0, sums_NG / weights_N[:, None], mean_G)
    return Prediction(expression_NG=predicted_NG.astype(np.float32), nearest_similarity_N=nearest_N)
