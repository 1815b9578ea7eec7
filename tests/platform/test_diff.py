"""What a curator is told of versions and slides: `lake diff`, `lake history`, `lake show`."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import SlideNotFoundError, UsageError, VersionError
from histolake.platform.lake import Lake
from histolake.platform.lake.correct import corrections
from histolake.platform.lake.diff import diff
from histolake.platform.lake.forgetting import forget


def run(lake: Lake, *words: str) -> str:
    done = CliRunner().invoke(app, ["lake", *words, "--lake", lake.uri], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def rows(lake: Lake, *words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run(lake, *words, "--json"))
    return found


@pytest.fixture
def busy(lake: Lake, writer: ModuleType) -> Lake:
    """1 a, 2 b, 3 c; then 4 a replaced, 5 b corrected, 6 d refused, 7 e added."""
    for name in ("c/a", "c/b", "c/c"):
        writer.ingest(lake, name, "one", 10, patient="P1")
    writer.ingest(lake, "c/a", "two", 14, patient="P2", refused=3)
    lake.correct(corrections(lake.at(), {"c/b": {"patient": "P7", "licence": "CC BY 4.0"}}))
    attempt = lake.begin("c/d", source_digest="bad", settings_digest="plain", source="x")
    attempt.refuse(
        {"cohort": "c", "n_spots": 0}, pa.table({"rule": ["min_spots"], "reason": ["3 of 9 spots [few] pass."]})
    )
    lake.publish([attempt])
    writer.ingest(lake, "c/e", "one", 6, patient="P1", refused=0)
    return lake


def test_what_became_of_the_slides(busy: Lake) -> None:
    found = {(d.change, d.slide_id): d for d in diff(busy.at(3), busy.at())}
    assert list(found) == [("added", "c/e"), ("replaced", "c/a"), ("corrected", "c/b"), ("refused", "c/d")]
    replaced, corrected = found["replaced", "c/a"], found["corrected", "c/b"]
    assert (replaced.pairs_before, replaced.pairs_after) == (10, 14)
    assert set(replaced.columns) == {"patient", "n_spots", "n_rejections", "source_digest"}
    assert (corrected.pairs_before, corrected.pairs_after) == (10, 10)
    assert (corrected.columns, corrected.before, corrected.after) == (
        ("licence", "patient"),
        {"licence": None, "patient": "P1"},
        {"licence": "CC BY 4.0", "patient": "P7"},
    )
    assert diff(busy.at(5), busy.at(5)) == []
    # The other way round, what was added is gone; so is what was forgotten.
    assert {(d.change, d.slide_id) for d in diff(busy.at(), busy.at(6))} == {("retired", "c/e")}
    forget(busy, slide_id="c/c")
    assert [(d.change, d.slide_id) for d in diff(busy.at(3), busy.at()) if d.slide_id == "c/c"] == []


def test_diff_as_a_command(busy: Lake) -> None:
    listed = rows(busy, "diff", "4")
    assert [(row["change"], row["slide_id"], row["columns"]) for row in listed] == [
        ("added", "c/e", ""),
        ("corrected", "c/b", "licence, patient"),
        ("refused", "c/d", ""),
    ]
    assert listed[1]["values"] == "licence: (none) -> CC BY 4.0; patient: P1 -> P7"
    done = CliRunner().invoke(app, ["lake", "diff", "4", "--lake", busy.uri])
    assert "version 4 -> 7: 1 added, 1 corrected, 1 refused; 34 -> 40 pairs (+6)" in done.stderr
    assert rows(busy, "diff", "7") == []
    with pytest.raises(VersionError, match="no version 99"):
        rows(busy, "diff", "99")


def test_history_tells_corrections_from_publications(busy: Lake) -> None:
    counts = ("version", "published", "corrected", "retired", "refused", "pairs")
    assert [tuple(row[name] for name in counts) for row in rows(busy, "history")][3:] == [
        (4, 1, 0, 1, 0, 14),
        (5, 0, 1, 0, 0, 0),
        (6, 0, 0, 0, 1, 0),
        (7, 1, 0, 0, 0, 6),
    ]
    of_b = rows(busy, "history", "--where", "slide_id = 'c/b'")
    assert [(row["version"], row["published"], row["corrected"]) for row in of_b] == [(2, 1, 0), (5, 0, 1)]


def test_show_tells_all_of_a_slide(busy: Lake) -> None:
    shown = run(busy, "show", "c/b")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "c/b" and lines.index("identity") < lines.index("patient and study") < lines.index("spots")
    for line in (
        "patient P7 (corrected; the source says P1)",
        "licence CC BY 4.0 (CC-BY-4.0) (corrected; the source says nothing)",
        "organ not known",
        "n_pairs 10",
        "refused by min_genes 2",
        "published_in 5",
    ):
        assert line in lines, shown
    assert "patient            P1" in run(busy, "show", "c/b", "--version", "3")
    assert "refused by         min_spots: 3 of 9 spots [few] pass." in run(busy, "show", "c/d")
    (row,) = rows(busy, "show", "c/a")
    assert row["refused_by_rule"] == "min_genes 3" and row["n_pairs"] == 14
    assert [r["slide_id"] for r in rows(busy, "show", "--where", "patient = 'P1'")] == ["c/c", "c/e"]
    with pytest.raises(SlideNotFoundError, match="no slide c/z"):
        run(busy, "show", "c/z")
    with pytest.raises(UsageError, match="Name a slide"):
        run(busy, "show")


def test_scales_and_units_are_shown(lake: Lake) -> None:
    attempt = lake.begin("c/a", source_digest="1", settings_digest="plain", source="x")
    scales = [{"origin": "pitch", "um_per_px": 0.50123}, {"origin": "image_tag", "um_per_px": 0.499}]
    record = {"um_per_px": 0.50123, "scale_from": "pitch", "scales": scales, "spot_um": 55.0, "flags": ["x", "y"]}
    attempt.refuse(record | {"n_spots": 0, "image_width_px": 2000}, pa.table({"rule": ["min_spots"], "reason": ["."]}))
    lake.publish([attempt])
    lines = [" ".join(line.split()) for line in run(lake, "show", "c/a").splitlines()]
    for line in (
        "um_per_px 0.5012 um/px",
        "scales pitch 0.5012 um/px; image_tag 0.499 um/px",
        "spot_um 55 um",
        "image_width_px 2000 px",
        "flags x, y",
    ):
        assert line in lines
    assert rows(lake, "show", "c/a")[0]["scales"] == "origin=pitch um_per_px=0.50123, origin=image_tag um_per_px=0.499"
