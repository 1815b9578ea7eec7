"""A round with the real `histolake ingest`: its driver dies at a commit point, or one of its workers while it tiles.

The Ray cluster stays up for all rounds; each ingest is a job of its own on it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ingestion.conftest import write_section
from tests.ingestion.dying_ingest import DRIVER_POINTS, command
from tests.platform.killing import Task, contents, leftovers, published, start
from tests.processes import descendants

from histolake.platform.cluster import ClusterSettings, start_ray
from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.vacuum import vacuum
from histolake.platform.storage import Location

__all__ = ["rounds"]

SECTIONS = 3
GENES = "genes"  # the driver, when a worker has given numbers to genes
WORKERS = {"tiler": "Tiler", "judge": "Judging"}  # what is in the names of their processes
BESIDE: list[Task] = [("plain/new", "one", 8)]
PATIENCE_S = 300
ROOT = Path(__file__).parents[2]


@contextmanager
def rounds(work: Path, seed: int) -> Iterator[Callable[[int, str], Counter[str]]]:
    """What plays a round; `work` takes the sections, and the lakes that nobody disturbs."""
    import ray

    with start_ray(ClusterSettings(cpus=3, object_store_mb=128)):
        yield _Game(work, seed, ray.get_runtime_context().gcs_address).play


class _Game:
    def __init__(self, work: Path, seed: int, address: str) -> None:
        self._seed, self._address = seed, address
        self._sections, self._base = work / "sections", work / "base"
        for number in range(SECTIONS):
            write_section(self._sections / f"s{number}", seed=number)
        self._finish(self._ingest(str(self._base), None, min_spots=39))
        self._before = contents(Lake.open(self._base))
        self._copy(str(work / "undisturbed"))
        self._finish(self._ingest(str(work / "undisturbed"), None))
        self._after = contents(Lake.open(work / "undisturbed"))
        self._points = [*DRIVER_POINTS, GENES, *WORKERS]

    def play(self, number: int, uri: str) -> Counter[str]:
        """Kill, read, run again, compare, vacuum; the kill by its point."""
        chance = random.Random(self._seed * 1_000_003 + number)
        point = self._points[number % len(self._points)]
        before = {} if point == GENES else self._before  # genes get their numbers in a lake that lacks them
        if before:
            self._copy(uri)
        lake = Lake.open(uri, create=True)
        version = lake.version

        if point in WORKERS:
            self._kill_worker(uri, point, chance)
        elif point == GENES:
            self._kill_when_genes_have_numbers(lake)
        else:
            killed = self._ingest(uri, point)
            killed.communicate(timeout=PATIENCE_S)
            assert killed.returncode == -signal.SIGKILL, f"the driver at {point!r} ended with {killed.returncode}"
        told = contents(lake)
        if point == "judge" or published(point):
            # A judge has no successor: the ingest ends, with what was whole by then. And on a busy machine sections are
            # published as they come, in more commits than one: a driver that dies after the first has published some.
            assert before.keys() == told.keys(), f"after a death at {point!r} the lake holds {sorted(told)}"
            assert all(told[name] in (before[name], self._after[name]) for name in told), f"a section in part: {told}"
            assert point == "judge" or told != before, f"after a death at {point!r} nothing was published"
        else:
            want = self._after if point in WORKERS else before
            assert told == want, f"after a death at {point!r}: {_differ(told, want)}"

        again, beside = self._ingest(uri, None), start(uri, BESIDE)
        while again.poll() is None:
            time.sleep(chance.uniform(0, 1))
            vacuum(lake, clock_slack_s=2)
            lost = [finding for finding in check(lake) if finding.severity == "error"]
            assert not lost, f"a vacuum beside an ingest: {lost}"
        self._finish(again)
        beside.join(PATIENCE_S)
        assert beside.exitcode == 0, f"the writer beside ended with {beside.exitcode}"
        self._compare(lake, self._after, "after the second run")
        assert contents(lake, version) == before, "the version before reads otherwise"
        if lake.root.is_remote:
            time.sleep(1.1)  # the store's clock counts whole seconds
        vacuum(lake, clock_slack_s=0)
        left = [*leftovers(lake), *map(str, check(lake))]
        assert not left, f"left behind after a death at {point!r}: {left}"
        self._compare(lake, self._after, "after the vacuum")
        return Counter({point: 1})

    def _ingest(self, uri: str, point: str | None, min_spots: int = 40) -> subprocess.Popen[str]:
        words = ["ingest", self._sections, "--lake", uri, "--cohort", "c", "--json"]
        words += ["--set", f"quality.min_spots={min_spots}", "--set", f"cluster.address={self._address}"]
        return subprocess.Popen(
            command(point, *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )

    def _finish(self, process: subprocess.Popen[str]) -> None:
        _, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, f"an ingest ended with {process.returncode}: {errors[-2000:]}"

    def _kill_worker(self, uri: str, kind: str, chance: random.Random) -> None:
        """An ingest, one of whose workers is killed soon after it came up. A tiler's work is done by another."""
        process = self._ingest(uri, None)
        while not (workers := [pid for pid, words in descendants(os.getpid()) if _does(words, WORKERS[kind])]):
            assert process.poll() is None, f"the ingest ended before a {kind} was up: {process.communicate()}"
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        os.kill(chance.choice(workers), signal.SIGKILL)
        if kind == "judge":
            process.communicate(timeout=PATIENCE_S)
        else:
            self._finish(process)

    def _kill_when_genes_have_numbers(self, lake: Lake) -> None:
        process, version = self._ingest(lake.uri, None), lake.catalog.table("genes").version()
        while lake.catalog.table("genes").version() == version:
            assert process.poll() is None, f"the ingest ended before genes had numbers: {process.communicate()}"
            time.sleep(0.01)
        process.kill()
        process.communicate(timeout=PATIENCE_S)

    def _copy(self, uri: str) -> None:
        """The lake as it was before, at another place."""
        for entry in Location.parse(self._base).entries():
            target = Location.parse(uri).join(entry.location.uri.removeprefix(f"{self._base}/"))
            target.write_bytes(entry.location.read_bytes())

    def _compare(self, lake: Lake, wanted: dict[str, str], when: str) -> None:
        found = {slide_id: told for slide_id, told in contents(lake).items() if not slide_id.startswith("plain/")}
        assert found == wanted, f"{when}: {_differ(found, wanted)}"


def _does(words: str, name: str) -> bool:
    return words.startswith("ray::") and name in words


def _differ(found: dict[str, str], wanted: dict[str, str]) -> str:
    named = sorted(set(found) | set(wanted))
    return ", ".join(name for name in named if found.get(name) != wanted.get(name)) + " are not what they should be"
