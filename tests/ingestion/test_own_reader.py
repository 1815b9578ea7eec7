"""The worked example of docs/readers.md: its code is taken from the page, installed as a package, and ingests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.ingestion.anndata_files import make_section, tissue

from histolake.ingestion.readers import readers
from histolake.platform.lake import Lake

PAGE = Path(__file__).resolve().parents[2] / "docs/readers.md"


def block(name: str) -> str:
    """The code of one file of the page."""
    found = re.search(rf"^`{re.escape(name)}`\n\n```\w+\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/readers.md has no {name}"
    return found.group(1)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the example in it, as an installer would write it from its pyproject.toml."""
    site = tmp_path_factory.mktemp("site")
    project = tomllib.loads(block("pyproject.toml"))["project"]
    (site / "lab_reader.py").write_text(block("lab_reader.py"))
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = (
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in entries.items())
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def write_lab_section(folder: Path, name: str, seed: int) -> None:
    section = make_section("square", um_per_px=5.0, seed=seed)
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / f"{name}.spots.npz",
        barcodes=np.array(section.barcodes),
        genes=np.array(section.genes),
        counts=section.counts,
        xy_px=section.xy_px,
        um_per_px=5.0,
    )
    Image.fromarray(tissue(section.size_px, seed)).save(folder / f"{name}.jpg", quality=95)


def histolake(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HISTOLAKE_")}
    environment = kept | {"HISTOLAKE_CLUSTER__CPUS": "3", "HISTOLAKE_CLUSTER__OBJECT_STORE_MB": "128"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), kept.get("PYTHONPATH", "")]))}
    command = [sys.executable, "-m", "histolake.platform", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_the_example_of_the_page_ingests(tmp_path: Path, installed: Path) -> None:
    for seed, name in enumerate(("s1", "s2", "cut", "odd")):
        write_lab_section(tmp_path / "sections", name, seed)
    odd = tmp_path / "sections/odd.spots.npz"
    with np.load(odd) as arrays:
        held = dict(arrays)
    np.savez(odd, **held | {"um_per_px": np.array([5.0, 5.0])})  # the reader has not thought of that
    (tmp_path / "sections/s1.json").write_text(json.dumps({"patient": "P1", "study": "ours", "um_per_px": 5.1}))
    cut = tmp_path / "sections/cut.spots.npz"
    cut.write_bytes(cut.read_bytes()[:-400])
    words = ["ingest", str(tmp_path / "sections"), "--lake", str(tmp_path / "lake"), "--cohort", "ours", "--json"]
    run = histolake(installed, *words)
    assert run.returncode == 3, run.stderr
    rows = {row["slide_id"]: row for row in json.loads(run.stdout)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "ours/s1": "published",
        "ours/s2": "published",
        "ours/cut": "refused",
        "ours/odd": "refused",
    }
    assert rows["ours/cut"]["rule"] == "file_complete"
    assert rows["ours/odd"]["rule"] == "reader_failed"
    assert "The reader lab failed" in rows["ours/odd"]["reason"]
    slides = {row["section"]: row for row in Lake.open(tmp_path / "lake").at().slides().to_pylist()}
    assert {name: (row["patient"], row["um_per_px"], row["n_pairs"]) for name, row in slides.items()} == {
        "s1": ("P1", 5.1, 90),
        "s2": (None, 5.0, 90),
    }
    assert slides["s1"]["technology"] == "our array"


def test_without_the_package_nobody_knows_the_files(tmp_path: Path) -> None:
    write_lab_section(tmp_path / "sections", "s1", 0)
    run = histolake(tmp_path, "ingest", str(tmp_path / "sections"), "--lake", str(tmp_path / "lake"), "--cohort", "c")
    assert run.returncode == 3
    assert "unknown_format" in run.stderr


def test_the_page_tells_of_every_reader() -> None:
    headings = set(re.findall(r"^## (\S+)$", PAGE.read_text(), re.MULTILINE))
    assert set(readers()) <= headings
