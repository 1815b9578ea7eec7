"""`histolake ingest` under fire: its driver or a worker is killed, others ingest beside it, the store fails. Nothing is
lost or doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ingestion.dying_ingest import command
from tests.object_store import environment
from tests.platform.flaky_store import Faults, flaky_store
from tests.platform.killing import contents, leftovers
from tests.processes import descendants

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.vacuum import vacuum

SECTIONS = 4


def start(folder: Path, lake: Path | str, point: str | None = None, **changes: str) -> subprocess.Popen[str]:
    words = ["ingest", folder, "--lake", lake, "--cohort", "c", "--set", "quality.min_spots=40", "--json"]
    words += [word for name, value in changes.items() for word in ("--set", f"cluster.{name}={value}")]
    return subprocess.Popen(
        command(point, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def finish(process: subprocess.Popen[str]) -> list[dict[str, object]]:
    out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    rows: list[dict[str, object]] = json.loads(out)
    return rows


def data_files(lake: Path) -> int:
    return len(list((lake / "pairs.lance" / "data").glob("*.lance")))


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory, make_section: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("sections")
    for number in range(SECTIONS):
        make_section(folder / f"s{number}", seed=number)
    return folder


@pytest.fixture(scope="module")
def undisturbed(sections: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What an ingest that nobody killed leaves: the content of every section."""
    lake = tmp_path_factory.mktemp("undisturbed") / "lake"
    assert {row["status"] for row in finish(start(sections, lake))} == {"published"}
    return contents(Lake.open(lake))


def wait_until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if true():
            return
        assert process.poll() is None, "the ingest ended before it could be killed"
        time.sleep(0.01)
    raise AssertionError("the ingest did not come so far")


@pytest.mark.parametrize(("where", "point"), [("disk", "fragments"), ("disk", "pairs"), ("s3", "seal")])
def test_a_driver_that_dies_at(
    where: str,
    point: str,
    sections: Path,
    undisturbed: dict[str, str],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    place = str(tmp_path / "lake") if where == "disk" else f"{request.getfixturevalue('bucket')}/lake"
    process = start(sections, place, point)
    started: set[int] = set()
    while process.poll() is None:
        started |= {pid for pid, _ in descendants(process.pid)}
        time.sleep(0.1)
    assert process.returncode == -signal.SIGKILL, process.communicate()
    for pid in started:  # on a cluster they would outlive the driver; here they must not touch the next test
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)

    lake = Lake.open(place)
    assert contents(lake) == {}, "a section is published whole or not"
    assert not [finding for finding in check(lake) if finding.severity == "error"]

    again = start(sections, place)
    while again.poll() is None:
        vacuum(lake, clock_slack_s=2)
        time.sleep(0.5)
    finish(again)
    assert contents(lake) == undisturbed
    if where == "s3":
        time.sleep(1.1)  # the store's clock counts whole seconds
    vacuum(lake, clock_slack_s=0)
    assert leftovers(lake) == [] and check(lake) == [], "nothing of the dead ingest is left"
    assert contents(lake) == undisturbed


def test_a_killed_worker(sections: Path, undisturbed: dict[str, str], tmp_path: Path) -> None:
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
    assert contents(Lake.open(lake)) == undisturbed
    vacuum(Lake.open(lake), clock_slack_s=0)
    assert leftovers(Lake.open(lake)) == [], "what the dead worker wrote is nobody's"
    assert check(Lake.open(lake)) == []


@pytest.mark.parametrize("where", ["disk", "s3"])
def test_four_ingests_at_once(
    where: str, sections: Path, undisturbed: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """On one small cluster, where they share the slots: two of all the sections, and two of one of them each."""
    import ray

    place = str(tmp_path / "lake") if where == "disk" else f"{request.getfixturevalue('bucket')}/lake"
    folders = [sections, sections, sections / "s0", sections / "s2"]
    with start_ray(ClusterSettings(cpus=4, object_store_mb=128)):
        address = ray.get_runtime_context().gcs_address
        ingests = [start(folder, place, address=address) for folder in folders]
        told = [row for process in ingests for row in finish(process)]
    assert {row["status"] for row in told} <= {"published", "unchanged"}
    lake = Lake.open(place)
    assert contents(lake) == undisturbed
    if where == "s3":
        time.sleep(1.1)  # the store's clock counts whole seconds
    vacuum(lake, clock_slack_s=0)
    assert leftovers(lake) == [] and check(lake) == []
    assert contents(lake) == undisturbed


def test_behind_a_store_that_fails(
    store: str, bucket: str, sections: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in twenty is refused, and of commits that succeed one in five seems to fail."""
    faults = Faults(refuse=1 / 20, cut=1 / 50, lose_commits=1 / 5, seed=6)
    with flaky_store(store, faults) as endpoint, monkeypatch.context() as through:
        for name, value in environment(endpoint).items():
            through.setenv(name, value)
        assert {row["status"] for row in finish(start(sections, f"{bucket}/lake"))} == {"published"}
        assert {row["status"] for row in finish(start(sections, f"{bucket}/lake"))} == {"unchanged"}
    assert faults.happened["refused"] > 5 and faults.happened["lost commit"] > 2, faults.happened
    lake = Lake.open(f"{bucket}/lake")
    assert contents(lake) == undisturbed
    time.sleep(1.1)
    vacuum(lake, clock_slack_s=0)
    assert leftovers(lake) == [] and check(lake) == []
