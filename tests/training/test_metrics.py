"""Figures on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from histolake.training.expression import GeneChooser, normalised
from histolake.training.metrics import pearson_per_gene, rank_quantiles, recall_at
from histolake.training.schedules import warmup_cosine


def test_a_ranker_that_knows_nothing_scores_chance() -> None:
    for candidates in (7, 20, 181):
        flat = np.zeros((candidates, candidates))
        assert recall_at(flat, 0.05) == pytest.approx(0.05)
        assert rank_quantiles(flat) == pytest.approx(0.5)
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(2000, 37))
    own = draw.integers(37, size=2000)
    assert recall_at(scores, 0.1, own) == pytest.approx(0.1, abs=0.02)


def test_recall_counts_the_own_candidate_among_the_best() -> None:
    scores = np.eye(20)
    assert recall_at(scores, 0.05) == 1.0
    assert recall_at(-scores, 0.95) == 0.0
    second = np.eye(20)
    second[:, 0] = 2.0
    second[0, 0] = 3.0
    assert recall_at(second, 0.05) == pytest.approx(1 / 20)
    assert recall_at(second, 0.10) == 1.0


def test_pearson_is_numpys_and_nan_where_a_gene_is_constant() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(size=(30, 4)), draw.normal(size=(30, 4))
    a[:, 2] = 0.1
    b[:, 3] = 7.3
    r = pearson_per_gene(a, b)
    assert r[:2] == pytest.approx([np.corrcoef(a[:, g], b[:, g])[0, 1] for g in range(2)])
    assert np.isnan(r[2:]).all()
    assert pearson_per_gene(a[:, :2] * 1e-6, a[:, :2]) == pytest.approx(1.0)


def test_normalised_expression_divides_by_all_counts_and_keeps_the_order_asked() -> None:
    ids = [np.array([2, 5, 9]), np.array([5]), np.array([], dtype=int)]
    counts = [np.array([1.0, 3.0, 6.0]), np.array([4.0]), np.array([])]
    expected = np.log1p([[3000, 0, 1000], [10000, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(normalised(ids, counts, [5, 7, 2]), expected, rtol=1e-6)


def test_chosen_genes_are_the_most_variable_of_the_well_expressed() -> None:
    draw = np.random.default_rng(0)
    chooser = GeneChooser()
    for spot in range(50):
        counts = np.array([100.0, 1.0 + 60 * (spot % 2), 30 + 5 * draw.random(), 500.0 * (spot == 0)])
        chooser.add(np.array([0, 3, 4, 8]), counts)
    assert chooser.choose(1).tolist() == [3]
    assert 8 not in chooser.choose(10)


def test_genes_are_chosen_alike_from_many_spots_at_once() -> None:
    draw = np.random.default_rng(1)
    sizes = draw.integers(0, 9, 40)
    ids = [np.sort(draw.choice(12, size, replace=False)) for size in sizes]
    counts = [draw.integers(0, 50, size).astype(float) for size in sizes]
    one, all_at_once = GeneChooser(), GeneChooser()
    for spot in zip(ids, counts, strict=True):
        one.add(*spot)
    all_at_once.add(np.concatenate(ids), np.concatenate(counts), sizes)
    assert one.choose(8).tolist() == all_at_once.choose(8).tolist() and len(one.choose(8)) == 8


def test_the_learning_rate_rises_then_falls_to_the_floor() -> None:
    rates = [warmup_cosine(step, steps=100, warmup_steps=10, floor=0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[10] == 1.0
    assert np.all(np.diff(rates[10:]) <= 0)
    assert rates[-1] == pytest.approx(0.1)
