"""A map of pairs (UMAP) in which batch effects are seen, and how well pairs of different origin mix in it.

Where the lake has embeddings of a registered model, the map is of these; else of expression (counts per ten thousand,
log1p, the most variable genes, principal components), and it says so. A bounded sample is read: the same number of
pairs a section, drawn with a seed; half of the sections may come from other cohorts of the lake, because a batch effect
needs something to differ from.

Axes: S sampled pairs, D components of a vector, K neighbours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import UsageError
from histolake.platform.lake.snapshot import Snapshot

__all__ = ["KINDS", "Map", "MapSettings", "Mixing", "make_map", "mixing"]

KINDS = ("cohort", "section", "patient", "technology")
NEIGHBOURS = 15
FEWEST = 60  # pairs below which a map shows nothing
_TABLE = re.compile(r"(?P<model>.+)-v(?P<version>\d+)\.lance")

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """How the map is drawn."""

    pairs: int = 4000  # sampled at most
    sections: int = 200  # that the sample is drawn from, at most
    genes: int = 2000  # most variable genes, where the map is of expression
    components: int = 30  # principal components, where the map is of expression
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Whether pairs of one kind keep to themselves."""

    kind: str  # of KINDS
    values: int  # how many different ones there are in the sample
    share: float  # of a pair's nearest neighbours that have its own value
    chance: float  # the share if neighbours were drawn from the sample at random


@dataclass(frozen=True, kw_only=True, eq=False)
class Map:
    """Sampled pairs in two dimensions, with the section of each."""

    of: str  # what it was made from, in words
    embedded: bool  # from a model's embeddings, not from expression
    xy_S2: np.ndarray
    section_S: np.ndarray  # index into `sections`
    sections: tuple[dict[str, Any], ...]  # slide_id and the labels of KINDS
    mixing: tuple[Mixing, ...]
    notes: tuple[str, ...] = ()


def make_map(
    snapshot: Snapshot, slide_ids: Sequence[str], *, embeddings: str | None, settings: MapSettings, tell: Tell
) -> tuple[Map | None, str]:
    """The map of some published slides among the others of the lake, or None and why there is none.

    `embeddings` names a table such as `omiclip-v2`; without it the one that covers most of the slides is taken.
    """
    rows = _chosen_sections(snapshot, slide_ids, settings)
    tell("map: sampling pairs", 0, 1)
    table = _embedding_table(snapshot, rows, embeddings)
    if table is not None:
        name, found = table
        vector_SD, section_S = _sampled_vectors(found, rows, settings)
        of, notes = f"embeddings of {name}", _notes([])
    else:
        vector_SD, section_S, notes = _sampled_expression(snapshot, rows, settings)
        of = "expression"
    tell("map: sampling pairs", 1, 1)
    if len(vector_SD) < FEWEST:
        return None, f"There are {len(vector_SD)} pairs to draw from; a map needs at least {FEWEST}."
    tell("map: UMAP", 0, 1)
    xy_S2 = _umap(vector_SD, settings.seed)
    tell("map: UMAP", 1, 1)
    labels = tuple(_labels(row) for row in rows)
    found_map = Map(
        of=of,
        embedded=table is not None,
        xy_S2=xy_S2,
        section_S=section_S,
        sections=labels,
        mixing=tuple(mixing(vector_SD, section_S, labels)),
        notes=tuple(notes),
    )
    return found_map, ""


def _labels(row: dict[str, Any]) -> dict[str, Any]:
    patient = f"{row['study'] or row['cohort']} / {row['patient']}" if row["patient"] else "not known"
    return {
        "slide_id": row["slide_id"],
        "cohort": row["cohort"],
        "section": row["slide_id"],
        "patient": patient,
        "technology": row["technology"] or "not known",
    }


# -- the sample ----------------------------------------------------------------------------------------------------


