"""Feature-barcode matrices as 10x Genomics writes them: one HDF5 file, or a folder in Matrix Market format.

    filtered_feature_bc_matrix.h5   group `matrix`: barcodes, data, indices, indptr, shape,
                                    features/id, name, feature_type, genome
    filtered_feature_bc_matrix/     matrix.mtx, features.tsv (genes.tsv of Cell Ranger 2), barcodes.tsv; plain or .gz

Features that are no genes (antibodies, controls, custom probes of a type of their own) are left out and told by type.
Nothing is ever dense: memory is proportional to the stored values, and `H5Matrix.rows` reads a run of barcodes alone.

Axes: N barcodes (spots, bins or cells), F features of the file, G genes among them.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.ingestion.genes import looks_like_ensembl
from histolake.ingestion.readers.refusals import check_unique, holds_no, not_there, truncated
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["Genes", "H5Matrix", "Matrix", "open_h5", "read_matrix", "unpacked"]

GENES = "Gene Expression"
MATRIX_FILES = ("matrix.mtx.gz", "matrix.mtx")
FEATURE_FILES = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")
BARCODE_FILES = ("barcodes.tsv.gz", "barcodes.tsv")
_LENGTHS = re.compile(r"eof = (\d+).*stored_eof = (\d+)")
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Genes:
    """The genes of a matrix, and what else it measured."""

    ids: list[str]  # G, as the source writes them; Ensembl ids where its reference has them
    symbols: list[str]  # G; the id where there is no symbol. One symbol may stand for several ids
    genomes: list[str]  # G; "" where the source does not say
    left_out: Mapping[str, int]  # feature type -> features of that type, none of them among the G

    @property
    def ensembl_ids(self) -> list[str | None]:
        """G; None for a gene that Ensembl does not number, such as a transgene or a custom probe."""
        return [i if looks_like_ensembl(i) else None for i in self.ids]

    @property
    def flags(self) -> tuple[str, ...]:
        """One flag a feature type that was left out."""
        return tuple(f"left out: {kind}" for kind in sorted(self.left_out))


@dataclass(frozen=True, kw_only=True, eq=False)
class Matrix:
    """A whole matrix."""

    barcodes: np.ndarray  # (N,) str, unique
    counts_NG: Any  # scipy.sparse.csr_array float32
    genes: Genes
    attributes: Mapping[str, str]  # what the file says of itself: software_version, chemistry_description
    file: str


def read_matrix(uri: str) -> Matrix:
    """The matrix of an `.h5` file or of a Matrix Market folder. Raises `SourceError` where it is not whole."""
    if uri.endswith(".h5"):
        with open_h5(uri) as stored:
            barcodes = stored.barcodes(0, stored.n_barcodes).astype(str)
            check_unique(barcodes, uri)
            return Matrix(
                barcodes=barcodes,
                counts_NG=stored.rows(0, stored.n_barcodes),
                genes=stored.genes,
                attributes=stored.attributes,
                file=uri,
            )
    return _read_mtx(Location.parse(uri))


class H5Matrix:
    """An open HDF5 matrix, read a run of barcodes at a time."""

    def __init__(self, file: Any, uri: str) -> None:
        self._uri = uri
        group = file.get("matrix")
        wanted = ("barcodes", "data", "indices", "indptr", "shape", "features/id", "features/name")
        lacking = wanted if group is None else [name for name in wanted if name not in group]
        if lacking:
            raise SourceError(
                f"{uri} has no matrix/{lacking[0]}; it is no feature-barcode matrix of Space Ranger 1 or later "
                "(group `matrix` with barcodes, data, indices, indptr, shape and features).",
                rule="counts_valid",
                figure=float(len(lacking)),
                limit=0.0,
                file=uri,
            )
        self._group = group
        self.attributes = {name: _text(value) for name, value in file.attrs.items()}
        self.indptr = group["indptr"][:].astype(np.int64)
        n_features, self.n_barcodes = (int(n) for n in group["shape"][:])
        self._check_lengths(n_features)
        features = group["features"]
        kinds = _texts(features["feature_type"]) if "feature_type" in features else [GENES] * n_features
        genomes = _texts(features["genome"]) if "genome" in features else [""] * n_features
        self.genes, self._column_F = _genes(_texts(features["id"]), _texts(features["name"]), kinds, genomes, uri)

    def barcodes(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) the names as bytes, a quarter of what text would need."""
        return np.asarray(self._group["barcodes"][start:stop]).astype("S")

    def rows(self, start: int, stop: int) -> Any:
        """Counts of barcodes [start, stop) as a sparse (stop - start, G) float32 matrix."""
        from scipy.sparse import csr_array

        first, last = int(self.indptr[start]), int(self.indptr[stop])
        # HDF5 converts while it reads, so that the wider stored numbers are never held.
        values = np.empty(last - first, dtype=np.float32)
        features = np.empty(last - first, dtype=np.int32)
        if last > first:
            self._group["data"].read_direct(values, np.s_[first:last])
            self._group["indices"].read_direct(features, np.s_[first:last])
            _check_features(features, len(self._column_F), self._uri)
        offsets = self.indptr[start : stop + 1] - first
        values, columns, offsets = _only_genes(values, features, offsets, self._column_F)
        return csr_array((values, columns, offsets), shape=(stop - start, len(self.genes.ids)))

    def blocks(self, max_values: int) -> Iterator[tuple[int, int]]:
        """Runs of barcodes that store at most `max_values` values each (a single barcode may store more)."""
        start = 0
        while start < self.n_barcodes:
            stop = int(np.searchsorted(self.indptr, self.indptr[start] + max_values, side="right")) - 1
            stop = min(max(stop, start + 1), self.n_barcodes)
            yield start, stop
            start = stop

    def _check_lengths(self, n_features: int) -> None:
        """The parts of the matrix must be as long as its shape says."""
        group = self._group
        pairs = (
            ("barcodes", len(group["barcodes"]), self.n_barcodes),
            ("column starts", len(self.indptr), self.n_barcodes + 1),
            ("features", len(group["features/id"]), n_features),
            ("values", len(group["data"]), int(self.indptr[-1]) if len(self.indptr) else 0),
            ("indices", len(group["indices"]), len(group["data"])),
        )
        for what, held, said in pairs:
            if held != said:
                raise truncated(self._uri, f"it holds {held:,} {what}, and its shape says {said:,}", held, said)
        if not self.n_barcodes:
            raise holds_no(self._uri, "barcodes")
        if self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any():
            raise truncated(self._uri, "its column starts do not rise from 0", self.indptr[0], 0)


