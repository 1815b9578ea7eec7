"""Sections in an object store: found by listings, read from there, published in a lake that lies there too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.ingestion.every_format import BROKEN, READERS, write_every_format

from histolake.ingestion.discover import find_sections
from histolake.platform.lake import Lake
from histolake.platform.storage import Location


def upload(folder: Path, to: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            Location.parse(to).join(path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


def test_a_prefix_is_ingested(bucket: str, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    write_every_format(tmp_path / "in", make_section)
    (tmp_path / "in/notes").mkdir()
    (tmp_path / "in/notes/read.me").write_text("nothing to see")
    upload(tmp_path / "in", f"{bucket}/cohort")
    here, there = (list(find_sections([root], "c")) for root in (str(tmp_path / "in"), f"{bucket}/cohort"))
    assert [c.slide_id for c in there] == [c.slide_id for c in here]
    words = ["ingest", f"{bucket}/cohort", "--lake", f"{bucket}/lake", "--cohort", "c", "--json"]
    command = [sys.executable, "-m", "histolake.platform", *words, "--set", "quality.min_spots=20"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert run.returncode == 3, run.stderr
    rows = {row["section"]: row for row in json.loads(run.stdout)}
    refused = {name: row["rule"] for name, row in rows.items() if row["status"] != "published"}
    assert refused == BROKEN | {"notes": "unknown_format"}
    slides = {row["section"]: row for row in Lake.open(f"{bucket}/lake").at().slides().to_pylist()}
    assert {name: row["reader"] for name, row in slides.items()} == READERS
    assert all(row["source"].startswith(f"{bucket}/cohort/") for row in slides.values())