def _chosen_sections(snapshot: Snapshot, slide_ids: Sequence[str], settings: MapSettings) -> list[dict[str, Any]]:
    """Sections to draw from: the cohort's first, then as many of the rest of the lake, both at random."""
    names = ["slide_id", "ingest_id", "cohort", "study", "patient", "technology", "species", "expression_unit"]
    rows = snapshot.slides().select(names).to_pylist()
    rng = np.random.default_rng(settings.seed)
    asked = set(slide_ids)
    mine = [row for row in rows if row["slide_id"] in asked]
    rest = [row for row in rows if row["slide_id"] not in asked]

    def some(of: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
        if len(of) <= most:
            return of
        return [of[i] for i in np.sort(rng.choice(len(of), most, replace=False))]

    chosen = some(mine, settings.sections if not rest else settings.sections // 2)
    return chosen + some(rest, min(len(chosen), settings.sections - len(chosen)))


def _quota(rows: Sequence[Any], settings: MapSettings) -> int:
    return max(settings.pairs // max(len(rows), 1), 1)


def _embedding_table(snapshot: Snapshot, rows: Sequence[dict[str, Any]], asked: str | None) -> tuple[str, Any] | None:
    """The table of embeddings that was asked for, or the one with most of the sections; the newest of equals."""
    import lance

    found: dict[str, Any] = {}
    for place in snapshot.lake.root.join("embeddings").contents()[1]:
        match = _TABLE.fullmatch(place.name)
        if match:
            found[place.name.removesuffix(".lance")] = place
    if asked is not None and asked.removesuffix(".lance") not in found:
        there = ", ".join(sorted(found)) or "none"
        raise UsageError(f"The lake has no embeddings {asked!r}; there are: {there}. Name one of these.")
    names = [asked.removesuffix(".lance")] if asked else sorted(found, key=_newest_first)
    wanted = pa.array([row["ingest_id"] for row in rows], pa.string())
    best: tuple[int, str, Any] | None = None
    for name in names:
        dataset = lance.dataset(found[name].uri, storage_options=found[name].lance_options())
        held: set[str] = set()
        for batch in dataset.to_batches(columns=["ingest_id"]):
            own = batch.column("ingest_id").cast(pa.string())
            held.update(pa.compute.unique(own.filter(pa.compute.is_in(own, wanted))).to_pylist())
        if held and (best is None or len(held) > best[0]):
            best = (len(held), name, dataset)
    if asked is not None and best is None:
        raise UsageError(f"The embeddings {asked!r} hold none of these sections; leave --embeddings out.")
    return None if best is None else best[1:]


def _newest_first(name: str) -> tuple[str, int]:
    match = _TABLE.fullmatch(f"{name}.lance")
    assert match is not None
    return match["model"], -int(match["version"])


def _sampled_vectors(
    dataset: Any, rows: Sequence[dict[str, Any]], settings: MapSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (S, D) and their sections (S,). Only the column of owners is read whole, batch by batch."""
    ids = pa.array([row["ingest_id"] for row in rows], pa.string())
    places: list[list[np.ndarray]] = [[] for _ in rows]
    at = 0
    for batch in dataset.to_batches(columns=["ingest_id"]):
        owner = pa.compute.index_in(batch.column("ingest_id").cast(pa.string()), ids)
        owner_B = owner.fill_null(-1).to_numpy(zero_copy_only=False)
        for index in np.unique(owner_B[owner_B >= 0]):
            places[index].append(at + np.flatnonzero(owner_B == index))
        at += batch.num_rows
    rng = np.random.default_rng(settings.seed)
    taken, section = [], []
    for index, parts in enumerate(places):
        own = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        quota = min(_quota(rows, settings), len(own))
        taken.append(rng.choice(own, quota, replace=False))
        section.append(np.full(quota, index))
    take_S = np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)
    order = np.argsort(take_S)
    vectors = dataset.take(take_S[order].tolist(), columns=["vector"])["vector"]
    vector_SD = np.array(vectors.to_pylist(), dtype=np.float32).reshape(len(take_S), -1)
    return vector_SD, np.concatenate(section)[order] if section else np.zeros(0, dtype=np.int64)


def _sampled_expression(
    snapshot: Snapshot, rows: Sequence[dict[str, Any]], settings: MapSettings
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Principal components (S, D) of the sampled pairs' expression, their sections (S,), and what to bear in mind."""
    from scipy.sparse import csr_matrix

    rng = np.random.default_rng(settings.seed)
    gene_ids, counts, lengths, section = [], [], [], []
    for index, row in enumerate(rows):
        for table in _drawn(snapshot, row["slide_id"], _quota(rows, settings), rng):
            lists = table["gene_ids"].combine_chunks()
            gene_ids.append(lists.flatten().to_numpy())
            counts.append(table["counts"].combine_chunks().flatten().to_numpy())
            lengths.append(pa.compute.list_value_length(lists).fill_null(0).to_numpy())
            section.append(np.full(table.num_rows, index))
    if not section or not sum(map(len, gene_ids)):
        return np.zeros((0, 0), dtype=np.float32), np.zeros(0, dtype=np.int64), []
    genes, column = np.unique(np.concatenate(gene_ids), return_inverse=True)
    pointer = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    matrix = csr_matrix((np.concatenate(counts), column, pointer), shape=(len(pointer) - 1, len(genes)))
    section_S = np.concatenate(section)
    full = np.asarray(matrix.sum(axis=1)).ravel() > 0
    return _components(matrix[full], settings), section_S[full], _notes(rows)


def _drawn(snapshot: Snapshot, slide_id: str, quota: int, rng: np.random.Generator) -> list[pa.Table]:
    """A quota of a slide's pairs, drawn at random over its fragments."""
    chunks = snapshot.chunks([slide_id], rows=1 << 30)
    total = sum(chunk.rows for chunk in chunks)
    wanted = np.sort(rng.choice(total, min(quota, total), replace=False))
    tables, before = [], 0
    for chunk in chunks:
        own = wanted[(wanted >= before) & (wanted < before + chunk.rows)] - before
        if len(own):
            tables.append(snapshot.read(chunk, ["gene_ids", "counts"], own))
        before += chunk.rows
    return tables


def _components(matrix_SG: Any, settings: MapSettings) -> np.ndarray:
    """Counts per ten thousand, log1p, the most variable genes, principal components: (S, D) float32."""
    import anndata
    import scanpy

    data = anndata.AnnData(matrix_SG.astype(np.float32))
    scanpy.pp.normalize_total(data, target_sum=1e4)
    scanpy.pp.log1p(data)
    if data.n_vars > settings.genes:
        scanpy.pp.highly_variable_genes(data, n_top_genes=settings.genes)
        data = data[:, data.var["highly_variable"].to_numpy()].copy()
    components = min(settings.components, *(n - 1 for n in data.shape))
    if components < 1:
        return np.zeros((0, 0), dtype=np.float32)
    scanpy.pp.pca(data, n_comps=components, random_state=settings.seed)
    return np.asarray(data.obsm["X_pca"], dtype=np.float32)


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    species = sorted({str(row["species"] or "human") for row in rows})
    if len(species) > 1:
        notes.append(f"Genes of {' and '.join(species)} are not matched to each other here, so species lie apart.")
    units = sorted({str(row["expression_unit"]) for row in rows if row["expression_unit"]} - {"counts"})
    if units:
        notes.append(f"Some sections are not counts but {', '.join(units)}; they are scaled like counts here.")
    return notes


# -- the map -------------------------------------------------------------------------------------------------------


def _umap(vector_SD: np.ndarray, seed: int) -> np.ndarray:
    """Two dimensions, (S, 2)."""
    import warnings

    import umap

    with warnings.catch_warnings():
        # A seed makes it run on one thread, which it warns of and we want.
        warnings.filterwarnings("ignore", message="n_jobs value")
        reducer = umap.UMAP(n_neighbors=NEIGHBOURS, min_dist=0.3, random_state=seed)
        return np.asarray(reducer.fit_transform(vector_SD), dtype=np.float64)


def mixing(vector_SD: np.ndarray, section_S: np.ndarray, labels: Sequence[dict[str, Any]]) -> list[Mixing]:
    """For each kind with at least two values: the share of nearest neighbours with a pair's own value, beside chance.

    Neighbours are of the vectors themselves, not of the drawing. Chance is what a random draw of other pairs gives.
    """
    from sklearn.neighbors import NearestNeighbors

    k = min(NEIGHBOURS, len(vector_SD) - 1)
    near_SK = NearestNeighbors(n_neighbors=k).fit(vector_SD).kneighbors(return_distance=False)
    found = []
    for kind in KINDS:
        values = [label[kind] for label in labels]
        codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
        code_S = np.array([codes[value] for value in values])[section_S]
        size = np.bincount(code_S, minlength=len(codes))
        present = int((size > 0).sum())
        if present < 2:
            continue
        share = float((code_S[near_SK] == code_S[:, None]).mean())
        chance = float(((size[code_S] - 1) / (len(code_S) - 1)).mean())
        found.append(Mixing(kind=kind, values=present, share=share, chance=chance))
    return found