@contextmanager
def open_h5(uri: str) -> Iterator[H5Matrix]:
    """An HDF5 matrix, open; whatever HDF5 says of damage on the way becomes a `SourceError`."""
    import h5py

    try:
        with h5py.File(Location.parse(uri).local_path(), "r") as file:
            yield H5Matrix(file, uri)
    except FileNotFoundError as error:
        raise not_there(uri) from error
    except (OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        lengths = _LENGTHS.search(said)
        if lengths:
            held, whole = (int(n) for n in lengths.groups())
            raise truncated(uri, f"{held:,} bytes of {whole:,} are there", held, whole) from error
        raise truncated(uri, f"HDF5 cannot read it ({said[:160]})") from error


def _read_mtx(folder: Location) -> Matrix:
    matrix, features, barcodes = (_one_of(folder, names) for names in (MATRIX_FILES, FEATURE_FILES, BARCODE_FILES))
    table = _tsv(features)
    width = min((len(row) for row in table), default=2)
    if width < 2:
        bad = next(i for i, row in enumerate(table, start=1) if len(row) < 2)
        raise truncated(features, f"line {bad} has {width} of at least 2 columns", width, 2)
    kinds = [row[2] if len(row) > 2 else GENES for row in table]
    genes, column_F = _genes([row[0] for row in table], [row[1] for row in table], kinds, [""] * len(table), features)
    names = np.array([row[0] for row in _tsv(barcodes)], dtype=str)
    check_unique(names, barcodes)
    counts_FN = _mmread(matrix)
    for what, held, said, file in (
        ("features", len(table), counts_FN.shape[0], features),
        ("barcodes", len(names), counts_FN.shape[1], barcodes),
    ):
        if held != said:
            raise truncated(file, f"it names {held:,} {what}, and {matrix} holds {said:,}", held, said)
    if not len(names):
        raise holds_no(barcodes, "barcodes")
    return Matrix(
        barcodes=names,
        counts_NG=_genes_of(counts_FN, column_F, len(genes.ids)),
        genes=genes,
        attributes={},
        file=matrix,
    )


def _genes_of(counts_FN: Any, column_F: np.ndarray, n_genes: int) -> Any:
    """A coordinate matrix of features by barcodes as a row matrix of barcodes by genes."""
    from scipy.sparse import coo_array

    column = column_F[counts_FN.coords[0]]
    keep = column >= 0
    entries = (counts_FN.data[keep].astype(np.float32), (counts_FN.coords[1][keep], column[keep]))
    return coo_array(entries, shape=(counts_FN.shape[1], n_genes)).tocsr()


def _mmread(uri: str) -> Any:
    from scipy.io import mmread

    filesystem, path = Location.parse(uri).filesystem()
    try:
        with filesystem.open_input_file(path) as raw:
            stream = gzip.GzipFile(fileobj=raw) if uri.endswith(".gz") else raw
            return mmread(stream, spmatrix=False)
    except _DAMAGED as error:
        raise truncated(uri, f"it cannot be unpacked ({error})") from error
    except ValueError as error:
        raise truncated(uri, f"it is no whole Matrix Market file ({str(error)[:160]})") from error


def _tsv(uri: str) -> list[list[str]]:
    return [line.split("\t") for line in unpacked(uri).decode(errors="replace").splitlines() if line.strip()]


def unpacked(uri: str) -> bytes:
    """A small file whole, unpacked where its name ends with .gz. Raises `SourceError` where that cannot be done."""
    data = Location.parse(uri).read_bytes()
    try:
        return gzip.decompress(data) if uri.endswith(".gz") else data
    except _DAMAGED as error:
        raise truncated(uri, f"it cannot be unpacked ({error})") from error


def _one_of(folder: Location, names: tuple[str, ...]) -> str:
    for name in names:
        if folder.join(name).is_file():
            return folder.join(name).uri
    raise not_there(folder.join(names[0]).uri, f"{folder} is no whole matrix without it")


def _genes(
    ids: list[str], names: list[str], kinds: list[str], genomes: list[str], uri: str
) -> tuple[Genes, np.ndarray]:
    """The genes, and for each feature its column among them (-1: left out)."""
    is_gene = np.array([kind == GENES for kind in kinds], dtype=bool)
    if not is_gene.any():
        there = ", ".join(f"{kind} ({n})" for kind, n in Counter(kinds).items()) or "none at all"
        raise SourceError(
            f"{uri} holds no feature of the type {GENES!r}; its features: {there}. A section needs genes.",
            rule="genes_named",
            figure=0.0,
            limit=1.0,
            file=uri,
        )
    column_F = np.where(is_gene, np.cumsum(is_gene) - 1, -1).astype(np.int32)
    chosen = np.flatnonzero(is_gene).tolist()
    # A reference of several genomes writes its genome before each name, once or with more underscores.
    plain = [_without_genome(ids[f], genomes[f]) for f in chosen]
    symbols = [_without_genome(names[f], genomes[f]) or plain[g] for g, f in enumerate(chosen)]
    left_out = Counter(kind for kind in kinds if kind != GENES)
    return Genes(ids=plain, symbols=symbols, genomes=[genomes[f] for f in chosen], left_out=dict(left_out)), column_F


def _without_genome(name: str, genome: str) -> str:
    return name[len(genome) :].lstrip("_") if genome and name.startswith(f"{genome}_") else name


def _only_genes(
    values: np.ndarray, features: np.ndarray, offsets: np.ndarray, column_F: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(column_F) and column_F[-1] == len(column_F) - 1:
        return values, features, offsets  # every feature is a gene
    columns = column_F[features]
    keep = columns >= 0
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    return values[keep], columns[keep], kept_before[offsets]


def _check_features(features: np.ndarray, n_features: int, uri: str) -> None:
    highest = int(features.max())
    if highest >= n_features or int(features.min()) < 0:
        raise truncated(uri, f"a value belongs to feature {highest:,} of {n_features:,}", highest, n_features - 1)


def _text(value: Any) -> str:
    """An attribute as text; the first of several."""
    first = np.asarray(value).ravel()[:1].tolist()
    return "" if not first else first[0].decode() if isinstance(first[0], bytes) else str(first[0])


def _texts(dataset: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in dataset[:].tolist()]
