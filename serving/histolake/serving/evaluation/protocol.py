"""The protocol: a model on the slides of one side of its split, with the tasks as they are served.

For every section: image to transcriptome retrieval (each spot's patch against the sentences of that section's own
spots; a ranker that knows nothing reaches 0.05 and 0.10), and expression predicted from the patches with the model's
own reference and calibration. Beside them, on the same spots, what the methods in `baselines` reach. The last row of a
side, `slide_id` "all", holds the means over its slides weighted by their spots (sums for counts).

A slide that the model was trained on is never evaluated, nor a pair where the split cuts slides into blocks. The
validation side was used to choose settings, and a side may share a patient, a look-alike or the very section with
training where a split says so; the column `mark` says all of it, and belongs beside the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from histolake.platform.errors import SplitError, UsageError
from histolake.platform.lake import Snapshot
from histolake.platform.splits import BLOCKS, Selection, Split, marks
from histolake.serving.evaluation.baselines import Baselines, features_of, fit_baselines
from histolake.serving.evaluation.features import FrozenFeatures
from histolake.serving.evaluation.figures import gene_correlations, prediction_figures, section_recall
from histolake.serving.evaluation.sections import Section, read_section
from histolake.serving.tasks import Encoder, ExactIndex, Reference, embed, predict

__all__ = ["ALL_SLIDES", "Evaluation", "Evaluator", "Subject"]

ALL_SLIDES = "all"
RECALLS = {"recall_at_5pct": 0.05, "recall_at_10pct": 0.10}
# Training pairs that the baselines are fitted on at most, shared evenly among the slides.
BASELINE_PAIRS = 20_000


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model that is evaluated."""

    uri: str
    name: str
    version: str
    card: dict[str, Any]
    encoder: Encoder
    reference: Reference


