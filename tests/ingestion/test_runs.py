"""How sections are cut into runs."""

from __future__ import annotations

from itertools import pairwise

import pytest

from histolake.ingestion.runs import LARGEST, SMALLEST, cut


@pytest.mark.parametrize("n_spots", [1, 72, 1023, 1024, 5000, 8192, 8193, 20_000, 700_001])
@pytest.mark.parametrize("workers", [1, 2, 7, 64])
@pytest.mark.parametrize("sections", [1, 3, 1000])
def test_runs_cover_the_section_and_are_of_one_size(n_spots: int, workers: int, sections: int) -> None:
    runs = cut(n_spots, workers=workers, sections=sections)
    assert runs[0][0] == 0 and runs[-1][1] == n_spots
    assert all(stop == start for (_, stop), (start, _) in pairwise(runs))
    lengths = [stop - start for start, stop in runs]
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= LARGEST
    assert len(runs) == 1 or min(lengths) >= min(SMALLEST, LARGEST // 2)


def test_a_section_is_shared_only_where_workers_would_idle() -> None:
    assert len(cut(5000, workers=2, sections=100)) == 1
    assert len(cut(5000, workers=2, sections=1)) == 4, "as many for each worker"
    assert len(cut(5000, workers=1, sections=1)) == 1
    assert len(cut(20_000, workers=1, sections=1)) == 3
    assert cut(0, workers=2, sections=1) == []
