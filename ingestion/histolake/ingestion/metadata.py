"""Metadata tables: what a curator knows of sections, patients and studies, joined to sections by name.

A table is CSV or TSV with a header. Its key is the first of these columns that it has:

    section   a row a section (HEST calls it `id`): patient, study, organ, licence, um_per_px, ...
    patient   a row a patient; with a column `study`, a patient of that study
    study     a row a study

Several tables are joined through each other: the section's row names its patient and study (or the files do), and their
rows say the rest; a bare patient name is never joined across studies. The more special table wins, and every table wins
over what the files say. All that does not fit is told at once: mistakes in a table, with their lines, as one error; and
what does not match (rows that name nothing, sections without a row, values that contradict each other) as mismatches,
after the last section was joined.
"""

from __future__ import annotations

import csv
import difflib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from histolake.ingestion.readers.beside import place_of
from histolake.ingestion.slide import METADATA_FIELDS, SlideMetadata
from histolake.platform.errors import UsageError
from histolake.platform.storage import Location

__all__ = ["MetadataTable", "Mismatch"]

KEYS = ("section", "patient", "study")
# Other words for our columns: the American spelling, and HEST's.
SPELLINGS = {"license": "licence", "id": "section", "st_technology": "technology", "disease_state": "disease"}
PROBLEMS_TOLD = 20
TYPO = 0.8  # likeness, 0 to 1, from which a strange column is taken for a misspelt one


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """Something that a table and the sections do not agree on."""

    kind: str  # unused_row | no_row | conflict | ambiguous | unknown_columns
    table: str  # URI
    line: int | None
    section: str | None
    message: str

    def __str__(self) -> str:
        """One line, beginning with the place."""
        return f"{self.table}{'' if self.line is None else f', line {self.line}'}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class _Row:
    table: str
    line: int
    values: Mapping[str, str]  # column -> text, without empty ones


@dataclass(kw_only=True)
class _Table:
    """One file."""

    uri: str
    key: str
    rows: dict[tuple[str, ...], list[_Row]] = field(default_factory=dict)  # by the key's value
    strange: list[str] = field(default_factory=list)  # columns that are no metadata of ours


class MetadataTable:
    """The tables of one ingest, and what of them was used."""

    def __init__(self) -> None:
        self._tables: list[_Table] = []
        self._used: set[tuple[str, int]] = set()
        self._told: dict[Mismatch, None] = {}

    @classmethod
    def read(cls, uris: Sequence[str]) -> MetadataTable:
        """Read tables; raises one `UsageError` with every mistake in them and its line."""
        table = cls()
        for uri in uris:
            table.add(uri)
        return table

    def __bool__(self) -> bool:
        """Whether there is any table."""
        return bool(self._tables)

    def add(self, uri: str) -> None:
        """Read one more table."""
        table = _read(Location.parse(uri))
        self._tables.append(table)
        if table.strange:
            said = f"columns that are left out, for no metadata are called so: {', '.join(table.strange)}"
            self._tell("unknown_columns", table.uri, None, None, said)

    def row(self, section: str, known: Mapping[str, Any], *, is_section: bool = True) -> dict[str, str]:
        """What the tables say of a section; it wins over what is `known` of it from its files.

        Where nobody knows whether there is a section at all (not `is_section`), a missing row is no mismatch.
        """
        found, said = self._join(section, known)
        if self._tables and not found and is_section:
            self._tell("no_row", self._tables[0].uri, None, section, f"no row tells of section {section!r}")
        for one in found:
            self._compare(one, section, known, None)
        return said

    def look_up(self, section: str, known: Mapping[str, Any]) -> dict[str, str]:
        """What the tables say of a section that is in a lake already, where another value is what one looks for."""
        return self._join(section, known)[1]

    def _join(self, section: str, known: Mapping[str, Any]) -> tuple[list[_Row], dict[str, str]]:
        found: list[_Row] = []
        said: dict[str, str] = {}
        for key in KEYS:
            for table in self._tables:
                one = self._find(table, section, {**known, **said}) if table.key == key else None
                if one is not None:
                    found.append(one)
                    self._used.add((one.table, one.line))
                    self._compare(one, section, said, "a more special table")
                    said = {**one.values, **said}
        return found, {name: value for name, value in said.items() if name != "section"}

    def mismatches(self) -> list[Mismatch]:
        """Everything that did not match, once all sections were joined: told ones first, then rows nobody used."""
        unused = []
        for table in self._tables:
            for key, rows in table.rows.items():
                for one in rows:
                    if (one.table, one.line) not in self._used:
                        message = f"no section was found for {table.key} {'/'.join(key)!r}"
                        unused.append(
                            Mismatch(kind="unused_row", table=table.uri, line=one.line, section=None, message=message)
                        )
        return [*self._told, *unused]

    def _find(self, table: _Table, section: str, known: Mapping[str, Any]) -> _Row | None:
        name = section if table.key == "section" else _word(known.get(table.key))
        rows = table.rows.get((name,), []) if name else []
        study = _word(known.get("study"))
        if table.key == "patient" and study:
            exact = [one for one in rows if one.values.get("study") == study]
            rows = exact or [one for one in rows if "study" not in one.values]
        if len(rows) > 1:
            lines = ", ".join(str(one.line) for one in rows)
            said = f"patient {name!r} of section {section!r} may be that of lines {lines}; name the section's study"
            self._tell("ambiguous", table.uri, rows[0].line, section, said)
            self._used |= {(one.table, one.line) for one in rows}
        return rows[0] if len(rows) == 1 else None

    def _compare(self, one: _Row, section: str, other: Mapping[str, Any], who: str | None) -> None:
        """Tell where a row and something else contradict each other."""
        for name, value in one.values.items():
            theirs = _word(other.get(name))
            if name == "section" or not theirs or _same(name, theirs, value):
                continue
            wins = f"{who} says {theirs!r}, which wins" if who else f"its files say {theirs!r}; the table wins"
            said = f"{name} of section {section!r} is {value!r} here, and {wins}"
            self._tell("conflict", one.table, one.line, section, said)

    def _tell(self, kind: str, table: str, line: int | None, section: str | None, message: str) -> None:
        self._told[Mismatch(kind=kind, table=table, line=line, section=section, message=message)] = None


