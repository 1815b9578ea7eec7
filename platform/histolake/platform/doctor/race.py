"""Writers that create the same file at once: of each file exactly one may succeed.

Many files with two writers each, who start at the same moment, and some with eight, who follow each other so closely
that they overlap. (SeaweedFS lets a crowd that comes in one instant wait for whole seconds before it refuses all but
one.) A loser that is slow to hear of it is not waited for: whoever is told is judged, and the file must hold what the
one winner wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from histolake.platform.doctor.deadline import Racers, at_once
from histolake.platform.doctor.diagnosis import Probe

__all__ = ["race"]

PAIRS, CROWDS, CROWD = 8, 3, 8  # files of two writers, files of many, how many
CLOSE_S = 0.002  # between two writers of a crowd, at most
LAST_S = 3.0  # for the first winner of a file; a store that is slower fails

Create = Callable[[str, bytes], bool]  # file, content -> whether it was created
Read = Callable[[str], bytes]


def race(name: str, create: Create, read: Read, put_s: float, patience_s: float) -> tuple[Probe, list[Racers]]:
    """The probe, and the racers, some of whom may still be under way: leave the files until they have ended.

    `put_s` is how long one put takes, `patience_s` how long losers are waited for in all.
    """
    heats = [[(f"{name}-pair-{n}", w) for n in range(PAIRS) for w in range(2)]]
    heats += [[(f"{name}-crowd-{n}", w) for w in range(CROWD)] for n in range(CROWDS)]
    end_s = time.monotonic() + patience_s
    run: list[Racers] = []
    winners: dict[str, list[int]] = {}
    for number, heat in enumerate(heats):
        apart_s = min(CLOSE_S, put_s / 2) if number else 0.0
        racers = at_once([partial(_enter, create, file, w, w * apart_s) for file, w in heat])
        run.append(racers)
        racers.wait(max(0.05, end_s - time.monotonic()))
        files = {file for file, _ in heat}
        if len(racers.done) < len(heat) and len(_winners(racers, heat)) < len(files):
            racers.wait(LAST_S)
        winners |= {file: [] for file in files} | _winners(racers, heat)
    writers = sum(map(len, heats))
    told = f"{sum(len(racers.done) for racers in run)} of {writers} writers had their answer in time"
    unclear = {file for racers, heat in zip(run, heats, strict=True) for file in _failed(racers, heat)}
    unclear = {file for file in unclear if not winners[file]}  # a winner may be among those whose answer was lost
    wrong = {
        file: won
        for file, won in winners.items()
        if file not in unclear and (len(won) != 1 or read(file) != b"%d" % won[0])
    }
    if len(unclear) > len(winners) / 2:
        failures = [result for racers in run for _, result in racers.done if isinstance(result, Exception)]
        raise failures[0]
    worst = max((len(won) for won in wrong.values()), default=1)
    means = (
        f"Of up to {CROWD} writers who create a file at once one succeeds, {len(winners) - len(unclear)} times over "
        f"({told})."
    )
    if wrong and worst > 1:
        means = (
            f"{worst} of {CROWD} writers who created one file at once were told that they did, and {len(wrong)} of "
            f"{len(winners)} files had another number of winners than one: rows of several writers would be lost while "
            "each reports success. Use another store."
        )
    elif wrong:
        means = (
            f"{len(wrong)} of {len(winners)} files have no winner, or hold not what theirs wrote ({told}). Use another "
            "store."
        )
    settled = any(wrong.values()) or not wrong  # a file without a winner may yet get one
    return Probe(probe=name, ok=not wrong, figure=f"{worst}", limit="1", means=means, settled=settled), run


def _enter(create: Create, file: str, writer: int, after_s: float) -> bool:
    time.sleep(after_s)
    return create(file, b"%d" % writer)


def _winners(racers: Racers, heat: list[tuple[str, int]]) -> dict[str, list[int]]:
    won: dict[str, list[int]] = {}
    for index, result in list(racers.done):
        if result is True:
            file, writer = heat[index]
            won.setdefault(file, []).append(writer)
    return won


def _failed(racers: Racers, heat: list[tuple[str, int]]) -> list[str]:
    """The files of writers who heard neither of success nor of refusal."""
    return [heat[index][0] for index, result in list(racers.done) if isinstance(result, Exception)]
