"""The kill tests, again and again: `python -m tests.benchmarks.kill_loop --where disk|s3 --rounds 100 [--ray]`.

Every round kills writers in a lake of its own at every commit point and at random instants (or, with --ray, a real
`histolake ingest` at one point or one of its tiling workers), reads, runs again beside another writer and a vacuum, and
compares with a lake that nobody disturbed: same rows, same hashes, nothing left behind. A difference stops the loop and
keeps the lake.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.machine import commit, description
from tests.object_store import environment, new_bucket, running_store

from histolake.platform.storage import Location

Round = Callable[[int, str], Counter[str]]  # number of the round, where its lake may lie -> kills by point


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and loop; 1 where anything differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--where", choices=["disk", "s3"], default="disk", help="s3 starts a server of its own")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--ray", action="store_true", help="kill the real driver and its workers")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this time, whatever is left")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants")
    parser.add_argument("--work", type=Path, help="folder for the lakes (a temporary one by default)")
    parser.add_argument("--out", type=Path, help="file for the summary (JSON)")
    given = parser.parse_args(arguments)
    if given.work is not None:
        given.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="histolake-kill-", dir=given.work))
    with _place(given.where, work) as root, _rounds(ray=given.ray, work=work, seed=given.seed) as play:
        summary = _loop(play, root, given.rounds, given.minutes)
        if summary["differences"]:
            _keep(str(summary["kept"]), work)
    summary |= {"where": given.where, "ray": int(given.ray), "seed": given.seed}
    summary |= {"machine": description(), "commit": commit(), "when": datetime.now(UTC).isoformat(timespec="seconds")}
    text = json.dumps(summary, indent=1)
    print(text)
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(text + "\n")
    return 1 if summary["differences"] else 0


@contextmanager
def _place(where: str, work: Path) -> Iterator[str]:
    if where == "disk":
        yield str(work)
        return
    (work / "store").mkdir()
    with running_store(work / "store") as endpoint:
        os.environ.update(environment(endpoint))
        yield new_bucket()


@contextmanager
def _rounds(*, ray: bool, work: Path, seed: int) -> Iterator[Round]:
    if ray:
        from tests.benchmarks.kill_ingests import rounds
    else:
        from tests.benchmarks.kill_writers import rounds
    with rounds(work, seed) as play:
        yield play


def _loop(play: Round, root: str, rounds: int, minutes: float) -> dict[str, object]:
    began_s, kills, done, said = time.monotonic(), Counter[str](), 0, ""
    for number in range(rounds):
        if time.monotonic() - began_s > 60 * minutes:
            break
        lake, started_s = f"{root}/round-{number}", time.monotonic()
        try:
            killed = play(number, lake)
        except AssertionError as difference:
            said = f"round {number}: {difference}"
            print(f"{said}; the lake is kept: {lake}", file=sys.stderr, flush=True)
            break
        kills.update(killed)
        done += 1
        Location.parse(lake).delete()
        print(f"round {number}: {sum(killed.values())} kills, {time.monotonic() - started_s:.1f} s", flush=True)
    return {
        "rounds": done,
        "kills": sum(kills.values()),
        "differences": int(bool(said)),
        "difference": said,
        "kept": lake if said else "",
        "by_point": dict(sorted(kills.items())),
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _keep(lake: str, work: Path) -> None:
    """A lake in the store would go with it: copy it."""
    if not lake.startswith("s3://"):
        return
    place = Location.parse(lake)
    for entry in place.entries():
        target = work / "kept" / entry.location.uri.removeprefix(f"{place.uri}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        entry.location.download(target)
    print(f"copied to {work / 'kept'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
