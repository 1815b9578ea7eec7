"""What simple methods reach on the same slides: the floor that a trained model has to beat.

All three are fitted on training slides alone; what can be chosen is chosen on validation slides. They know an image by
its frozen features (`features`) of the spot patch, the niche patch, or both.

- mean: every spot gets the training mean of each gene.
- ridge: linear regression of expression on the features, penalty chosen (HEST's protocol, its alpha chosen).
- CCA: linear canonical correlation between features and components of expression; ranks a section's spots by the cosine
  of their canonical variates, as a contrastive model ranks them by the cosine of its vectors.

Axes: N spots, F features, G genes, P components.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
# Penalties as a share of the summed variance of the features, so that they mean the same for any number of spots.
ALPHAS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
IMAGE_COMPONENTS = (32, 128)
EXPRESSION_COMPONENTS = (16, 64, 256)
SHRINKAGE = (0.03, 0.3, 1.0, 3.0)
# What is taken where nothing can be chosen, because there is a single slide.
RIDGE_UNCHOSEN = {"features": "spot+niche", "alpha": 0.01}
CCA_UNCHOSEN = {"features": "spot+niche", "image_components": 32, "expression_components": 16, "shrinkage": 1.0}
# Genes that the expression components are made of.
CCA_GENES = 2000

# Frozen features (N, F) of a section's pictures in a column.
FeatureMaker = Callable[[Section, str], np.ndarray]


@dataclass(frozen=True)
class Ridge:
    """Linear regression with a penalty, on standardised features."""

    components: Components
    weights_PG: np.ndarray
    mean_G: np.ndarray

    @classmethod
    def fit(cls, components: Components, expression_NG: np.ndarray, alpha: float) -> Ridge:
        """Regression of the expression of the spots that the components were made of. `alpha`: share of the features'
        summed variance that is added to every direction's."""
        mean_G = expression_NG.mean(axis=0, dtype=np.float64)
        cross_PG = components.scores_NP.T @ (expression_NG - mean_G) / len(expression_NG)
        variance_P = components.variance_P
        return cls(components, cross_PG / (variance_P + alpha * variance_P.sum())[:, None], mean_G)

    def predict(self, features_NF: np.ndarray) -> np.ndarray:
        """Expression (N, G) of spots with these features."""
        return self.components.project(features_NF) @ self.weights_PG + self.mean_G


@dataclass(frozen=True, kw_only=True)
class Baselines:
    """The three methods, fitted, and what was chosen for them."""

    mean_G: np.ndarray  # training mean of the genes to predict
    ridge: Ridge
    cca: LinearCCA
    cca_gene_ids: np.ndarray
    chosen: dict[str, Any]  # features, alpha, components, shrinkage, and on which slides


def features_of(section: Section, name: str, make: FeatureMaker) -> np.ndarray:
    """Features (N, F) of a section for a named set, float64."""
    return np.concatenate([make(section, column) for column in FEATURE_SETS[name]], axis=1).astype(np.float64)


class _Material:
    """What some sections give to fit on. Components of each feature set are made when asked for, and kept."""

    def __init__(self, sections: Sequence[Section], gene_ids_G: np.ndarray, cca_genes: np.ndarray, make: FeatureMaker):
        self._sections = sections
        self._make = make
        self._images: dict[str, Components] = {}
        self.expression_NG = np.concatenate([section.expression(gene_ids_G) for section in sections])
        wide = np.concatenate([section.expression(cca_genes) for section in sections])
        self.expression = Components.fit(wide, standardise=False)

    def image(self, name: str) -> Components:
        if name not in self._images:
            stacked = np.concatenate([features_of(section, name, self._make) for section in self._sections])
            self._images[name] = Components.fit(stacked, standardise=True)
        return self._images[name]

    def ridge(self, *, features: str, alpha: float) -> Ridge:
        return Ridge.fit(self.image(features), self.expression_NG, alpha)

    def cca(self, *, features: str, **sizes: Any) -> LinearCCA:
        return LinearCCA.fit(self.image(features), self.expression, **sizes)


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
    cca_genes = variable_genes(training, CCA_GENES)
    whole = _Material(training, gene_ids_G, cca_genes, make)
    fit, check = whole, list(validation)
    if not check and len(training) > 1:
        fit, check = _Material(training[:-1], gene_ids_G, cca_genes, make), [training[-1]]
    ridge_choice = _choose_ridge(fit, check, gene_ids_G, make) if check else RIDGE_UNCHOSEN
    cca_choice = _choose_cca(fit, check, cca_genes, make) if check else CCA_UNCHOSEN
    return Baselines(
        mean_G=whole.expression_NG.mean(axis=0, dtype=np.float64),
        ridge=whole.ridge(**ridge_choice),
        cca=whole.cca(**cca_choice),
        cca_gene_ids=cca_genes,
        chosen={
            "chosen_on": [section.slide_id for section in check],
            **{f"ridge_{key}": value for key, value in ridge_choice.items()},
            **{f"cca_{key}": value for key, value in cca_choice.items()},
        },
    )


def _choose_ridge(
    fit: _Material, check: Sequence[Section], gene_ids_G: np.ndarray, make: FeatureMaker
) -> dict[str, Any]:
    measured = [section.expression(gene_ids_G) for section in check]

    def quality(choice: dict[str, Any]) -> float:
        ridge = fit.ridge(**choice)
        found = [
            prediction_figures(ridge.predict(features_of(section, choice["features"], make)), own)["pcc_mean"]
            for section, own in zip(check, measured, strict=True)
        ]
        return float(np.mean([value for value in found if value is not None] or [-1.0]))

    return max(_grid(features=tuple(FEATURE_SETS), alpha=ALPHAS), key=quality)


def _choose_cca(fit: _Material, check: Sequence[Section], genes: np.ndarray, make: FeatureMaker) -> dict[str, Any]:
    wide = [section.expression(genes) for section in check]

    def mean_rank(choice: dict[str, Any]) -> float:
        cca = fit.cca(**choice)
        pairs = [
            cca.variates(features_of(section, choice["features"], make), own)
            for section, own in zip(check, wide, strict=True)
        ]
        return float(np.mean([rank_quantiles(image_NR @ profile_NR.T).mean() for image_NR, profile_NR in pairs]))

    choices = _grid(
        features=tuple(FEATURE_SETS),
        image_components=IMAGE_COMPONENTS,
        expression_components=EXPRESSION_COMPONENTS,
        shrinkage=SHRINKAGE,
    )
    return min(choices, key=mean_rank)


def _grid(**values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    for combination in product(*values.values()):
        yield dict(zip(values, combination, strict=True))
