"""The vector index of a table of embeddings: Lance's IVF, one for the pictures' vectors and one for the sentences'.

Below `INDEX_ROWS` vectors there is none: all are compared. Above, the space is cut into about sqrt(rows) cells and a
query looks into the nearest of them. The vectors in the cells are kept whole (`IVF_FLAT`: the index is as large as the
vectors, its scores are exact) up to `FLAT_BYTES`; beyond, as one byte for every eight numbers (`IVF_PQ`), and the best
candidates are compared again with the vectors of the table.

What is added is put into the cells there are, as a small index of its own that costs what was added; when there are
`MAX_PARTS` of them they are merged, and when the rows have more than doubled, the cells are drawn anew. An index that
holds dropped rows is made anew: its files would keep the vectors, and its cells were drawn around them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["FLAT_BYTES", "INDEX_ROWS", "IndexPlan", "IndexState", "drop_stale", "index_state", "keep_up", "plan_index"]

INDEX_ROWS = 10_000  # vectors; fewer are all compared, in milliseconds
FLAT_BYTES = 8 << 30  # of vectors: what a machine can keep in memory
SAMPLE_VECTORS = 1 << 19  # vectors at most that the cells are drawn from
MAX_PARTS = 8
REDRAW_GROWTH = 1.5  # cells wanted over cells there are: rows have grown by its square
COMMIT_TRIES = 3
METRIC = "cosine"


@dataclass(frozen=True, kw_only=True)
class IndexPlan:
    """How a column of vectors is to be indexed."""

    kind: str  # IVF_FLAT or IVF_PQ
    cells: int
    sample_rate: int  # training vectors a cell
    sub_vectors: int | None  # bytes a vector in IVF_PQ

    def options(self) -> dict[str, Any]:
        """As Lance takes them."""
        options: dict[str, Any] = {"num_partitions": self.cells, "sample_rate": self.sample_rate}
        return options if self.sub_vectors is None else options | {"num_sub_vectors": self.sub_vectors}


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """An index as it is."""

    name: str
    side: str
    kind: str
    cells: int
    parts: int
    indexed_rows: int
    unindexed_rows: int
    stale: bool  # it still covers fragments that were dropped


def plan_index(rows: int, width: int) -> IndexPlan | None:
    """The index for so many vectors of a width; None where they are too few."""
    if rows < INDEX_ROWS:
        return None
    cells = max(1, round(math.sqrt(rows)))
    sample_rate = max(16, min(256, SAMPLE_VECTORS // cells))
    if rows * width * 4 <= FLAT_BYTES:
        return IndexPlan(kind="IVF_FLAT", cells=cells, sample_rate=sample_rate, sub_vectors=None)
    # A byte for every eight numbers, or the fewest more that divide the width.
    sub_vectors = next(step for step in range(max(1, width // 8), width + 1) if width % step == 0)
    return IndexPlan(kind="IVF_PQ", cells=cells, sample_rate=sample_rate, sub_vectors=sub_vectors)


def index_state(dataset: Any, side: str) -> IndexState | None:
    """The index of a column, None if there is none."""
    parts = [entry for entry in dataset.list_indices() if entry["name"] == _name(side)]
    if not parts:
        return None
    # Otherwise Lance would hand out every cell's centre as text.
    os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
    told = dataset.stats.index_stats(_name(side))
    present = {int(part.fragment_id) for part in dataset.get_fragments()}
    covered = set().union(*(entry["fragment_ids"] for entry in parts))
    return IndexState(
        name=_name(side),
        side=side,
        kind=str(parts[0]["type"]),
        cells=max(int(index["num_partitions"]) for index in told["indices"]),
        parts=len(parts),
        indexed_rows=int(told["num_indexed_rows"]),
        unindexed_rows=int(told["num_unindexed_rows"]),
        stale=not covered <= present,
    )


def keep_up(open_newest: Callable[[], Any], side: str, plan: IndexPlan | None = None) -> None:
    """Make a column's index, take in what was added, or draw it anew, whichever is due.

    `plan` overrides what follows from the table's size.
    """
    dataset = open_newest()
    plan = plan or _plan(dataset, side)
    state = index_state(dataset, side)
    if plan is None:
        if state is not None:
            dataset.drop_index(_name(side))
        return
    if state is None or state.stale or state.kind != plan.kind or plan.cells >= REDRAW_GROWTH * state.cells:
        _make(open_newest, side, plan)
    elif state.unindexed_rows:
        merge = MAX_PARTS if state.parts >= MAX_PARTS else 0
        dataset.optimize.optimize_indices(num_indices_to_merge=merge, index_names=[_name(side)])


def drop_stale(open_newest: Callable[[], Any], side: str) -> None:
    """See that a column's index, where there is one, holds no row that was dropped."""
    state = index_state(open_newest(), side)
    if state is not None and state.stale:
        keep_up(open_newest, side)


def _plan(dataset: Any, side: str) -> IndexPlan | None:
    rows = dataset.count_rows()
    if rows < INDEX_ROWS:
        return None
    # Pairs without a picture have no vector; counting those that have one would read them all.
    known = dataset.scanner(columns=["pair_id"], filter=f"{side} IS NOT NULL", limit=INDEX_ROWS).to_table().num_rows
    return plan_index(rows, dataset.schema.field(side).type.list_size) if known >= INDEX_ROWS else None


def _make(open_newest: Callable[[], Any], side: str, plan: IndexPlan) -> None:
    """Another writer may clean away the version that the index was made from; then it is made once more."""
    for attempt in range(COMMIT_TRIES):
        try:
            open_newest().create_index(side, plan.kind, name=_name(side), metric=METRIC, replace=True, **plan.options())
            return
        except OSError:
            if attempt == COMMIT_TRIES - 1:
                raise


def _name(side: str) -> str:
    return f"{side}_idx"