@dataclass(kw_only=True)
class Evaluation:
    """Flat figures (one row a slide, and one for the side) and one row for each slide and gene."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    genes: list[dict[str, Any]] = field(default_factory=list)
    baselines: dict[str, Any] = field(default_factory=dict)  # what was chosen for them, and on which slides


class Evaluator:
    """Evaluates models on one version of a lake. Keeps frozen features and fitted baselines, so that a second model
    or side costs little more than its own encoder."""

    def __init__(self, snapshot: Snapshot, report: Callable[[str], None] = lambda _: None) -> None:
        self.snapshot = snapshot
        self._report = report
        self._frozen = FrozenFeatures()
        self._features: dict[tuple[str, str, str, int], np.ndarray] = {}
        self._baselines: dict[tuple[Any, ...], Baselines] = {}
        self._slides = {row["slide_id"]: row for row in snapshot.slides().to_pylist()}

    def run(self, subject: Subject, side: str) -> Evaluation:
        """Figures of the model on `side` ("validation" or "test") of its own split.

        Raises `UsageError` if the side has no slide here, `SplitError` if one of its slides trained the model.
        """
        split = Split.from_dict(subject.card["split"])
        sides = split.assign(self.snapshot.slides())
        here = {slide_id: its for slide_id, its in sides.items() if self._slides[slide_id]["n_pairs"]}
        asked = Selection.of(self.snapshot, split, here, side)
        self._refuse(asked, sides, side, subject)
        baselines = self._fit(split, here, subject.reference)
        marked = self._marks(asked.slide_ids, sides, subject)
        index = ExactIndex(subject.reference.text_MD)
        found = Evaluation(baselines=baselines.chosen)
        for slide_id in asked.slide_ids:
            self._report(f"{subject.uri}: {slide_id}")
            section = read_section(asked, slide_id, part=side if sides[slide_id] == BLOCKS else "")
            row = {**self._about(subject, side, slide_id, marked[slide_id]), "n_spots": len(section)}
            figures, genes = self._section(subject, index, section, baselines)
            found.rows.append({**row, **figures})
            found.genes += [{**row, **gene} for gene in genes]
        found.rows.append(_overall(found.rows))
        return found

    def _refuse(self, asked: Selection, sides: dict[str, str], side: str, subject: Subject) -> None:
        """Raise where the side is empty here, or where the model was trained on it."""
        if not asked.slide_ids:
            raise UsageError(
                f"No slide of version {self.snapshot.version} is on the {side} side of the split of {subject.uri}; "
                f"its sides are {_count(sides.values())}."
            )
        trained = set(asked.slide_ids) & set(subject.reference.training_slides)
        cut = sorted(slide_id for slide_id in trained if sides[slide_id] == BLOCKS)
        if cut:  # the other blocks of these may have trained it; no pair of this side may
            known = set(subject.reference.pair_ids)
            pairs = [set(batch["pair_id"].to_pylist()) for batch in asked.pairs(["pair_id"], slide_ids=cut)]
            trained -= set(cut) if known.isdisjoint(set().union(*pairs)) else set()
        if trained:
            raise SplitError(
                f"{subject.uri} was trained on {', '.join(sorted(trained))}, which cannot be used for its {side}."
            )

    def _marks(self, asked: Sequence[str], sides: dict[str, str], subject: Subject) -> dict[str, list[str]]:
        """What ties each slide to those that the split or the model itself calls trained on."""
        trained = {slide_id for slide_id, its in sides.items() if its in ("train", BLOCKS)}
        trained |= set(subject.reference.training_slides) & set(self._slides)
        return marks([self._slides[slide_id] for slide_id in asked], [self._slides[k] for k in sorted(trained)])

    def _about(self, subject: Subject, side: str, slide_id: str, marked: Sequence[str]) -> dict[str, Any]:
        """The columns that say which figure this is."""
        said = [*marked, *(["used to choose"] if side == "validation" else [])]
        return {
            "model": subject.uri,
            "model_name": subject.name,
            "model_version": subject.version,
            "recipe": subject.card["recipe"],
            "lake_version": self.snapshot.version,
            "simulated": bool(self._slides[slide_id]["simulated"]),
            "side": side,
            "slide_id": slide_id,
            "mark": ", ".join(said),
        }

    def _section(
        self, subject: Subject, index: ExactIndex, section: Section, baselines: Baselines
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        images = section.images[subject.card["image_column"]]
        image_ND = embed(subject.encoder, images=images)
        text_ND = embed(subject.encoder, sentences=section.sentences)
        reference = subject.reference
        measured_NG = section.expression(reference.gene_ids)
        answer = predict(image_ND, index, reference.expression_MG, **reference.predict_settings)
        printed = predict(image_ND, index, reference.expression_MG, method="weighted")
        ridge_NG = baselines.ridge.predict(features_of(section, baselines.chosen["ridge_features"], self._make))
        cca = baselines.cca.variates(
            features_of(section, baselines.chosen["cca_features"], self._make),
            section.expression(baselines.cca_gene_ids),
        )
        predictions = {
            "": answer.expression_NG,
            "_weighted_sum": printed.expression_NG,
            "_ridge": ridge_NG,
            "_mean_predictor": np.broadcast_to(baselines.mean_G, measured_NG.shape),
        }
        figures: dict[str, Any] = {"nearest_similarity_mean": float(answer.nearest_similarity_N.mean())}
        for name, share in RECALLS.items():
            figures[name] = section_recall(image_ND, text_ND, share)
            figures[f"{name}_cca"] = section_recall(*cca, share)
            figures[f"{name}_chance"] = share
        for ending, predicted_NG in predictions.items():
            figures |= {f"{key}{ending}": value for key, value in prediction_figures(predicted_NG, measured_NG).items()}
        figures["n_genes"] = len(reference.symbols)
        return figures, _by_gene(reference.symbols, predictions, measured_NG)

    # -- the baselines' material, read and embedded once ------------------------------------------------------------

    def _fit(self, split: Split, sides: dict[str, str], reference: Reference) -> Baselines:
        training, validation = (Selection.of(self.snapshot, split, sides, side) for side in ("train", "validation"))
        cut = repr(split) if split.kind == BLOCKS else ""
        key = (training.slide_ids, validation.slide_ids, cut, reference.gene_ids.tobytes())
        if key not in self._baselines:
            self._report("baselines on frozen image features")
            most = max(1, BASELINE_PAIRS // max(1, len(training.slide_ids)))

            def read(pairs: Selection, side: str) -> list[Section]:
                part = side if cut else ""
                return [read_section(pairs, slide_id, part=part, most=most) for slide_id in pairs.slide_ids]

            self._baselines[key] = fit_baselines(
                read(training, "train"), read(validation, "validation"), reference.gene_ids, self._make
            )
        return self._baselines[key]

    def _make(self, section: Section, column: str) -> np.ndarray:
        key = (section.slide_id, section.part, column, len(section))
        if key not in self._features:
            self._report(f"frozen features of {section.slide_id}, {column}")
            self._features[key] = self._frozen(section.images[column])
        return self._features[key]


def _by_gene(
    symbols: Sequence[str], predictions: dict[str, np.ndarray], measured_NG: np.ndarray
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"gene": symbol, "measured_mean": float(mean)}
        for symbol, mean in zip(symbols, measured_NG.mean(0), strict=True)
    ]
    for ending, predicted_NG in predictions.items():
        pcc_G, _ = gene_correlations(predicted_NG, measured_NG)
        for row, pcc in zip(rows, pcc_G, strict=True):
            row[f"pcc{ending}"] = None if np.isnan(pcc) else float(pcc)
    return rows


def _overall(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The side as one row: spots summed, figures as means weighted by spots, what differs left empty."""
    first = rows[0]
    total: dict[str, Any] = {}
    for key, value in first.items():
        values = [row[key] for row in rows]
        if key == "n_spots" or key.startswith("genes_constant"):
            total[key] = sum(values)
        elif key == "mark":
            total[key] = ", ".join(dict.fromkeys(mark for value in values for mark in value.split(", ") if mark))
        elif isinstance(value, float) or (value is None and key.startswith("pcc")):
            had = [(row[key], row["n_spots"]) for row in rows if row[key] is not None]
            total[key] = float(np.average([v for v, _ in had], weights=[n for _, n in had])) if had else None
        else:
            total[key] = value if len(set(values)) == 1 else "mixed" if isinstance(value, str) else None
    return {**total, "slide_id": ALL_SLIDES, "simulated": any(row["simulated"] for row in rows)}


def _count(sides: Iterable[str]) -> str:
    listed = list(sides)
    return ", ".join(f"{name} {listed.count(name)}" for name in sorted(set(listed))) or "empty"
