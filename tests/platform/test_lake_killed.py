"""Writers that die at every commit point, on disk and on a real S3 server: nothing is lost, doubled or left behind."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from tests.object_store import environment
from tests.platform import lake_writer
from tests.platform.flaky_store import Faults, flaky_store
from tests.platform.killing import POINTS, Task, content, contents, leftovers, published, start, undisturbed

from histolake.platform.lake import Lake
from histolake.platform.lake.audit import check
from histolake.platform.lake.vacuum import vacuum

FIRST: list[Task] = [("c/a", "one", 20)]
SECOND: list[Task] = [("c/a", "two", 30)]
BESIDE: list[Task] = [("c/b", "one", 16), ("c/c", "one", 8)]


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a lake may be made."""
    if request.param == "disk":
        return str(tmp_path / "lake")
    return f"{request.getfixturevalue('bucket')}/lake"


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The content of lakes that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return {
        "first": undisturbed(folder / "first", FIRST),
        "second": undisturbed(folder / "second", FIRST + SECOND),
        "all": undisturbed(folder / "all", FIRST + SECOND + BESIDE),
    }


def clean_up(lake: Lake) -> None:
    """Vacuum when nobody writes. A store's clock counts whole seconds."""
    if lake.root.is_remote:
        time.sleep(1.1)
    vacuum(lake, clock_slack_s=0)


@pytest.mark.parametrize("point", POINTS)
def test_a_writer_that_dies_at(point: str, place: str, wanted: dict[str, str]) -> None:
    lake = Lake.open(place, create=True)
    lake_writer.ingest(lake, *FIRST[0], whole=True)
    killed = start(place, SECOND, point)
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert content(lake) == wanted["second" if published(point) else "first"]

    again, beside = start(place, SECOND), start(place, BESIDE)
    while again.is_alive() or beside.is_alive():
        time.sleep(0.1)
        vacuum(lake, clock_slack_s=2)
        assert not [finding for finding in check(lake) if finding.severity == "error"]
    again.join()
    beside.join()
    assert (again.exitcode, beside.exitcode) == (0, 0)
    assert content(lake) == wanted["all"]
    assert content(lake, 1) == wanted["first"]

    clean_up(lake)
    assert leftovers(lake) == [] and check(lake) == []
    assert content(lake) == wanted["all"] and content(lake, 1) == wanted["first"]


def test_four_at_once_two_of_the_same_slide(place: str, tmp_path: Path) -> None:
    tasks: list[Task] = [
        ("c/shared", "one", 20),
        ("c/own-1", "one", 12),
        ("c/shared", "two", 24),
        ("c/own-2", "one", 9),
    ]
    writers = [start(place, [task]) for task in tasks]
    for writer in writers:
        writer.join(240)
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    lake = Lake.open(place)
    assert sorted(lake.catalog.slides(["published_in"])["published_in"].to_pylist()) == [1, 2, 3, 4]
    last = {row["slide_id"]: row["source_digest"] for row in lake.at().slides().to_pylist()}["c/shared"]
    order = sorted(tasks, key=lambda task: task[1] == last)
    assert content(lake) == undisturbed(tmp_path / "one-by-one", order)
    clean_up(lake)
    assert leftovers(lake) == [] and check(lake) == []


SHARES: list[list[Task]] = [
    [("c/a", "one", 20), ("c/a", "two", 30), ("c/d", "one", 6)],
    [("c/b", "one", 16), ("c/c", "one", 8), ("c/b", "two", 12)],
]
BIG: Task = ("c/big", "one", 3600)  # its fragments go to the store in parts


@pytest.fixture(scope="module")
def all_shares(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the shares leave, with the big slide and without."""
    folder = tmp_path_factory.mktemp("shares") / "lake"
    undisturbed(folder, [task for share in SHARES for task in share])
    small = contents(Lake.open(folder))
    undisturbed(folder, [BIG])
    return small | {"c/big": contents(Lake.open(folder))["c/big"]}


@pytest.mark.parametrize(
    ("faults", "big"),
    [
        (Faults(refuse=1 / 20, seed=1), False),
        (Faults(cut=1 / 20, seed=2), False),
        (Faults(lose=1 / 10, lose_completions=2, seed=3), True),
        (Faults(lose_commits=1 / 2, seed=4), False),
        (Faults(refuse=1 / 20, cut=1 / 20, lose=1 / 20, lose_commits=1 / 5, seed=5), False),
    ],
    ids=["refused", "torn", "lost", "lost commits", "all of it"],
)
def test_a_store_that_fails(
    faults: Faults, big: bool, all_shares: dict[str, str], store: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with flaky_store(store, faults) as endpoint:
        for name, value in environment(endpoint).items():
            monkeypatch.setenv(name, value)
        writers = [start(f"{bucket}/lake", share) for share in [*SHARES, *([[BIG]] if big else [])]]
        for writer in writers:
            writer.join(400)
        assert {writer.exitcode for writer in writers} == {0}
        vacuum(Lake.open(f"{bucket}/lake"), clock_slack_s=2)
    assert sum(faults.happened.values()) - faults.happened["passed"] > 3, faults.happened
    assert faults.happened["lost completion"] >= faults.lose_completions
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    lake = Lake.open(f"{bucket}/lake")
    assert contents(lake) == {slide: told for slide, told in all_shares.items() if big or slide != "c/big"}
    assert lake.catalog.slides(["slide_id"]).num_rows == 6 + big, "every ingest was published once"
    assert lake.catalog.rejections().num_rows == 2 * (6 + big), "and its rejections, too"
    clean_up(lake)
    assert leftovers(lake) == [] and check(lake) == []
