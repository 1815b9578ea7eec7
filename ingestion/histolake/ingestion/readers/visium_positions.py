"""Where Space Ranger says the spots are, and the lattice that they lie on.

    tissue_positions_list.csv   Space Ranger 1: no header
    tissue_positions.csv        Space Ranger 2 and later: the same columns under a header
    tissue_positions.parquet    the same columns, of bins

Columns: barcode, in_tissue, array_row, array_col, pxl_row_in_fullres, pxl_col_in_fullres. Pixels are of the image that
Space Ranger was given, before any reduction.

Axes: N positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from histolake.ingestion.readers.matrices import unpacked
from histolake.ingestion.readers.refusals import check_columns, check_positions, check_unique, holds_no, truncated
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["COLUMNS", "Positions", "fit_array", "parquet_file", "read_positions"]

COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")


@dataclass(frozen=True, kw_only=True, eq=False)
class Positions:
    """Every position that the file names, under tissue or not."""

    barcodes: np.ndarray  # (N,) str, unique
    in_tissue: np.ndarray  # (N,) bool
    array_row: np.ndarray  # (N,) float64
    array_col: np.ndarray  # (N,) float64
    xy_px: np.ndarray  # (N, 2) float64, of the full-resolution image
    file: str


def read_positions(uri: str) -> Positions:
    """Positions of spots from any of the three files. Raises `SourceError` where a row is not what it should be."""
    table = parquet_file(uri).read(columns=list(COLUMNS)) if uri.endswith(".parquet") else _read_csv(uri)
    if not table.num_rows:
        raise holds_no(uri)
    numbers = {name: table[name].to_numpy().astype(np.float64) for name in COLUMNS[1:]}
    barcodes = np.array(table["barcode"].to_pylist(), dtype=str)
    check_positions(np.stack(list(numbers.values()), axis=1), barcodes, uri)
    check_unique(barcodes, uri)
    return Positions(
        barcodes=barcodes,
        in_tissue=numbers["in_tissue"] != 0,
        array_row=numbers["array_row"],
        array_col=numbers["array_col"],
        xy_px=np.stack([numbers["pxl_col_in_fullres"], numbers["pxl_row_in_fullres"]], axis=1),
        file=uri,
    )


def fit_array(array_um_N2: np.ndarray, xy_px_N2: np.ndarray, file: str, *, limit_um: float) -> float:
    """Micrometres a pixel, by fitting pixels to the array (x right, y down, turned and mirrored as may be).

    For arrays whose geometry is known; `lattice.py` finds the pitch of one whose geometry is not.

    Every position takes part, so that the scale does not hang on any two of them. Raises `SourceError`
    (`positions_spread`) where the positions lie in one line, (`positions_valid`) where they are on average further
    than `limit_um` from the lattice: then rows and columns of the file do not belong together.
    """
    from_um = array_um_N2 - array_um_N2.mean(axis=0)
    to_px = xy_px_N2 - xy_px_N2.mean(axis=0)
    if np.linalg.matrix_rank(from_um) < 2:
        raise SourceError(
            f"{file}: all {len(from_um)} positions lie in one line of the array; the scale cannot be fitted.",
            rule="positions_spread",
            figure=float(np.linalg.matrix_rank(from_um)),
            limit=2.0,
            file=file,
        )
    matrix, *_ = np.linalg.lstsq(from_um, to_px, rcond=None)
    px_per_um = float(np.sqrt(abs(np.linalg.det(matrix))))
    rms_px = float(np.sqrt(np.mean(np.sum((from_um @ matrix - to_px) ** 2, axis=1))))
    if not px_per_um * limit_um > rms_px:
        off = f"{rms_px / px_per_um:.0f} um" if px_per_um else "any distance"
        raise SourceError(
            f"{file}: the pixels are {off} off the lattice that the array's rows and columns make (at most "
            f"{limit_um:g} um). Give the positions as Space Ranger wrote them.",
            rule="positions_valid",
            figure=rms_px / px_per_um if px_per_um else None,
            limit=limit_um,
            file=file,
        )
    return 1 / px_per_um


def parquet_file(uri: str) -> Any:
    """A positions file in Parquet, open, with all its columns there; only its footer is read."""
    import pyarrow as pa
    from pyarrow import parquet

    filesystem, path = Location.parse(uri).filesystem()
    try:
        file = parquet.ParquetFile(path, filesystem=filesystem)
    except pa.ArrowInvalid as error:
        raise truncated(uri, str(error)) from error
    check_columns(file.schema_arrow.names, COLUMNS, uri)
    return file


def _read_csv(uri: str) -> Any:
    """The table with the columns by name, whether or not a header names them."""
    import io

    import pyarrow as pa
    from pyarrow import csv

    data = unpacked(uri)
    first = data[: data.find(b"\n")] if b"\n" in data else data
    header = [name.strip().strip('"') for name in first.decode(errors="replace").split(",")]
    named = "barcode" in header
    if named:
        check_columns(header, COLUMNS, uri)
    elif len(header) != len(COLUMNS) and data.strip():
        raise truncated(uri, f"its first line has {len(header)} of {len(COLUMNS)} columns", len(header), len(COLUMNS))
    if not data.strip():
        return pa.table({name: pa.array([], pa.string() if name == "barcode" else pa.float64()) for name in COLUMNS})
    types = {name: pa.float64() for name in COLUMNS[1:]} | {"barcode": pa.string()}
    try:
        return csv.read_csv(
            io.BytesIO(data),
            read_options=csv.ReadOptions(column_names=header if named else list(COLUMNS), skip_rows=int(named)),
            convert_options=csv.ConvertOptions(column_types=types, include_columns=list(COLUMNS)),
        )
    except pa.ArrowInvalid as error:
        said = str(error).split("\n")[0][:160]
        if "Expected" in said:
            raise truncated(uri, said) from error
        raise SourceError(f"{uri}: {said}.", rule="positions_valid", figure=None, limit=None, file=uri) from error
