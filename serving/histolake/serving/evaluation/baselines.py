"""What simple methods reach on the same slides: the floor that a trained model has to beat.

All three are fitted on training slides alone; what can be chosen is chosen on validation slides. They know an image by
its frozen features (`features`) of the spot patch, the niche patch, or both.

- mean: every spot gets the training mean of each gene.
- ridge: linear regression of expression on the features, penalty chosen (HEST's protocol with its alpha chosen).
- CCA: linear canonical correlation between features and components of expression; ranks a section's spots by the cosine
  of their canonical variates, as a contrastive model ranks them by the cosine of its vectors.

Axes: N spots, F features, G genes, P and Q components of image and expression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from histolake.platform.errors import UsageError
from histolake.serving.evaluation.cca import Components, LinearCCA
from histolake.serving.evaluation.figures import prediction_figures
from histolake.serving.evaluation.sections import Section, variable_genes
from histolake.training.metrics import rank_quantiles

__all__ = ["FEATURE_SETS", "Baselines", "Ridge", "features_of", "fit_baselines"]

FEATURE_SETS = {"spot": ("spot_image",), "niche": ("niche_image",), "spot+niche": ("spot_image", "niche_image")}
ALPHAS = tuple(10.0**power for power in range(7))
IMAGE_COMPONENTS = (32, 128)
EXPRESSION_COMPONENTS = (16, 64, 256)
SHRINKAGE = (0.03, 0.3, 1.0, 3.0)
# Genes that the expression components are made of.
CCA_GENES = 2000

# Images to features: `FrozenFeatures`, or anything that does the same.
FeatureMaker = Callable[[Section, str], np.ndarray]


@dataclass(frozen=True)
class Ridge:
    """Linear regression with a penalty, on standardised features."""

    mean_F: np.ndarray
    scale_F: np.ndarray
    weights_FG: np.ndarray
    mean_G: np.ndarray

    @classmethod
    def fit(cls, features_NF: np.ndarray, expression_NG: np.ndarray, alphas: Sequence[float]) -> list[Ridge]:
        """One regression for each penalty, from a single decomposition: W = V diag(s / (s^2 + alpha)) U^T Y."""
        mean_F, scale_F = _standard(features_NF)
        mean_G = expression_NG.mean(axis=0, dtype=np.float64)
        u_NR, s_R, vt_RF = np.linalg.svd((features_NF - mean_F) / scale_F, full_matrices=False)
        inner_RG = u_NR.T @ (expression_NG - mean_G)
        return [cls(mean_F, scale_F, vt_RF.T @ ((s_R / (s_R**2 + a))[:, None] * inner_RG), mean_G) for a in alphas]

    def predict(self, features_NF: np.ndarray) -> np.ndarray:
        """Expression (N, G) of spots with these features."""
        return ((features_NF - self.mean_F) / self.scale_F) @ self.weights_FG + self.mean_G


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The three methods, fitted, and what was chosen for them."""

    mean_G: np.ndarray  # training mean of the model's genes
    ridge: Ridge
    cca: LinearCCA
    cca_gene_ids: np.ndarray
    chosen: dict[str, Any]  # features, alpha, components, shrinkage, and on which slides


def features_of(section: Section, name: str, make: FeatureMaker) -> np.ndarray:
    """Features (N, F) of a section for a named set, float64."""
    return np.concatenate([make(section, column) for column in FEATURE_SETS[name]], axis=1).astype(np.float64)


