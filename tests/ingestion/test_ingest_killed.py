"""`histolake ingest` that is killed while it works: the driver, or one of its workers. Nothing is lost or doubled."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from histolake.platform.lake import Lake
from histolake.platform.lake.check import check
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.schemas import PAIRS

SECTIONS = 6
CONTENT = [name for name in PAIRS.names if name != "ingest_id"]


def start(folder: Path, lake: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "histolake.platform", "ingest", str(folder), "--lake", str(lake)]
    command += ["--cohort", "c", "--set", "quality.min_spots=40", "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    rows: list[dict[str, object]] = json.loads(out)
    return rows


def content(lake: Path) -> str:
    """A hash of every pair of the newest version."""
    digest = hashlib.sha256()
    for batch in Lake.open(lake).at().pairs(CONTENT):
        digest.update(repr(batch.to_pylist()).encode())
    return digest.hexdigest()


def data_files(lake: Path) -> int:
    return len(list((lake / "pairs.lance" / "data").glob("*.lance")))


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of all that a process has started, directly or not."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    waiting = list(parents.get(pid, []))
    while waiting:
        child = waiting.pop()
        waiting += parents.get(child, [])
        try:
            yield child, Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory, make_section: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("sections")
    for number in range(SECTIONS):
        make_section(folder / f"s{number}", seed=number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(sections: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """What an ingest that nobody killed leaves: its content, and its number of files."""
    lake = tmp_path_factory.mktemp("undisturbed") / "lake"
    assert {row["status"] for row in finish(start(sections, lake))} == {"published"}
    return content(lake), data_files(lake)


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if true():
            return
        assert process.poll() is None, "the ingest ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("the ingest did not come so far")


def test_a_killed_driver(sections: Path, undisturbed: tuple[str, int], tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    process = start(sections, lake)
    wait_until(lambda: data_files(lake) > 0, process)
    started = [pid for pid, _ in descendants(process.pid)]
    process.kill()
    process.communicate(timeout=60)
    for pid in started:  # on a cluster they would outlive the driver; here they must not touch the next test
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)

    half = Lake.open(lake).at().slides()
    assert half.num_rows < SECTIONS and set(half["n_pairs"].to_pylist()) <= {72}, "a section is published whole or not"
    assert not [finding for finding in check(Lake.open(lake)) if finding.severity == "error"]

    finish(start(sections, lake))
    assert content(lake) == undisturbed[0]
    vacuum(Lake.open(lake), clock_slack_s=0)
    assert data_files(lake) == undisturbed[1], "no file of the dead ingest is left"
    assert check(Lake.open(lake)) == [] and not list((lake / "leases").iterdir())


def test_a_killed_worker(sections: Path, undisturbed: tuple[str, int], tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    process = start(sections, lake)
    tilers: list[int] = []

    def tiling() -> bool:
        tilers[:] = [
            pid for pid, command in descendants(process.pid) if command.startswith("ray::") and "Tiler" in command
        ]
        return bool(tilers) and data_files(lake) > 0

    wait_until(tiling, process)
    os.kill(tilers[0], signal.SIGKILL)
    assert {row["status"] for row in finish(process)} == {"published"}
    assert content(lake) == undisturbed[0]
    vacuum(Lake.open(lake), clock_slack_s=0)
    assert data_files(lake) == undisturbed[1], "what the dead worker wrote is nobody's"
    assert check(Lake.open(lake)) == []
