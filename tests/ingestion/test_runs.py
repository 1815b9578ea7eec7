"""How sections are cut into runs."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from histolake.ingestion.discover import Candidate
from histolake.ingestion.pipeline import _Waiting
from histolake.ingestion.runs import RunSizes, cut
from histolake.ingestion.worker import Look, Written
from histolake.platform.errors import IntegrityError
from histolake.platform.lake import Fragment

SIZES = RunSizes(smallest=1024, largest=8192)


@pytest.mark.parametrize("n_spots", [1, 72, 1023, 1024, 5000, 8192, 8193, 20_000, 700_001])
@pytest.mark.parametrize("workers", [1, 2, 7, 64])
@pytest.mark.parametrize("sections", [1, 3, 1000])
def test_runs_cover_the_section_and_are_of_one_size(n_spots: int, workers: int, sections: int) -> None:
    runs = cut(n_spots, SIZES, workers=workers, sections=sections)
    assert runs[0][0] == 0 and runs[-1][1] == n_spots
    assert all(stop == start for (_, stop), (start, _) in pairwise(runs))
    lengths = [stop - start for start, stop in runs]
    assert max(lengths) - min(lengths) <= 1 and max(lengths) <= SIZES.largest
    assert len(runs) == 1 or min(lengths) >= SIZES.smallest


def test_a_section_is_shared_only_where_workers_would_idle() -> None:
    assert len(cut(5000, SIZES, workers=2, sections=100)) == 1
    assert len(cut(5000, SIZES, workers=1, sections=1)) == 1
    assert [len(cut(5000, SIZES, workers=2, sections=left)) for left in (5, 4, 3, 2, 1)] == [1, 1, 2, 2, 4]
    assert len(cut(3000, SIZES, workers=7, sections=1)) == 2
    assert len(cut(20_000, SIZES, workers=2, sections=100)) == len(cut(20_000, SIZES, workers=1, sections=1)) == 3
    assert cut(0, SIZES, workers=2, sections=1) == []
    assert cut(50, RunSizes(largest=25), workers=2, sections=1) == [(0, 25), (25, 50)]


def test_a_run_that_was_written_twice_counts_once() -> None:
    section = waiting(n_kept=12, runs=2)
    for file in ("first", "by a worker that did a dead one's work anew"):
        section.take(written(0, 6, file))
    assert not section.complete
    section.take(written(6, 6, "second"))
    assert section.complete and [fragment.rows for fragment in section.counted()] == [6, 6]


@pytest.mark.parametrize("rows", [5, 7, 0])
def test_rows_are_counted_against_the_plan(rows: int) -> None:
    section = waiting(n_kept=12, runs=2)
    section.take(written(0, 6, "first"))
    section.take(written(6, rows, "second"))
    with pytest.raises(IntegrityError, match=f"{6 + rows} pairs of c/a were written where 12"):
        section.counted()


def waiting(*, n_kept: int, runs: int) -> _Waiting:
    candidate = Candidate(slide_id="c/a", uri="a", cohort="c", section="a", source=None)
    return _Waiting(candidate, Look(record={}, n_kept=n_kept, refused=(), species="human", unknown_genes=()), runs)


def written(start: int, rows: int, file: str) -> Written:
    fragment = Fragment(metadata=json.dumps({"files": [{"path": file}]}), rows=rows)
    return Written(slide_id="c/a", start=start, spots=6, fragment=fragment)
