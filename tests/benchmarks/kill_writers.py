"""A round with plain writers: one dies at every commit point, some at a random instant, a few at a time."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.platform import lake_writer
from tests.platform.killing import POINTS, Task, contents, leftovers, published, start

from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.vacuum import vacuum

__all__ = ["rounds"]

TOGETHER = 4  # writers at once
RANDOM = ("random-1", "random-2", "random-3")  # slides whose writers die when they die
NEW: list[Task] = [("c/new-1", "one", 8), ("c/new-2", "one", 5)]
PATIENCE_S = 300


def _first(name: str) -> Task:
    return (f"c/{name}", "one", 10)


def _second(name: str) -> Task:
    return (f"c/{name}", "two", 14)


@contextmanager
def rounds(work: Path, seed: int) -> Iterator[Callable[[int, str], Counter[str]]]:
    """What plays a round; `work` takes the lakes that nobody disturbs."""
    game = _Game(work / "undisturbed", seed)
    yield game.play


class _Game:
    def __init__(self, folder: Path, seed: int) -> None:
        self._seed = seed
        self._known: dict[str, dict[str, str]] = {}  # slide -> digest -> its content
        for digest, task in (("one", _first), ("two", _second)):
            lake = Lake.open(folder / digest, create=True)
            lake_writer.ingest_all(lake, [*map(task, (*POINTS, *RANDOM)), *NEW])
            for slide_id, known in contents(lake).items():
                self._known.setdefault(slide_id, {})[digest] = known
        self._writing_s = 0.5  # how long a writer takes, as far as we have seen

    def play(self, number: int, uri: str) -> Counter[str]:
        """Kill, read, run again, compare, vacuum; the kills by point."""
        chance = random.Random(self._seed * 1_000_003 + number)
        lake = Lake.open(uri, create=True)
        names = [*POINTS, *RANDOM]
        before = lake_writer.ingest_all(lake, list(map(_first, names)))
        killed = self._kill(uri, chance)

        states = {row["slide_id"]: row["source_digest"] for row in lake.at().slides().to_pylist()}
        for point in POINTS:
            want = "two" if published(point) else "one"
            assert states[f"c/{point}"] == want, f"after a death at {point!r} the slide is at {states[f'c/{point}']!r}"
        self._compare(lake, states, "after the kills")

        self._run_again(lake, uri, chance)
        final = {**{f"c/{name}": "two" for name in names}, **{task[0]: "one" for task in NEW}}
        self._compare(lake, final, "after the second run")
        self._compare(lake, {f"c/{name}": "one" for name in names}, "in the version before", before)
        if lake.root.is_remote:
            time.sleep(1.1)  # the store's clock counts whole seconds
        vacuum(lake, clock_slack_s=0)
        left = [*leftovers(lake), *map(str, check(lake))]
        assert not left, f"left behind: {left}"
        self._compare(lake, final, "after the vacuum")
        return killed

    def _kill(self, uri: str, chance: random.Random) -> Counter[str]:
        """One writer a point, some killed at a random instant, a few at a time in random order."""
        killed: Counter[str] = Counter()
        names = [*POINTS, *RANDOM]
        chance.shuffle(names)
        for first in range(0, len(names), TOGETHER):
            writers = {}
            for name in names[first : first + TOGETHER]:
                writers[name] = start(uri, [_second(name)], name if name in POINTS else None)
            for name in [name for name in writers if name in RANDOM]:
                time.sleep(chance.uniform(0, self._writing_s / 2))
                writers[name].kill()
            for name, writer in writers.items():
                writer.join(PATIENCE_S)
                if name in POINTS:
                    assert writer.exitcode == -signal.SIGKILL, f"the writer at {name!r} ended with {writer.exitcode}"
                killed[name if name in POINTS else "random"] += writer.exitcode == -signal.SIGKILL
        return killed

    def _run_again(self, lake: Lake, uri: str, chance: random.Random) -> None:
        """All that was killed, by two writers in different order, beside a third and a vacuum."""
        tasks = [_second(name) for name in (*POINTS, *RANDOM)]
        other = chance.sample(tasks, len(tasks))
        began_s = time.monotonic()
        writers = [start(uri, share) for share in (tasks, other, NEW)]
        while any(writer.is_alive() for writer in writers):
            time.sleep(chance.uniform(0, 0.5))
            vacuum(lake, clock_slack_s=2)
            lost = [finding for finding in check(lake) if finding.severity == "error"]
            assert not lost, f"a vacuum beside writers: {lost}"
        for writer in writers:
            writer.join(PATIENCE_S)
            assert writer.exitcode == 0, f"a second run ended with {writer.exitcode}"
        self._writing_s = (time.monotonic() - began_s) / len(tasks) * 2

    def _compare(self, lake: Lake, states: dict[str, str], when: str, version: int | None = None) -> None:
        found = contents(lake, version)
        assert sorted(found) == sorted(states), f"{when}: the lake holds {sorted(found)}"
        differ = [slide_id for slide_id, digest in states.items() if found[slide_id] != self._known[slide_id][digest]]
        assert not differ, f"{when}: {', '.join(differ)} are not what they should be"
