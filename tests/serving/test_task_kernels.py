"""The tasks on arrays: against brute force, against sums done by hand, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from histolake.platform.errors import UsageError
from histolake.serving.tasks import ExactIndex, annotate, embed, predict, prediction, retrieve


def unit(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    array = rng.normal(size=(rows, width)).astype(np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def brute_force(query: np.ndarray, reference: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    query = query / np.linalg.norm(query, axis=1, keepdims=True)
    reference = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    scores = query.astype(float) @ reference.T.astype(float)
    order = np.stack(
        [sorted(range(len(reference)), key=lambda j, i=i: (-scores[i, j], j))[:k] for i in range(len(query))]
    )
    return order, np.take_along_axis(scores, order, axis=1)


def test_retrieve_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    query, reference = unit(rng, 37, 24), unit(rng, 501, 24)
    hits = retrieve(query, reference, 9)
    rows, scores = brute_force(query, reference, 9)
    np.testing.assert_array_equal(hits.rows_NK, rows)
    np.testing.assert_allclose(hits.scores_NK, scores, atol=1e-6)
    assert hits.rows_NK.dtype == np.int64 and hits.scores_NK.dtype == np.float32


def test_retrieve_ignores_length() -> None:
    rng = np.random.default_rng(1)
    query, reference = unit(rng, 5, 8), unit(rng, 60, 8)
    stretched = reference * rng.uniform(0.1, 50, size=(60, 1)).astype(np.float32)
    np.testing.assert_array_equal(retrieve(query * 7, stretched, 4).rows_NK, retrieve(query, reference, 4).rows_NK)


def test_ties_go_to_the_earlier_row_whatever_the_batch() -> None:
    rng = np.random.default_rng(2)
    base = unit(rng, 4, 16)
    reference = np.concatenate([base] * 50)  # every vector stands there fifty times
    query = unit(rng, 30, 16)
    together = retrieve(query, reference, 7)
    winner = np.argmax(query @ base.T, axis=1)
    np.testing.assert_array_equal(together.rows_NK, winner[:, None] + 4 * np.arange(7))
    for i in range(len(query)):
        alone = retrieve(query[i : i + 1], reference, 7)
        np.testing.assert_array_equal(alone.rows_NK[0], together.rows_NK[i])
        np.testing.assert_array_equal(alone.scores_NK[0], together.scores_NK[i])


def test_retrieve_leaves_out_what_is_not_kept() -> None:
    rng = np.random.default_rng(3)
    query, reference = unit(rng, 11, 12), unit(rng, 200, 12)
    keep = rng.random(200) < 0.3
    hits = retrieve(query, reference, 6, keep_M=keep)
    rows, _ = brute_force(query, reference[keep], 6)
    np.testing.assert_array_equal(hits.rows_NK, np.flatnonzero(keep)[rows])


@pytest.mark.parametrize("k", [0, 11])
def test_retrieve_refuses_a_k_it_cannot_serve(k: int) -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(UsageError, match="there are 10 references"):
        retrieve(unit(rng, 2, 5), unit(rng, 10, 5), k)


def test_vectors_that_cannot_be_compared_are_named() -> None:
    rng = np.random.default_rng(5)
    query, reference = unit(rng, 3, 5), unit(rng, 10, 5)
    with pytest.raises(UsageError, match="of 4 numbers, the references of 5"):
        retrieve(unit(rng, 3, 4), reference, 1)
    broken = query.copy()
    broken[2, 1] = np.nan
    with pytest.raises(UsageError, match="first is row 2"):
        retrieve(broken, reference, 1)
    reference[7] = 0
    with pytest.raises(UsageError, match="zeros in row 7"):
        retrieve(query, reference, 1)


def test_predict_by_hand() -> None:
    reference = np.array([[1, 0], [0.6, 0.8], [0, 1], [-1, 0]], dtype=np.float32)
    expression = np.array([[1, 10], [2, 20], [4, 40], [8, 80]], dtype=np.float32)
    query = np.array([[1, 0]], dtype=np.float32)
    answer = predict(query, reference, expression, top_k=2, temperature=0.5)
    weights = np.exp([1 / 0.5, 0.6 / 0.5])
    expected = (weights @ expression[:2]) / weights.sum()
    np.testing.assert_allclose(answer.expression_NG[0], expected, rtol=1e-6)
    np.testing.assert_allclose(answer.nearest_similarity_N, [1.0])
    weighted = predict(query, reference, expression, method="weighted")
    np.testing.assert_allclose(weighted.expression_NG[0], (1.0 * expression[0] + 0.6 * expression[1]) / 1.6, rtol=1e-6)


def test_predict_goes_from_the_nearest_to_the_mean() -> None:
    rng = np.random.default_rng(6)
    query, reference, expression = unit(rng, 20, 10), unit(rng, 80, 10), rng.gamma(2.0, size=(80, 7)).astype(np.float32)
    nearest = retrieve(query, reference, 1).rows_NK[:, 0]
    cold = predict(query, reference, expression, top_k=80, temperature=1e-6)
    np.testing.assert_allclose(cold.expression_NG, expression[nearest], rtol=1e-4)
    hot = predict(query, reference, expression, top_k=500, temperature=1e6)
    np.testing.assert_allclose(hot.expression_NG, np.broadcast_to(expression.mean(axis=0), (20, 7)), rtol=1e-4)
    np.testing.assert_array_equal(cold.nearest_similarity_N, hot.nearest_similarity_N)


def test_the_weighted_sum_shrinks_to_the_mean() -> None:
    """What METHODS 1.3.5 warns of: predictions vary far less than those of the default."""
    rng = np.random.default_rng(7)
    centre = np.full(16, 1.0)
    reference = (centre + 0.3 * rng.normal(size=(300, 16))).astype(np.float32)
    query = (centre + 0.3 * rng.normal(size=(50, 16))).astype(np.float32)
    expression = reference[:, :4].copy()
    printed = predict(query, reference, expression, method="weighted").expression_NG
    default = predict(query, reference, expression, top_k=20, temperature=0.01).expression_NG
    assert printed.std(axis=0).max() < 0.05 * default.std(axis=0).min()


def test_weighted_sum_in_blocks_equals_the_matrix() -> None:
    rng = np.random.default_rng(8)
    query, reference, expression = unit(rng, 2000, 6), unit(rng, 5000, 6), rng.normal(size=(5000, 5)).astype(np.float32)
    assert query.shape[0] * reference.shape[0] > 2 * prediction.BLOCK_NUMBERS  # more than two blocks
    keep = np.arange(5000) % 3 > 0
    weight = np.maximum(query @ reference[keep].T, 0)
    expected = weight @ expression[keep] / weight.sum(axis=1, keepdims=True)
    answer = predict(query, ExactIndex(reference), expression, method="weighted", keep_M=keep)
    np.testing.assert_allclose(answer.expression_NG, expected, atol=1e-5)


def test_weighted_sum_without_a_positive_cosine_is_the_mean() -> None:
    reference = np.array([[1, 0], [1, 0.1]], dtype=np.float32)
    expression = np.array([[1.0], [3.0]], dtype=np.float32)
    answer = predict(np.array([[-1, 0]], dtype=np.float32), reference, expression, method="weighted")
    np.testing.assert_allclose(answer.expression_NG, [[2.0]])


def test_predict_refuses_what_does_not_fit() -> None:
    rng = np.random.default_rng(9)
    query, reference = unit(rng, 2, 4), unit(rng, 8, 4)
    with pytest.raises(UsageError, match="8 references, but expression of shape"):
        predict(query, reference, np.ones((7, 3)))
    with pytest.raises(UsageError, match="must be above 0"):
        predict(query, reference, np.ones((8, 3)), temperature=0)


def test_annotate_by_hand_and_tie() -> None:
    classes = np.array([[1, 0], [0, 2], [1, 0]], dtype=np.float32)
    answer = annotate(np.array([[3, 4], [5, 0]], dtype=np.float32), classes)
    np.testing.assert_allclose(answer.scores_NC, [[0.6, 0.8, 0.6], [1, 0, 1]], atol=1e-7)
    np.testing.assert_array_equal(answer.best_N, [1, 0])
    np.testing.assert_allclose(answer.margin_N, [0.2, 0.0], atol=1e-7)
    with pytest.raises(UsageError, match="at least two"):
        annotate(np.ones((1, 2)), classes[:1])


class Letters:
    """An encoder small enough to check by eye: counts of letters."""

    def embed_images(self, images: list[bytes]) -> np.ndarray:
        return np.array([[len(image), 1] for image in images], dtype=np.float64)

    def embed_sentences(self, sentences: list[str]) -> np.ndarray:
        return np.array([[sentence.count("A"), 1] for sentence in sentences], dtype=np.float64)


def test_embed_takes_one_kind() -> None:
    model = Letters()
    np.testing.assert_array_equal(embed(model, images=[b"xyz"]), [[3, 1]])
    assert embed(model, sentences=["A AA", "B"]).dtype == np.float32
    for wrong in ({}, {"images": [b"x"], "sentences": ["A"]}):
        with pytest.raises(UsageError, match="only one"):
            embed(model, **wrong)
    with pytest.raises(UsageError, match="images is empty"):
        embed(model, images=[])
    with pytest.raises(UsageError, match="Sentence 1 is blank"):
        embed(model, sentences=["A", " "])