def _word(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _same(name: str, one: str, other: str) -> bool:
    """Whether two texts mean the same value of a field; what cannot be read is compared as it stands."""
    try:
        first, second = (getattr(SlideMetadata().updated({name: text}), name) for text in (one, other))
    except UsageError:
        return one == other
    return bool(first == second)


def _read(location: Location) -> _Table:
    if not location.is_file():
        raise UsageError(f"There is no metadata table at {location}.")
    try:
        text = location.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{location} is no text in UTF-8 ({error.reason}); save it as CSV in UTF-8.") from error
    header = text.split("\n", 1)[0]
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=max(",\t;", key=header.count))
    names = [SPELLINGS.get(name.strip(), name.strip()) for name in next(lines, [])]
    problems = list(_wrong_columns(names))
    key = next((key for key in KEYS if key in names), None)
    if key is None:
        problems.append(f"no column is called 'section', 'patient' or 'study'; there are {', '.join(names) or 'none'}")
        raise _mistakes(location, problems)
    table = _Table(uri=location.uri, key=key, strange=[n for n in names if n and n not in METADATA_FIELDS])
    for cells in lines:
        if any(cell.strip() for cell in cells):
            problems += _add(
                table, _Row(table=location.uri, line=lines.line_num, values=_values(names, cells)), location
            )
            if len(cells) > len(names):
                problems.append(f"line {lines.line_num}: {len(cells)} cells under {len(names)} columns")
    if problems:
        raise _mistakes(location, problems)
    return table


def _values(names: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    return {
        name: cell.strip() for name, cell in zip(names, cells, strict=False) if name in METADATA_FIELDS and cell.strip()
    }


def _wrong_columns(names: Sequence[str]) -> Iterator[str]:
    """Columns named twice, and those that look like a misspelt one: left out, they would be missed too late."""
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        yield f"two columns are called {name!r}"
    for name in dict.fromkeys(names):
        alike = [field for field in METADATA_FIELDS if field not in names and abs(len(field) - len(name)) <= 1]
        near = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=TYPO)
        if name and name not in METADATA_FIELDS and near:
            yield f"a column is called {name!r}; write {near[0]!r} if it is meant"


def _add(table: _Table, row: _Row, location: Location) -> Iterator[str]:
    """Take a row into a table; gives what is wrong with it."""
    where, name = f"line {row.line}", row.values.get(table.key, "")
    if not name:
        yield f"{where}: {table.key} is empty"
        return
    for column, text in row.values.items():
        try:
            SlideMetadata().updated({column: text})
        except UsageError as error:
            yield f"{where}: {str(error).rstrip('.')}"
    if "image" in row.values:
        image = place_of(row.values["image"], location.parent()).uri
        row = _Row(table=row.table, line=row.line, values={**row.values, "image": image})
    rows = table.rows.setdefault((name,), [])
    # A patient may stand there once a study; where a study is left open the row is for all of them.
    twin = next((o for o in rows if table.key != "patient" or o.values.get("study") == row.values.get("study")), None)
    if twin is not None:
        yield f"{where}: {table.key} {name!r} is named twice, the first time in line {twin.line}"
    rows.append(row)


def _mistakes(location: Location, problems: Sequence[str]) -> UsageError:
    told = "; ".join(problems[:PROBLEMS_TOLD])
    more = len(problems) - PROBLEMS_TOLD
    return UsageError(f"{location} cannot be used: {told}{f'; and {more} more' if more > 0 else ''}.")
