"""Filters over catalogue columns: what they choose, and what is said where they cannot be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import ModuleType

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import UsageError
from histolake.platform.lake import Lake
from histolake.platform.lake.where import select
from histolake.platform.licences import licence_id

TABLE = pa.table(
    {
        "slide_id": ["c/a", "c/b", "c/c"],
        "organ": ["breast", "Breast", None],
        "um_per_px": [0.5, 1.2, None],
        "n_pairs": pa.array([100, 250, 3], pa.int64()),
        "flags": [["low_resolution", "image_reduced"], [], None],
        "simulated": [True, False, None],
        "licence": ["CC BY 4.0", "Creative Commons Attribution", "CC BY-NC-ND 4.0 DEED"],
        "limit": [1.0, 2.0, 3.0],  # a word of SQL
        "when": pa.array([datetime(2026, month, 1, tzinfo=UTC) for month in (1, 2, 3)], pa.timestamp("us", tz="UTC")),
        "fragments": [[{"id": 1}], [], []],
    }
)


@pytest.mark.parametrize(
    ("where", "slides"),
    [
        ("organ = 'breast' and um_per_px < 1", "a"),
        ("lower(organ) = 'breast'", "ab"),
        ("ORGAN ilike 'br%'", "ab"),
        ('organ is null or `organ` = "breast"', "ac"),
        ("organ <> 'breast'", "b"),  # as in SQL, without those that have none
        ("not (organ in ('breast', 'skin'))", "b"),
        ("array_has(flags, 'low_resolution')", "a"),
        ("not array_contains(flags, 'low_resolution')", "bc"),
        ("n_pairs > 99.5", "ab"),
        ("n_pairs between 3 and 100", "ac"),
        ("simulated", "a"),
        ("limit >= 2 and when > timestamp '2026-02-15'", "c"),
        ("licence like 'CC BY%'", "ac"),
        ("licence_id in ('CC-BY-4.0', 'CC-BY')", "ab"),
        ("organ = 'it''s; --'", ""),
        ("true", "abc"),
    ],
)
def test_rows_for_which_an_expression_is_true(where: str, slides: str) -> None:
    chosen = select(TABLE, where)
    assert "".join(name[-1] for name in chosen["slide_id"].to_pylist()) == slides
    assert chosen.schema == TABLE.schema


def test_no_rows_and_no_filter() -> None:
    assert select(TABLE, None) is TABLE
    assert select(TABLE.slice(0, 0), "n_pairs > 1").num_rows == 0


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (
            "orgn = 'breast'",
            r"names 'orgn', which is no column \(did you mean 'organ'\?\); .*columns are flags, licence, ",
        ),
        ("organ = breast", "'breast', which is no column; text stands in quotes"),
        ("organ = 'breast' adn limit < 2", "names 'adn'"),
        ("fragments is null", "'fragments', which is no column"),
        ("_rowid = 1", "'_rowid', which is no column"),
        ("organ =", "Expected: an expression, found its end"),
        ("(organ = 'a'", "a bracket without its partner"),
        ("organ = 'a') garbage (", "a bracket without its partner"),
        ("organ = 'a", "'a', which is no column"),
        ("organ = 3", "3 is no literal of type text"),
        ("n_pairs = 'many'", '"many" is no literal of type number'),
        ("when > '2026'", "write timestamp '2026-01-31'"),
        ("flags = 'x'", "a list holds"),
        ("organ", "neither true nor false"),
        ("", "The filter is empty"),
        ("true; drop table slides", "holds ';'"),
        ("true -- not", "holds '--'"),
        ("read_csv('passwords')", "Invalid function 'read_csv'"),
        ("exists (select 1)", "'select', which is no column"),
        ("when < now()", "another value every time"),
        ("random() < 0.5", "another value every time"),
    ],
)
def test_what_cannot_be_is_one_sentence(where: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        select(TABLE, where)
    assert "\n" not in str(caught.value) and ".rs:" not in str(caught.value)


def test_filters_reach_old_versions_and_rejections(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 20, patient="P1")
    writer.ingest(lake, "c/b", "one", 10, patient="P2", refused=1)
    writer.ingest(lake, "c/a", "two", 14, patient="P3", refused=3)
    old, new = lake.at(2), lake.at()
    assert old.slides(where="patient = 'P1'")["n_pairs"].to_pylist() == [20]
    assert new.slides(where="patient = 'P1'").num_rows == 0
    assert new.slides(where="n_pairs < 12 and image_hash is null")["slide_id"].to_pylist() == ["c/b"]
    assert new.rejections("rule = 'min_genes' and patient = 'P3'")["slide_id"].to_pylist() == ["c/a"] * 3
    assert old.rejections("figure < 4 and slide_id = 'c/a'").num_rows == 2
    assert new.rejections("limit > 500").column_names == new.rejections().column_names


def test_commands_take_a_filter(lake: Lake, writer: ModuleType) -> None:
    writer.ingest(lake, "c/a", "one", 20, patient="P1")
    writer.ingest(lake, "c/b", "one", 10, patient="P2")
    writer.ingest(lake, "c/b", "two", 9, patient="P2")

    def run(*words: str) -> list[dict[str, object]]:
        done = CliRunner().invoke(app, [*words, "--lake", lake.uri, "--json"], catch_exceptions=False)
        assert done.exit_code == 0
        found: list[dict[str, object]] = json.loads(done.stdout)
        return found

    assert [row["slide_id"] for row in run("lake", "slides", "--where", "patient = 'P2'")] == ["c/b"]
    assert len(run("lake", "slides", "--all", "--where", "patient = 'P2'")) == 2
    assert {row["slide_id"] for row in run("lake", "rejections", "--where", "n_pairs = 20")} == {"c/a"}
    exported = run("export", "some", "--where", "patient = 'P1'", "--to", f"{lake.uri}-shards")
    assert [row["rows"] for row in exported] == [20]
    with pytest.raises(UsageError, match="no column"):
        run("lake", "slides", "--where", "patent = 'P2'")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("Creative Commons Attribution 4.0 International License", "CC-BY-4.0"),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/", "CC-BY-NC-SA-4.0"),
        ("Creative Commons Attribution", "CC-BY"),
        ("CC BY NC 3.0", "CC-BY-NC-3.0"),
        ("Creative Commons Attribution NonCommercial License 4.0", "CC-BY-NC-4.0"),
        ("CC BY-NC-ND 4.0 DEED", "CC-BY-NC-ND-4.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("MIT License", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("Artistic-2.0", "Artistic-2.0"),
        ("BSD 3-Clause", "BSD-3-Clause"),
        ("Internal", None),
        ("Permitted by the authors", None),
        ("", None),
        (None, None),
    ],
)
def test_licences_have_one_name(text: str | None, known: str | None) -> None:
    assert licence_id(text) == known
