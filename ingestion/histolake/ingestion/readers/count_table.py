"""A dense table of counts in a CSV file, spots by genes, read block by block into a sparse matrix.

Such a table has tens of thousands of columns and may hold a gigabyte of zeros; no more than a block of it is held.

Axes: N spots, G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from histolake.ingestion.readers.refusals import check_genes_named, check_unique, holds_no, truncated
from histolake.ingestion.readers.st_tables import Counts
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["read_count_table"]

BLOCK_BYTES = 8 << 20


def read_count_table(uri: str) -> Counts:
    """Read a CSV file whose first line names the genes and whose first column names the spots.

    Raises `SourceError`: `file_complete` where a line is cut short, `counts_valid` where a value is no number,
    `empty_section`, `genes_named`, `duplicate_barcodes`.
    """
    from scipy.sparse import csr_array, vstack

    genes = _genes(uri)
    barcodes: list[str] = []
    blocks = []
    for names, values_NG in _blocks(uri, len(genes)):
        barcodes += names
        _check_counts(values_NG, names, genes, uri)
        blocks.append(csr_array(values_NG))
    if not barcodes:
        raise holds_no(uri)
    check_unique(barcodes, uri)
    return Counts(barcodes=barcodes, symbols=genes, counts_NG=csr_array(vstack(blocks, format="csr")))


def _genes(uri: str) -> list[str]:
    import csv

    with _open(uri) as stream:
        line = b""
        while b"\n" not in line and (more := stream.read(1 << 16)):
            line += more
    try:
        header = next(csv.reader([line.split(b"\n")[0].decode("utf-8-sig", errors="replace")]), [])
    except csv.Error as error:
        raise truncated(uri, f"its first line is no row of a table ({error})") from error
    genes = [name.strip() for name in header[1:]]
    if not genes:
        raise holds_no(uri, "genes in its first line")
    check_genes_named(genes, uri, " in its first line")
    return genes


def _blocks(uri: str, n_genes: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and counts (rows, G) of one block of lines after another."""
    import pyarrow as pa
    import pyarrow.csv

    types = {"f0": pa.string()} | {f"f{i}": pa.float32() for i in range(1, n_genes + 1)}
    try:
        with _open(uri) as stream:
            reader = pyarrow.csv.open_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(
                    block_size=max(BLOCK_BYTES, 64 * n_genes),
                    column_names=list(types),
                    skip_rows=1,
                    use_threads=False,
                ),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=types, null_values=[""], strings_can_be_null=False
                ),
            )
            for batch in reader:
                names = batch.column(0).to_pylist()
                values_GN = [column.to_numpy(zero_copy_only=False) for column in batch.columns[1:]]
                yield names, np.stack(values_GN, axis=1)
    except pa.ArrowInvalid as error:
        said = " ".join(str(error).split())[:160]
        if "empty" in said.lower():
            return
        if "columns" in said:
            raise truncated(uri, said) from error
        raise SourceError(f"{uri}: {said}; every count must be a number.", rule="counts_valid", file=uri) from error


def _check_counts(values_NG: np.ndarray, names: list[str], genes: list[str], uri: str) -> None:
    bad = ~np.isfinite(values_NG) | (values_NG < 0)
    if bad.any():
        row, gene = (int(i[0]) for i in np.nonzero(bad))
        raise SourceError(
            f"{uri}: {int(bad.sum())} counts are negative, missing or not finite, the first of {genes[gene]} in spot "
            f"{names[row]}; counts must be 0 or more.",
            rule="counts_valid",
            figure=float(bad.sum()),
            limit=0.0,
            file=uri,
        )


def _open(uri: str) -> Any:
    """The file's bytes, unpacked where it is packed."""
    filesystem, path = Location.parse(uri).filesystem()
    return filesystem.open_input_stream(path, compression="gzip" if path.endswith(".gz") else None)
