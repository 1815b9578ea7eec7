"""Sections in an object store: found by listings, read from there, published in a lake that lies there too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from histolake.ingestion.discover import find_sections
from histolake.platform.lake import Lake
from histolake.platform.storage import Location


def upload(folder: Path, to: str) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            Location.parse(to).join(path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())


def test_a_prefix_is_ingested(bucket: str, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    make_section(tmp_path / "in/breast/s1", seed=1, patient="P1")
    make_section(tmp_path / "in/s2", seed=2)
    (make_section(tmp_path / "in/s3", seed=3) / "spots.tsv").unlink()
    (tmp_path / "in/notes").mkdir()
    (tmp_path / "in/notes/read.me").write_text("nothing to see")
    upload(tmp_path / "in", f"{bucket}/cohort")
    found = list(find_sections([f"{bucket}/cohort"], "c"))
    assert [(c.section, c.source is None) for c in found] == [
        ("breast/s1", False),
        ("s2", False),
        ("s3", False),
        ("notes", True),
    ]
    words = ["ingest", f"{bucket}/cohort", "--lake", f"{bucket}/lake", "--cohort", "c", "--json"]
    command = [sys.executable, "-m", "histolake.platform", *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert run.returncode == 3, run.stderr
    rows = {row["section"]: row for row in json.loads(run.stdout)}
    assert {name: row["rule"] or row["status"] for name, row in rows.items()} == {
        "breast/s1": "published",
        "s2": "published",
        "s3": "missing_file",
        "notes": "unknown_format",
    }
    slides = Lake.open(f"{bucket}/lake").at().slides().to_pylist()
    assert [(s["slide_id"], s["source"]) for s in slides] == [
        ("c/breast/s1", f"{bucket}/cohort/breast/s1"),
        ("c/s2", f"{bucket}/cohort/s2"),
    ]
