"""The pairs nearest to a query among those of one lake version, by the index where it pays and by all vectors else.

Rows of ingests that are not in the version (retired, forgotten, not yet published then) are left out before the search
and not after it, so k are found wherever there are k: Lance takes the set of rows that may be found, and ours are whole
fragments. A condition with ten thousand ids would cost seconds to read alone.

Axes: Q queries, D embedding, N rows of a batch, K kept.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import UsageError
from histolake.platform.lake.embeddings.index import INDEX_ROWS
from histolake.platform.lake.embeddings.table import SIDES, EmbeddingTable, Part

if TYPE_CHECKING:
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["ANSWER", "nearest", "whole_fragments"]

PROBED = 24  # cells looked into, where every row may be found; more where fewer may
REFINE = 10  # candidates per answer that are compared again with the whole vector, for IVF_PQ
BATCH_SCORES = 1 << 22  # queries times rows that are compared at once

ANSWER = pa.schema(
    [
        pa.field("query", pa.int32(), nullable=False),  # row of the query
        pa.field("rank", pa.int32(), nullable=False),  # 0 is the nearest
        pa.field("pair_id", pa.binary(16), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),  # cosine, -1 to 1
    ]
)


def nearest(
    table: EmbeddingTable,
    vectors_QD: np.ndarray,
    k: int,
    snapshot: Snapshot,
    side: str = "vector",
    where: str | None = None,
    *,
    exact: bool = False,
) -> pa.Table:
    """The k pairs nearest by cosine to each query, as `ANSWER`: by query, then best first.

    `side` is "vector" (of the pictures) or "sentence_vector"; a pair whose vector is null is never found. Only pairs of
    the snapshot are, and of its slides for which `where` is true. Fewer than k rows come back where there are fewer.
    With `exact` all vectors are compared. Raises `UsageError`.
    """
    if side not in SIDES:
        raise UsageError(f"There is no side {side!r}; it is {' or '.join(SIDES)}.")
    view = table.view()
    dataset = view.dataset
    query_QD = _queries(vectors_QD, dataset.schema.field(side).type.list_size)
    if k < 1:
        raise UsageError(f"{k} nearest were asked for; ask for at least 1.")
    wanted = set(snapshot.slides(where=where)["ingest_id"].to_pylist())
    chosen = [part for part in view.parts if part.ingest_id in wanted]
    rows = sum(part.rows for part in chosen)
    state = None if exact or rows < INDEX_ROWS else view.index(side)
    if state is None:
        offsets, scores = _all(dataset, side, query_QD, k, chosen)
        return _answer(dataset, offsets, scores)
    share = rows / sum(part.rows for part in view.parts)
    probes = min(state.cells, math.ceil(PROBED / share))
    refine = REFINE if state.kind == "IVF_PQ" else None
    allowed = None if len(chosen) == len(view.parts) else whole_fragments(chosen)
    return _by_index(dataset, side, query_QD, k, probes=probes, refine=refine, allowed=allowed)


def _queries(vectors_QD: np.ndarray, width: int) -> np.ndarray:
    query_QD = np.atleast_2d(np.asarray(vectors_QD, dtype=np.float32))
    if query_QD.ndim != 2 or query_QD.shape[1] != width or not len(query_QD):
        raise UsageError(f"The queries have the shape {np.shape(vectors_QD)}; expected (queries, {width}).")
    length_Q = np.linalg.norm(query_QD, axis=1, keepdims=True)
    if not np.isfinite(query_QD).all() or not (length_Q > 0).all():
        raise UsageError("A query is zero or not finite; a direction is needed to compare with.")
    return query_QD / length_Q


def _all(
    dataset: Any, side: str, query_QD: np.ndarray, k: int, chosen: Sequence[Part]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of the table and scores of the best k, by query, comparing every vector; memory holds one batch."""
    best_row_QK = np.zeros((len(query_QD), 0), dtype=np.int64)
    best_score_QK = np.zeros((len(query_QD), 0), dtype=np.float32)
    first = {part.fragment_id: part.first for part in chosen}
    fragments = [dataset.get_fragment(part.fragment_id) for part in chosen]
    if chosen:
        batch_rows = max(256, min(8192, BATCH_SCORES // len(query_QD)))
        scanner = dataset.scanner(columns=[side], fragments=fragments, with_row_address=True, batch_size=batch_rows)
        for batch in scanner.to_batches():
            column = batch.column(side)
            known_N = column.is_valid().to_numpy(zero_copy_only=False)
            address_N = batch.column("_rowaddr").to_numpy()[known_N]
            rows_N = _first_of(first, address_N >> 32) + (address_N & 0xFFFFFFFF).astype(np.int64)
            # `flatten` leaves out the numbers of null vectors.
            vector_ND = np.asarray(column.flatten(), dtype=np.float32).reshape(len(rows_N), query_QD.shape[1])
            vector_ND = vector_ND / np.maximum(np.linalg.norm(vector_ND, axis=1, keepdims=True), 1e-12)
            score_QN = np.concatenate([best_score_QK, query_QD @ vector_ND.T], axis=1)
            row_QN = np.concatenate([best_row_QK, np.tile(rows_N, (len(query_QD), 1))], axis=1)
            if score_QN.shape[1] > k:
                keep_QK = np.argpartition(-score_QN, k - 1, axis=1)[:, :k]
                score_QN = np.take_along_axis(score_QN, keep_QK, axis=1)
                row_QN = np.take_along_axis(row_QN, keep_QK, axis=1)
            best_score_QK, best_row_QK = score_QN, row_QN
    order_QK = np.lexsort((best_row_QK, -best_score_QK), axis=1)
    return (
        list(np.take_along_axis(best_row_QK, order_QK, axis=1)),
        list(np.take_along_axis(best_score_QK, order_QK, axis=1)),
    )


def _first_of(first: dict[int, int], fragment_N: np.ndarray) -> np.ndarray:
    """The table's row with which each row's fragment begins."""
    ids, back = np.unique(fragment_N, return_inverse=True)
    return np.array([first[int(one)] for one in ids], dtype=np.int64)[back.ravel()]


def _answer(dataset: Any, rows: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> pa.Table:
    """The answer to rows of the table and their scores, by query, best first."""
    counts = [len(found) for found in rows]
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    wanted, back = np.unique(flat, return_inverse=True)
    names = dataset.take(wanted.tolist(), columns=["pair_id", "slide_id"]).take(pa.array(back.ravel()))
    return pa.table(
        [
            np.repeat(np.arange(len(rows), dtype=np.int32), counts),
            np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
            names["pair_id"],
            names["slide_id"],
            np.concatenate(scores).astype(np.float32),
        ],
        schema=ANSWER,
    )


def _by_index(
    dataset: Any, side: str, query_QD: np.ndarray, k: int, *, probes: int, refine: int | None, allowed: bytes | None
) -> pa.Table:
    asked: dict[str, Any] = {
        "column": side,
        "q": query_QD,
        "k": k,
        "metric": "cosine",
        "minimum_nprobes": probes,
        "use_index": True,
    }
    if refine is not None:
        asked["refine_factor"] = refine
    found = dataset.scanner(
        columns=["pair_id", "slide_id", "_distance"], nearest=asked, row_addr_allowlist=allowed
    ).to_table()
    query = found["query_index"].to_numpy()
    order = np.lexsort((found["_distance"].to_numpy(), query))
    found, query = found.take(pa.array(order)), query[order]
    first = np.searchsorted(query, np.arange(len(query_QD)))
    return pa.table(
        [
            query.astype(np.int32),
            (np.arange(len(query)) - first[query]).astype(np.int32),
            found["pair_id"],
            found["slide_id"],
            np.float32(1) - found["_distance"].to_numpy(),
        ],
        schema=ANSWER,
    )


def whole_fragments(chosen: Sequence[Part]) -> bytes:
    """Fragments as the set of rows that Lance takes: how many entries, then for each the fragment and the bytes of its
    bitmap of rows, little-endian 32-bit numbers; no bytes mean every row."""
    entries = b"".join(struct.pack("<II", part.fragment_id, 0) for part in sorted(chosen, key=lambda p: p.fragment_id))
    return struct.pack("<I", len(chosen)) + entries
