"""Evaluation: the baselines find what was planted, figures are what their definitions say, and nothing leaks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import pearsonr

from histolake.platform.errors import SplitError, UsageError
from histolake.platform.lake import Snapshot
from histolake.serving.evaluation import Evaluator, fit_baselines
from histolake.serving.evaluation.baselines import Ridge, features_of
from histolake.serving.evaluation.cca import Components, LinearCCA
from histolake.serving.evaluation.features import FrozenFeatures
from histolake.serving.evaluation.figures import gene_correlations, prediction_figures, section_recall
from histolake.serving.evaluation.protocol import Evaluation, Subject
from histolake.serving.evaluation.sections import read_section
from histolake.serving.tasks import embed, load_reference, predict
from histolake.training.metrics import recall_at


@pytest.fixture(scope="module")
def subject(small_model: Any) -> Subject:
    return Subject(
        uri="models:/small/1",
        name="small",
        version="1",
        card=small_model.model.card,
        encoder=small_model.model,
        reference=load_reference(small_model.folder),
    )


@pytest.fixture(scope="module")
def evaluator(planted: Snapshot) -> Evaluator:
    return Evaluator(planted)


@pytest.fixture(scope="module")
def tested(evaluator: Evaluator, subject: Subject) -> Evaluation:
    return evaluator.run(subject, "test")


def test_figures_are_those_of_the_tasks(
    tested: Evaluation, subject: Subject, planted: Snapshot, query_images: list[bytes]
) -> None:
    section = read_section(planted, "c/Q1")
    image, text = embed(subject.encoder, images=query_images), embed(subject.encoder, sentences=section.sentences)
    row = tested.rows[0]
    assert row["recall_at_5pct"] == pytest.approx(recall_at(image @ text.T, 0.05))
    assert row["recall_at_10pct"] == pytest.approx(recall_at(image @ text.T, 0.10))
    reference = subject.reference
    predicted = predict(image, reference.text_MD, reference.expression_MG, **reference.predict_settings).expression_NG
    measured = section.expression(reference.gene_ids)
    by_gene = [pearsonr(predicted[:, g], measured[:, g]).statistic for g in range(measured.shape[1])]
    assert row["pcc_mean"] == pytest.approx(np.mean(by_gene), abs=1e-5)
    np.testing.assert_allclose([gene["pcc"] for gene in tested.genes], by_gene, atol=1e-5)
    assert row["mse"] == pytest.approx(np.mean((predicted.astype(float) - measured) ** 2))
    assert [gene["gene"] for gene in tested.genes] == reference.symbols


def test_rows_say_which_figure_they_are(tested: Evaluation, evaluator: Evaluator, subject: Subject) -> None:
    assert [row["slide_id"] for row in tested.rows] == ["c/Q1", "all"]
    assert {(row["model"], row["side"], row["mark"], row["simulated"]) for row in tested.rows} == {
        ("models:/small/1", "test", "", True)
    }
    chosen_on = evaluator.run(subject, "validation")
    assert {row["mark"] for row in chosen_on.rows} == {"same patient, used to choose"}
    assert chosen_on.baselines["chosen_on"] == ["c/V1"]
    assert all(not isinstance(value, list | dict) for row in tested.rows + tested.genes for value in row.values())


def test_the_baselines_find_what_was_planted(tested: Evaluation) -> None:
    row = tested.rows[0]
    # Three domains, told apart by colour: the true partner is among the third of its domain.
    assert row["recall_at_10pct_cca"] > 0.2
    assert row["pcc_mean_ridge"] > 0.5
    assert row["mse_ridge"] < 0.75 * row["mse_mean_predictor"]


def test_the_mean_predictor_knows_profiles_but_no_map(tested: Evaluation) -> None:
    row = tested.rows[0]
    assert row["pcc_mean_mean_predictor"] == 0.0
    assert row["genes_constant_predicted_mean_predictor"] == row["n_genes"]
    assert row["genes_constant_predicted_ridge"] == 0
    assert row["pcc_spot_mean_mean_predictor"] > 0.1


def test_a_trained_slide_is_never_evaluated(evaluator: Evaluator, subject: Subject) -> None:
    slides = [{**row, "side": "train"} if row["slide_id"] == "c/Q1" else row for row in subject.reference.slides]
    leaky = replace(subject, reference=replace(subject.reference, slides=slides))
    with pytest.raises(SplitError, match="was trained on c/Q1"):
        evaluator.run(leaky, "test")


def test_an_empty_side_is_said(evaluator: Evaluator, subject: Subject) -> None:
    split = {"kind": "named", "train": ["c/T1", "c/T2"], "validation": ["c/V1"], "test": [], "cuts_units": True}
    with pytest.raises(UsageError, match="left_out 1, train 2, validation 1"):
        evaluator.run(replace(subject, card={**subject.card, "split": split}), "test")


def test_baselines_without_a_validation_side(planted: Snapshot, subject: Subject) -> None:
    training = [read_section(planted, slide_id, most=16) for slide_id in ("c/T1", "c/T2")]
    frozen = FrozenFeatures()
    made = {(s.slide_id, c): frozen(s.images[c]) for s in training for c in s.images}
    fitted = fit_baselines(training, [], subject.reference.gene_ids, lambda s, c: made[s.slide_id, c])
    assert fitted.chosen["chosen_on"] == ["c/T2"]
    both = np.concatenate([section.expression(subject.reference.gene_ids) for section in training])
    np.testing.assert_allclose(fitted.mean_G, both.mean(axis=0), rtol=1e-5)
    features = features_of(training[0], fitted.chosen["ridge_features"], lambda s, c: made[s.slide_id, c])
    assert fitted.ridge.predict(features).shape == (16, len(subject.reference.symbols))
    with pytest.raises(UsageError, match="no training slide"):
        fit_baselines([], [], subject.reference.gene_ids, lambda s, c: made[s.slide_id, c])


def test_a_section_can_be_read_in_part(planted: Snapshot) -> None:
    whole, part = read_section(planted, "c/T1"), read_section(planted, "c/T1", most=12)
    assert len(whole) == 40 and len(part) == 12
    places = [whole.sentences.index(sentence) for sentence in part.sentences]
    assert places == sorted(places)
    genes = whole.gene_ids[0]
    np.testing.assert_array_equal(part.expression(genes), whole.expression(genes)[places])
    total = whole.counts[0].sum()
    np.testing.assert_allclose(whole.expression(genes)[0], np.log1p(whole.counts[0] / total * 1e4), rtol=1e-5)


def test_recall_in_blocks_is_that_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    image, text = rng.normal(size=(1300, 6)), rng.normal(size=(1300, 6))
    text[::5] = text[0]  # ties, too
    assert section_recall(image, text, 0.05) == pytest.approx(recall_at(image @ text.T, 0.05))
    assert section_recall(text[1:4], text[1:4], 1 / 3) == pytest.approx(1.0)


def test_constants_count_as_the_definition_says() -> None:
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(30, 4))
    predicted = measured + rng.normal(size=(30, 4))
    predicted[:, 1] = 0.1  # gave up on it
    measured[:, 2] = 3.0  # nothing to explain
    pcc, constant = gene_correlations(predicted, measured)
    assert pcc[1] == 0.0 and np.isnan(pcc[2]) and list(constant) == [False, True, False, False]
    figures = prediction_figures(predicted, measured)
    kept = [pearsonr(predicted[:, g], measured[:, g]).statistic for g in (0, 3)]
    assert figures["pcc_mean"] == pytest.approx((kept[0] + kept[1]) / 3)
    assert (figures["genes_constant_predicted"], figures["genes_constant_measured"]) == (1, 1)
    assert prediction_figures(predicted, np.ones((30, 4)))["pcc_mean"] is None


@pytest.mark.parametrize("shape", [(50, 8), (20, 90)])
def test_ridge_solves_its_normal_equations(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=shape) * rng.uniform(1, 9, size=shape[1]), rng.normal(size=(shape[0], 3))
    ridge = Ridge.fit(Components.fit(x, standardise=True), y, alpha=0.02)
    z = (x - x.mean(0)) / x.std(0)
    # The summed variance of standardised features is their number.
    penalty = 0.02 * shape[1] * len(x) * np.eye(shape[1])
    weights = np.linalg.solve(z.T @ z + penalty, z.T @ (y - y.mean(0)))
    np.testing.assert_allclose(ridge.predict(x), z @ weights + y.mean(0), atol=1e-8)


def test_cca_without_restraint_is_the_textbooks() -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(size=(400, 2))
    x = shared @ rng.normal(size=(2, 5)) + 0.5 * rng.normal(size=(400, 5))
    y = shared @ rng.normal(size=(2, 4)) + 0.5 * rng.normal(size=(400, 4))
    cca = LinearCCA.fit(
        Components.fit(x, standardise=True),
        Components.fit(y, standardise=False),
        image_components=5,
        expression_components=4,
        shrinkage=0.0,
    )
    a, b = x - x.mean(0), y - y.mean(0)
    # Canonical correlations are the cosines between the two column spaces.
    expected = np.linalg.svd(np.linalg.qr(a)[0].T @ np.linalg.qr(b)[0], compute_uv=False)
    np.testing.assert_allclose(cca.correlation_R, expected, atol=1e-8)
    assert section_recall(*cca.variates(x, y), 0.05) > 0.3


def test_the_command_writes_what_it_prints(small_model: Any, planted: Snapshot, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "figures" / "out.json"
    lake = planted.lake.uri
    done = run("evaluate", small_model.folder, "--lake", lake, "--side", "validation", "--json", "--out", out)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["side"], row["slide_id"]) for row in rows] == [("validation", "c/V1"), ("validation", "all")]
    document = json.loads(out.read_text())
    assert (document["format"], document["format_version"]) == ("histolake-evaluation", 1)
    assert document["evaluations"][0]["rows"] == rows
    assert "frozen features of c/V1" in done.stderr


def test_the_command_teaches(small_model: Any, planted: Snapshot, run: Any) -> None:
    done = run("evaluate", small_model.folder, "--lake", planted.lake.uri, "--side", "train")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: --side is 'train'; it is validation or test.\n"
