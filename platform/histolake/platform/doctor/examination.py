"""Examine a store or a folder: every probe, each within its time, in under two seconds where all is well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from histolake.platform.doctor.deadline import TooSlow, within
from histolake.platform.doctor.diagnosis import Diagnosis, Probe
from histolake.platform.storage import Location

__all__ = ["examine"]

PROBE_S = 5.0  # what a probe may take before it counts as failed
TRIES = 6  # of a probe whose requests fail in passing
AGAIN_S = 1.0  # a probe that has failed for so long is not asked again


def examine(place: Location, *, only: tuple[str, ...] | None = None) -> Diagnosis:
    """What a lake at this place could rely on.

    Everything is tried below a random name there, which is removed afterwards (in the background where late answers of
    the race are waited for). `only` names probes; the first one, which says whether anything answers at all, is always
    among them, and where it fails the others are not asked.
    """
    started_s = time.monotonic()
    ward: AbstractContextManager[Any]
    if place.is_remote:
        from histolake.platform.doctor.object_store import ObjectStore

        ward = ObjectStore(place)
    else:
        from histolake.platform.doctor.folder import Folder

        ward = Folder(place)
    with ward as patient:
        probes = tuple(_ask(patient, only))
        server = patient.server
    return Diagnosis(store=place.uri, server=server, seconds=round(time.monotonic() - started_s, 3), probes=probes)


def _ask(patient: Any, only: tuple[str, ...] | None) -> Iterator[Probe]:
    for number, (name, ask) in enumerate(patient.probes()):
        if number and only is not None and name not in only:
            continue
        found = _within_its_time(name, ask, patient)
        yield found
        if number == 0 and not found.ok:
            return


def _within_its_time(name: str, ask: Callable[[], Probe], patient: Any) -> Probe:
    """One probe. A request that failed in passing is asked again, as long as failing did not take long."""
    started_s = time.monotonic()
    for number in range(1, TRIES + 1):
        try:
            return within(PROBE_S, ask)
        except TooSlow as slow:
            text = f"It gave {slow}; look at the network and at the server's load, and ask again."
            limit = f"{PROBE_S:g} s"
            return Probe(probe=name, ok=False, figure=f"over {limit}", limit=limit, means=text, settled=False)
        except Exception as error:
            # Whatever a library raises here is what the store is examined for; `says` names it.
            if patient.is_fleeting(error) and number < TRIES and time.monotonic() - started_s < AGAIN_S:
                patient.afresh()
                continue
            settled = not patient.is_fleeting(error)
            return Probe(probe=name, ok=False, figure=None, limit=None, means=patient.says(error), settled=settled)
    raise AssertionError("the last try returns")
