"""The two tables of a legacy Spatial Transcriptomics section, read line by line.

Whatever is wrong in a file ends in a `SourceError` that names the file, the line and the rule. The dense text matrix is
never held: each row becomes sparse as it is read.

Axes: N spots, G genes, 2 = (x, y).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.ingestion.readers.refusals import check_columns, check_genes_named, check_unique, holds_no, truncated
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["Counts", "Positions", "read_counts", "read_positions"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """A matrix of counts with its names."""

    barcodes: list[str]
    symbols: list[str]
    counts_NG: Any  # scipy.sparse.csr_array, float32


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Where the spots lie, as the file says."""

    barcodes: list[str]
    array_N2: np.ndarray  # adjusted array position (new_x, new_y), float64
    pixel_N2: np.ndarray  # pixels of the frame that the positions were measured on
    selected_N: np.ndarray  # whether the authors took the spot to lie under tissue
    file: str


COLUMNS = ("x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected")
NEEDED = ("x", "y", "pixel_x", "pixel_y")


def read_counts(uri: str) -> Counts:
    """Read `counts.tsv[.gz]`."""
    from scipy.sparse import csr_array

    lines = _lines(uri)
    header = next(lines, (0, ""))[1].split("\t")
    genes = header[1:]
    barcodes: list[str] = []
    data, indices, indptr = [], [], [0]
    for number, line in lines:
        barcode, _, rest = line.partition("\t")
        values = _numbers(rest, uri, number)
        if not barcodes and len(values) == len(header):
            genes = header  # written by R: the header has no name for the column of names
        if len(values) != len(genes):
            raise truncated(
                uri, f"line {number} has {len(values)} values for {len(genes)} genes", len(values), len(genes)
            )
        barcodes.append(barcode)
        nonzero = np.flatnonzero(values)
        data.append(values[nonzero].astype(np.float32))
        indices.append(nonzero.astype(np.int32))
        indptr.append(indptr[-1] + len(nonzero))
    if not barcodes:
        raise holds_no(uri)
    check_unique(barcodes, uri)
    symbols = [gene.strip().strip('"') for gene in genes]
    check_genes_named(symbols, uri, " in its first line")
    matrix = csr_array(
        (np.concatenate(data), np.concatenate(indices), np.array(indptr)), shape=(len(barcodes), len(genes))
    )
    return Counts(barcodes=barcodes, symbols=symbols, counts_NG=matrix)


def read_positions(uri: str) -> Positions:
    """Read `spots.tsv[.gz]`. Where there is no adjusted position the whole-numbered one stands for it."""
    lines = _lines(uri)
    header = [name.strip() for name in next(lines, (0, ""))[1].split("\t")]
    check_columns(header, NEEDED, uri)
    wanted = [name for name in COLUMNS if name in header]
    rows = []
    for number, line in lines:
        fields = dict(zip(header, cells := line.split("\t"), strict=False))
        if len(cells) != len(header):
            raise truncated(uri, f"line {number} has {len(cells)} of {len(header)} columns", len(cells), len(header))
        rows.append([_number(fields[name], uri, number) for name in wanted])
    if not rows:
        raise holds_no(uri)
    table = dict(zip(wanted, np.array(rows, dtype=np.float64).T, strict=True))
    barcodes = [f"{x:g}x{y:g}" for x, y in zip(table["x"], table["y"], strict=True)]
    check_unique(barcodes, uri)
    return Positions(
        barcodes=barcodes,
        array_N2=np.stack([table.get("new_x", table["x"]), table.get("new_y", table["y"])], axis=1),
        pixel_N2=np.stack([table["pixel_x"], table["pixel_y"]], axis=1),
        selected_N=table["selected"] != 0 if "selected" in table else np.ones(len(rows), dtype=bool),
        file=uri,
    )


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    """Line number and text of every line that holds something; a broken stream is a `SourceError`."""
    filesystem, path = Location.parse(uri).filesystem()
    try:
        with filesystem.open_input_file(path) as raw:
            stream = gzip.GzipFile(fileobj=raw) if uri.endswith(".gz") else raw
            for number, line in enumerate(_split(stream), start=1):
                text = line.decode().rstrip("\r\n")
                if text.strip():
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        held = Location.parse(uri).local_path().stat().st_size
        raise truncated(uri, f"its {held} bytes cannot be unpacked ({error})", held) from error


def _split(stream: Any) -> Iterator[bytes]:
    """Lines of a binary stream, read in blocks."""
    rest = b""
    while block := stream.read(1 << 20):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest


def _numbers(text: str, uri: str, number: int) -> np.ndarray:
    """A row's values; infinite and missing values are told, not read over."""
    try:  # Arrow reads numbers four times as fast, and refuses what is written otherwise, such as with spaces
        values = pc.cast(pc.split_pattern(pa.scalar(text), "\t").values, pa.float64()).to_numpy()
    except pa.ArrowInvalid:
        values = _numbers_with_care(text, uri, number)
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        raise SourceError(
            f"{uri}, line {number}: {int(bad.sum())} counts are negative or not finite, the first {values[bad][0]:g}; "
            "counts must be 0 or more.",
            rule="counts_valid",
            figure=float(values[bad][0]),
            limit=0.0,
            file=uri,
        )
    return values


def _numbers_with_care(text: str, uri: str, number: int) -> np.ndarray:
    try:
        return np.array(text.split("\t"), dtype=np.float64)
    except ValueError as error:
        raise SourceError(
            f"{uri}, line {number}: {error}; every count must be a number.",
            rule="counts_valid",
            figure=None,
            limit=0.0,
            file=uri,
        ) from error


def _number(text: str, uri: str, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise SourceError(
            f"{uri}, line {number}: {text!r} is not a number.",
            rule="positions_valid",
            figure=None,
            limit=None,
            file=uri,
        )
    return value
