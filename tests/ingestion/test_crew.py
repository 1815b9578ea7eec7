"""The crew of workers on real Ray."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from histolake.ingestion.crew import Call, Crew, crew_size, fetched
from histolake.ingestion.pipeline import ingest_settings
from histolake.platform.errors import SourceError
from histolake.platform.settings import load_settings

SETTINGS = ingest_settings(load_settings({}))


def test_answers_come_in_order_and_refusals_stand_for_themselves(ray_here: None) -> None:
    told: list[tuple[str, int, int]] = []

    def half(number: int) -> int:
        if number % 2:
            raise SourceError(f"{number} is odd", rule="even", file="f")
        return number // 2

    with Crew(None, SETTINGS) as crew:
        assert crew.most == crew_size() == min(2, os.cpu_count() or 1)
        answers = crew.all(half, [(n,) for n in range(9)], "halving", lambda *words: told.append(words))
    assert [a for a in answers if isinstance(a, int)] == [0, 1, 2, 3, 4]
    assert [str(a) for a in answers if isinstance(a, SourceError)] == [f"{n} is odd" for n in (1, 3, 5, 7)]
    assert told == [("halving", n, 9) for n in range(1, 10)]


def test_a_call_whose_worker_dies_is_asked_again(ray_here: None, tmp_path: Path) -> None:
    def dies_once(mark: str) -> str:
        if not Path(mark).exists():
            Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    with Crew(None, SETTINGS, most=1) as crew:
        marks = [(str(tmp_path / f"mark{n}"),) for n in range(2)]
        assert crew.all(dies_once, marks, "dying", lambda *_: None) == ["alive", "alive"]


def test_a_defect_is_raised_and_leaves_no_worker(ray_here: None) -> None:
    def fails() -> None:
        raise ZeroDivisionError("a defect")

    free = ray.available_resources()["CPU"]
    with pytest.raises(ZeroDivisionError, match="a defect"), Crew(None, SETTINGS, most=1) as crew:
        crew.all(fails, [()], "failing", lambda *_: None)
    for _ in range(100):
        if ray.available_resources().get("CPU") == free:
            return
        time.sleep(0.1)
    raise AssertionError("a worker is left")


def test_further_answers_come_as_references(ray_here: None) -> None:
    found: list[Any] = []
    with Crew(None, SETTINGS, most=1) as crew:
        crew.ask(Call(method="call", given=(divmod, (7, 2)), then=lambda *answers: found.extend(answers), answers=2))
        crew.settle()
        assert found[0] == 3 and ray.get(found[1]) == 1


def test_a_slide_that_is_lost_is_none(ray_here: None) -> None:
    def keeps() -> list[Any]:
        return [ray.put(b"x" * 200_000)]

    with Crew(None, SETTINGS, most=1) as crew:
        ((held,),) = crew.all(keeps, [()], "keeping", lambda *_: None)
        assert fetched([held]) == b"x" * 200_000
    for _ in range(100):
        if fetched([held]) is None:  # as soon as Ray knows that the worker that held it is gone
            break
        time.sleep(0.1)
    assert fetched([held]) is None and fetched([]) is None
