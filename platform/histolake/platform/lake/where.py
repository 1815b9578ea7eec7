"""Filters: one SQL-like expression over a table's columns, such as `organ = 'breast' and um_per_px < 1`.

The expression is DataFusion's, as Lance takes it to filter its rows: a condition and nothing else, so that no
statement, subquery or file function can be meant. What a curator gets wrong is told before the engine sees it: a word
that is no column, and functions of time or chance, with which a filter would not mean the same tomorrow.

Text stands in quotes; `=`, `<>`, `<`, `like`, `ilike`, `in`, `between`, `is null`, `and`, `or`, `not` and the functions
of text and lists are there (`lower(organ) = 'breast'`, `array_has(flags, 'low_resolution')`). As in SQL, a comparison
with an empty value is neither true nor false: `patient <> 'P1'` leaves out slides without a patient.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import UsageError
from histolake.platform.licences import licence_id

__all__ = ["select"]

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*'|"(?:[^"]|"")*")|`(?P<quoted>[^`]*)`|(?P<word>[A-Za-z_]\w*)|(?P<number>\d[\w.]*)"""
    r"""|(?P<never>;|--|/\*)|(?P<other>\s+|.)""",
    re.DOTALL,
)
_KEYWORDS = {
    *("and", "or", "not", "is", "null", "in", "like", "ilike", "escape", "between", "true", "false", "unknown"),
    *("distinct", "from", "cast", "as", "array", "timestamp", "date", "interval"),
    *("int", "bigint", "double", "float", "real", "string", "varchar", "text", "boolean"),
}
# With these a filter would not mean the same tomorrow.
_CHANGING = {"now", "today", "current_date", "current_time", "current_timestamp", "random", "rand", "uuid"}
_ROW = "row"


def select(table: pa.Table, where: str | None, joined: tuple[pa.Table, pa.Array] | None = None) -> pa.Table:
    """The rows of a table for which an expression is true, in their order; all of them without an expression.

    `joined` is another table and, for each row of this one, the row of it that the expression may speak of too (null:
    none). Where there is a column `licence`, the expression may also name `licence_id` (see `platform.licences`). An
    empty list counts as a list without members. Raises `UsageError` for an expression that cannot be.
    """
    if where is None:
        return table
    if not where.strip():
        raise UsageError("The filter is empty; write a condition, such as organ = 'breast'.")
    held: dict[str, Callable[[], Any]] = {}
    held |= {field.name: partial(table.column, field.name) for field in table.schema if not _is_nested(field.type)}
    if joined is not None:
        other, at = joined
        for field in other.schema:
            if field.name not in held and not _is_nested(field.type):
                held[field.name] = partial(_taken, other, field.name, at)
    if "licence" in held:
        held["licence_id"] = partial(_licence_ids, held["licence"])
    asked, expression = _checked(where, list(held))
    columns = {f"_{name}": _comparable(held[name]()) for name in asked}
    return table.take(_matching(pa.table({_ROW: np.arange(table.num_rows)} | columns), expression))


def _taken(table: pa.Table, name: str, at: pa.Array) -> pa.ChunkedArray:
    return table[name].take(at)


def _licence_ids(licences: Callable[[], pa.ChunkedArray]) -> pa.Array:
    texts = licences().to_pylist()
    known = {text: licence_id(text) for text in set(texts)}
    return pa.array([known[text] for text in texts], pa.string())


def _is_nested(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or (pa.types.is_list(kind) and pa.types.is_struct(kind.value_type))


def _checked(where: str, known: Sequence[str]) -> tuple[list[str], str]:
    """The columns that an expression names, and the expression with their names as the engine gets them."""
    by_name = {name.lower(): name for name in known}
    asked: dict[str, None] = {}
    parts: list[str] = []
    depth = 0
    for token in _TOKEN.finditer(where):
        kind, text = token.lastgroup, token.group()
        if kind == "never":
            raise UsageError(f"The filter holds {text!r}; write one condition and nothing else.")
        if kind == "word" and where[token.end() :].lstrip().startswith("(") and text.lower() not in _KEYWORDS:
            if text.lower() in _CHANGING:
                raise UsageError(f"The filter asks for {text}(), which is another value every time; write a constant.")
        elif kind == "quoted" or (kind == "word" and text.lower() not in _KEYWORDS):
            name = (token.group("quoted") or text).lower()
            if name not in by_name:
                raise UsageError(_unknown(token.group("quoted") or text, known))
            asked[by_name[name]] = None
            text = f"`_{by_name[name]}`"
        elif text in "()":
            depth += 1 if text == "(" else -1
            if depth < 0:
                break
        parts.append(text)
    if depth:
        raise UsageError(f"The filter {where!r} has a bracket without its partner.")
    return list(asked), "".join(parts)


def _unknown(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return (
        f"The filter names {name!r}, which is no column{hint}; text stands in quotes, "
        f"and the columns are {', '.join(sorted(known))}."
    )


def _comparable(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """A column as the engine compares it: whole numbers as numbers of any kind, no list as an empty one."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.float64())
    if pa.types.is_list(column.type):
        return pa.array([value or [] for value in column.to_pylist()], column.type)
    return column


def _matching(columns: pa.Table, expression: str) -> pa.Array:
    import lance

    try:
        held = lance.write_dataset(columns, "memory://filter")
        found = held.to_table(columns=[_ROW], filter=f"({expression})", scan_in_order=True)
    except (ValueError, OSError) as error:
        raise UsageError(f"The filter {_plain(expression)!r} cannot be read: {_said(error)}.") from error
    return found[_ROW].combine_chunks()


def _plain(expression: str) -> str:
    return re.sub(r"`_(\w+)`", r"\1", expression)


# The engine's words -> ours.
_WORDS = (
    (r"^The filter .* does not return a boolean$", "it is neither true nor false; compare the column with something"),
    (r"^(.*) is no literal of type 'Timestamp.*", r"\1 is no time; write timestamp '2026-01-31'"),
    (r"^(.*) is no literal of type 'List.*", r"a list holds \1 or not; write array_has(column, \1)"),
    (r"'Utf8'", "text"),
    (r"'Float64'", "number"),
    (r"'Boolean'", "true or false"),
    (r"found: (\)|EOF)$", "found its end"),
)


def _said(error: Exception) -> str:
    """What is wrong, of all that the engine says."""
    text = re.split(r", /\S+\.rs:\d+", " ".join(str(error).split()))[0]
    for pattern in (r"sql parser error: (.*?)\)?$", r"Error parsing function: (.*)", r"Received literal (.*)"):
        if found := re.search(pattern, text):
            text = found.group(1)
            break
    text = re.sub(r"^(Invalid user input: |Error during planning: |Schema error: )+", "", text)
    text = re.sub(r"^\w+\((.*?)\) and could not convert to literal", r"\1 is no literal", text).rstrip(".")
    for theirs, ours in _WORDS:
        text = re.sub(theirs, ours, text)
    return _plain(text)