def fit_baselines(
    training: Sequence[Section], validation: Sequence[Section], gene_ids_G: np.ndarray, make: FeatureMaker
) -> Baselines:
    """Fit on `training`; choose on `validation`, or by leaving the last training slide out where there is none.

    `gene_ids_G`: the genes to predict (a model's reference genes). The ridge takes the features and penalty of highest
    mean Pearson per gene; CCA those of lowest mean rank of the true partner. Raises `UsageError` without a training
    slide.
    """
    if not training:
        raise UsageError("There is no training slide to fit the baselines on; name a split that trains on something.")
    fit, check = list(training), list(validation)
    if not check and len(fit) > 1:
        fit, check = fit[:-1], fit[-1:]
    ridge_choice = _choose_ridge(fit, check, gene_ids_G, make)
    genes = variable_genes(training, CCA_GENES)
    cca_choice = _choose_cca(fit, check, genes, make)

    expression_NG = _expression(training, gene_ids_G)
    ridge_NF = _features(training, ridge_choice["features"], make)
    cca_NF = _features(training, cca_choice["features"], make)
    components = Components.fit(cca_NF, _expression(training, genes))
    return Baselines(
        mean_G=expression_NG.mean(axis=0, dtype=np.float64),
        ridge=Ridge.fit(ridge_NF, expression_NG, [ridge_choice["alpha"]])[0],
        cca=LinearCCA.fit(
            components, cca_choice["image_components"], cca_choice["expression_components"], cca_choice["shrinkage"]
        ),
        cca_gene_ids=genes,
        chosen={
            "chosen_on": [section.slide_id for section in check],
            **{f"ridge_{key}": value for key, value in ridge_choice.items()},
            **{f"cca_{key}": value for key, value in cca_choice.items()},
        },
    )


def _choose_ridge(
    fit: Sequence[Section], check: Sequence[Section], gene_ids_G: np.ndarray, make: FeatureMaker
) -> dict[str, Any]:
    best: tuple[float, dict[str, Any]] = (-np.inf, {"features": "spot", "alpha": ALPHAS[len(ALPHAS) // 2]})
    if not check:
        return best[1]
    expression_NG = _expression(fit, gene_ids_G)
    for name in FEATURE_SETS:
        fits = Ridge.fit(_features(fit, name, make), expression_NG, ALPHAS)
        for alpha, ridge in zip(ALPHAS, fits, strict=True):
            found = [
                prediction_figures(ridge.predict(features_of(s, name, make)), s.profiles.dense(gene_ids_G))["pcc_mean"]
                for s in check
            ]
            score = float(np.mean([value for value in found if value is not None] or [-1.0]))
            if score > best[0]:
                best = (score, {"features": name, "alpha": alpha})
    return best[1]


def _choose_cca(
    fit: Sequence[Section], check: Sequence[Section], genes: np.ndarray, make: FeatureMaker
) -> dict[str, Any]:
    middle = {"image_components": 32, "expression_components": 64, "shrinkage": 1.0}
    best: tuple[float, dict[str, Any]] = (np.inf, {"features": "spot", **middle})
    if not check:
        return best[1]
    expression_NG = _expression(fit, genes)
    wide = [s.profiles.dense(genes) for s in check]
    for name in FEATURE_SETS:
        components = Components.fit(_features(fit, name, make), expression_NG)
        images = [features_of(s, name, make) for s in check]
        for p, q, shrinkage in product(IMAGE_COMPONENTS, EXPRESSION_COMPONENTS, SHRINKAGE):
            cca = LinearCCA.fit(components, p, q, shrinkage)
            score = float(np.mean([rank_quantiles(cca.scores(i, e)).mean() for i, e in zip(images, wide, strict=True)]))
            if score < best[0]:
                values = {"image_components": p, "expression_components": q, "shrinkage": shrinkage}
                best = (score, {"features": name, **values})
    return best[1]


def _features(sections: Sequence[Section], name: str, make: FeatureMaker) -> np.ndarray:
    return np.concatenate([features_of(section, name, make) for section in sections])


def _expression(sections: Sequence[Section], gene_ids_G: np.ndarray) -> np.ndarray:
    return np.concatenate([section.profiles.dense(gene_ids_G) for section in sections])


def _standard(features_NF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scale_F = features_NF.std(axis=0)
    return features_NF.mean(axis=0), np.where(scale_F > 0, scale_F, 1.0)
