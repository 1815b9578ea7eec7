"""What several readers refuse, said in the same words: a file or a column that is not there, a file that is cut short,
nothing in it, a name twice, a place or a gene that is not told.

Those that return a `SourceError` are for the caller to raise (from what it caught); those called `check_...` look
themselves. What a single reader refuses is said by that reader.

Axes: N spots (bins, cells), K numbers of a position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from histolake.ingestion.readers import Source
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = [
    "check_columns",
    "check_files",
    "check_genes_named",
    "check_positions",
    "check_unique",
    "holds_no",
    "not_there",
    "truncated",
]


def not_there(uri: str, so: str | None = None) -> SourceError:
    """A file is missing (`missing_file`); `so` says what that means, as a clause."""
    said = f"{uri} is not there; {so}." if so else f"{uri} is not there."
    return SourceError(said, rule="missing_file", figure=1.0, limit=0.0, file=uri)


def truncated(uri: str, what: str, figure: float = 0.0, limit: float | None = None) -> SourceError:
    """A file is not whole (`file_complete`): `what` was seen, `figure` of `limit` is there where it can be counted."""
    return SourceError(
        f"{uri} is truncated or damaged: {what}. Fetch it again.",
        rule="file_complete",
        figure=float(figure),
        limit=None if limit is None else float(limit),
        file=uri,
    )


def holds_no(uri: str, what: str = "spots") -> SourceError:
    """A whole file has nothing in it (`empty_section`)."""
    return SourceError(f"{uri} holds no {what}.", rule="empty_section", figure=0.0, limit=1.0, file=uri)


def check_files(source: Source, wanted: Mapping[str, str], needs: str, folder: Location | None = None) -> None:
    """Every role of `wanted` must have its file (`missing_file`), which is looked for by that name in `folder`, the
    source's own unless it is given. `needs` is what a section of the format is made of."""
    missing = [name for role, name in wanted.items() if role not in source.files]
    if missing:
        raise SourceError(
            f"{source.uri} lacks {' and '.join(missing)}; a {source.reader} section needs {needs}.",
            rule="missing_file",
            figure=float(len(missing)),
            limit=0.0,
            file=(folder or Location.parse(source.uri)).join(missing[0]).uri,
        )


def check_columns(names: Sequence[str], wanted: Sequence[str], uri: str) -> None:
    """A table of positions must have these columns (`positions_valid`)."""
    missing = [name for name in wanted if name not in names]
    if missing:
        raise SourceError(
            f"{uri} has no column {', '.join(missing)}; it needs {', '.join(wanted[:-1])} and {wanted[-1]}.",
            rule="positions_valid",
            figure=float(len(missing)),
            limit=0.0,
            file=uri,
        )


def check_positions(numbers_NK: np.ndarray, names_N: Sequence[str] | np.ndarray, uri: str) -> None:
    """Every number of a position must be there and finite (`positions_valid`)."""
    bad = ~np.isfinite(numbers_NK).all(axis=1)
    if bad.any():
        raise SourceError(
            f"{uri}: {int(bad.sum())} positions lack a number, the first {names_N[int(np.argmax(bad))]}.",
            rule="positions_valid",
            figure=float(bad.sum()),
            limit=0.0,
            file=uri,
        )


def check_unique(barcodes: Sequence[str] | np.ndarray, uri: str) -> None:
    """No barcode may come twice (`duplicate_barcodes`)."""
    barcodes_N = np.asarray(barcodes)
    names, times = np.unique(barcodes_N, return_counts=True)
    twice = names[times > 1]
    if len(twice):
        first = barcodes_N[int(np.argmax(np.isin(barcodes_N, twice)))]
        raise SourceError(
            f"{uri} names {len(twice)} barcodes more than once, the first {first}; a barcode must be unique in its "
            "section.",
            rule="duplicate_barcodes",
            figure=float(len(twice)),
            limit=0.0,
            file=uri,
        )


def check_genes_named(symbols: Sequence[str], uri: str, where: str = "") -> None:
    """Every gene must have a name (`genes_named`); `where` says where names stand in this file, as " in its ..."."""
    blank = sum(not symbol.strip() for symbol in symbols)
    if blank:
        raise SourceError(
            f"{uri} has {blank} genes without a name{where}.",
            rule="genes_named",
            figure=float(blank),
            limit=0.0,
            file=uri,
        )
