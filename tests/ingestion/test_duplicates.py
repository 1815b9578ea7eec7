"""The same spot twice, and the same section under two names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_array

from histolake.ingestion.duplicates import (
    SKETCH,
    DuplicateSettings,
    KnownSlides,
    containment,
    first_of_each,
    profile_sketch,
)

RULES = DuplicateSettings(image_bits=6)
SYMBOLS = [f"G{i:04d}" for i in range(600)]


def some_counts(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.4, 4.0, len(SYMBOLS)), (n, len(SYMBOLS))).astype(np.float32)


def bottom(hashes: np.ndarray) -> list[int]:
    return np.sort(hashes)[:SKETCH].tolist()


def record(sketch: list[int] | None = None, picture: str | None = None, source: str = "here") -> dict[str, Any]:
    return {"profile_sketch": sketch, "image_hash": picture, "source": source}


def test_equal_rows_are_found_and_only_they() -> None:
    dense = some_counts(40, 0)
    dense[[7, 30]] = dense[3]
    dense[12] = dense[11]
    dense[12, 5] += 1
    dense[20] = np.roll(dense[21], 1)  # the same values on other genes
    sparse = csr_array(dense)
    expected = np.arange(40)
    expected[[7, 30]] = 3
    np.testing.assert_array_equal(first_of_each(sparse), expected)
    stored = sparse.copy()
    stored.data[0] = 0.0  # a stored zero is no count
    np.testing.assert_array_equal(first_of_each(csr_array(stored.toarray())), first_of_each(stored))


def test_no_rows_have_no_first() -> None:
    assert first_of_each(csr_array((0, 5), dtype=np.float32)).tolist() == []


def test_a_sketch_outlives_normalisation_dropped_genes_and_another_order() -> None:
    dense = some_counts(300, 1)
    sketch = profile_sketch(csr_array(dense), SYMBOLS)
    assert len(sketch) == SKETCH
    assert sketch == sorted(sketch)
    normalised = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
    assert profile_sketch(csr_array(normalised), SYMBOLS) == sketch
    common = (dense > 0).mean(axis=0) > 0.05
    assert common.sum() < len(SYMBOLS)
    order = np.random.default_rng(0).permutation(np.flatnonzero(common))
    shuffled = csr_array(dense[::-1][:, order])
    assert profile_sketch(shuffled, [SYMBOLS[g].lower() for g in order]) == sketch


def test_poor_spots_say_nothing() -> None:
    dense = np.zeros((30, len(SYMBOLS)), dtype=np.float32)
    dense[:, :19] = 1
    assert profile_sketch(csr_array(dense), SYMBOLS) == []
    dense[4, 19] = 1
    assert len(profile_sketch(csr_array(dense), SYMBOLS)) == 1


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.5, 1.0])
def test_the_estimate_is_as_good_as_it_says(overlap: float) -> None:
    """50 pairs of sections of 2,000 spots: the mean is the truth, and the spread is the stated error."""
    n, rng = 2000, np.random.default_rng(int(overlap * 10))
    estimates = []
    for _ in range(50):
        shared = rng.integers(-(2**63), 2**63, int(n * overlap))
        one, other = (np.concatenate([shared, rng.integers(-(2**63), 2**63, n - len(shared))]) for _ in range(2))
        estimate, seen = containment(bottom(one), bottom(other))
        assert 32 <= seen <= SKETCH
        estimates.append(estimate)
    error = np.sqrt(overlap * (1 - overlap) / 58)
    assert abs(np.mean(estimates) - overlap) <= 3.5 * error / np.sqrt(50)
    assert np.std(estimates) <= 1.4 * error


def test_small_sections_are_compared_whole() -> None:
    one, other = list(range(50)), list(range(25, 75))
    assert containment(one, other) == (0.5, 50)
    assert containment(one, []) == (0.0, 0)


def test_a_part_of_a_section_is_inside_it_but_not_the_other_way() -> None:
    whole = np.random.default_rng(5).integers(-(2**63), 2**63, 1000)
    inside, _ = containment(bottom(whole[:500]), bottom(whole))
    around, _ = containment(bottom(whole), bottom(whole[:500]))
    assert inside == 1.0
    assert 0.3 < around < 0.7


def sketches(*seeds: int) -> list[list[int]]:
    return [bottom(np.random.default_rng(seed).integers(-(2**63), 2**63, 1000)) for seed in seeds]


def test_a_slide_known_under_another_name() -> None:
    mine, theirs = sketches(1, 2)
    known = KnownSlides([{"slide_id": "a/1", **record(mine)}, {"slide_id": "a/2", **record(theirs)}])
    verdict = known.judge("b/1", record(mine), RULES)
    assert (verdict.same, verdict.shared, verdict.alike) == ("a/1", 1.0, ["a/1"])
    flagged = known.judge("b/1", record(mine), DuplicateSettings(slides="flag"))
    assert (flagged.same, flagged.alike) == (None, ["a/1"])
    assert known.judge("a/1", record(mine), RULES).alike == []  # itself
    assert known.judge("b/3", record(sketches(3)[0]), RULES).alike == []


def test_a_partial_overlap_is_a_look_alike() -> None:
    rng = np.random.default_rng(9)
    one = rng.integers(-(2**63), 2**63, 1000)
    other = np.concatenate([one[:500], rng.integers(-(2**63), 2**63, 500)])
    known = KnownSlides([{"slide_id": "a/1", **record(bottom(one))}])
    verdict = known.judge("b/1", record(bottom(other)), RULES)
    assert (verdict.same, verdict.alike) == (None, ["a/1"])


def test_few_hashes_refuse_nothing() -> None:
    """A section a hundred times larger leaves too few hashes to stand on."""
    whole = np.random.default_rng(4).integers(-(2**63), 2**63, 20_000)
    known = KnownSlides([{"slide_id": "a/1", **record(bottom(whole))}])
    verdict = known.judge("b/1", record(bottom(whole[:1000])), RULES)
    assert verdict.same is None


def test_near_pictures_are_look_alikes_and_no_duplicates() -> None:
    known = KnownSlides(
        [
            {"slide_id": "a/near", **record(picture="ff00ff00ff00ff00")},
            {"slide_id": "a/far", **record(picture="0123456789abcdef")},
            {"slide_id": "a/longer", **record(picture="0000ff00ff00ff00ff00")},
            {"slide_id": "a/none", **record()},
        ]
    )
    verdict = known.judge("b/1", record(picture="ff00ff00ff00ff0f"), RULES)
    assert (verdict.same, verdict.alike) == (None, ["a/near"])
    assert known.judge("b/1", record(picture="ff00ff00ff00ffff"), RULES).alike == []


def test_what_is_learned_during_a_run_counts_and_replaces() -> None:
    old, new, other = sketches(1, 2, 3)
    known = KnownSlides([{"slide_id": "a/1", **record(old)}])
    known.replace("a/1", record(new, picture="ff00"))
    known.replace("a/2", record(other))
    assert known.judge("b/1", record(old), RULES).alike == []
    assert known.judge("b/1", record(new), RULES).same == "a/1"
    assert known.judge("b/1", record(other), RULES).same == "a/2"
    assert known.judge("b/1", record(picture="ff01"), RULES).alike == ["a/1"]
    known.forget(["a/2", "never there"])
    assert known.judge("b/1", record(other), RULES).same is None


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match='"refuse" or "flag"'):
        DuplicateSettings(slides="ignore")
    with pytest.raises(ValueError, match=r"min_shared 0\.5 and max_shared 0\.2"):
        DuplicateSettings(min_shared=0.5, max_shared=0.2)


def test_a_real_section_in_two_formats_is_one_and_its_neighbours_are_not(real_sections: Path) -> None:
    import anndata

    from histolake.ingestion.readers.st_tables import read_counts

    found = {}
    for name in ("C2", "C3", "C4", "C5"):
        table = read_counts(str(real_sections / "her2st" / name / "counts.tsv.gz"))
        found[name] = profile_sketch(csr_array(table.counts_NG), table.symbols)
    h5ad = anndata.read_h5ad(real_sections / "her2st" / "C2" / "C2.h5ad")
    copy = profile_sketch(csr_array(h5ad.X.astype(np.float32)), list(h5ad.var_names))
    known = KnownSlides([{"slide_id": f"her2st/{name}", **record(sketch)} for name, sketch in found.items()])
    verdict = known.judge("other/patient-C", record(copy), RULES)
    assert (verdict.same, verdict.shared, verdict.alike) == ("her2st/C2", 1.0, ["her2st/C2"])
    for name, sketch in found.items():
        assert known.judge(f"her2st/{name}", record(sketch), RULES).alike == []
