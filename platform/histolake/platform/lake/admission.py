"""Who may write to a lake in an object store: asked once a process and store, before the first write.

Every commit of Lance and of Delta, and every seal of the lake, is a file that is created only where there is none. On
a store that ignores that condition each of several writers reports success and rows are lost. So the doctor asks it
whether the condition holds under a race, and whether what is written can be read; one that fails is refused.

Where the person who runs it says that this is the only writer (`store.sole_writer`), a store that fails in nothing but
that is let in. The process then holds a lease of the kind `sole` until it ends, and while one of those or a lease of
another writer lives, a second process is refused. On disk nothing is asked: `histolake doctor` tells what a disk does.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid

from histolake.platform.doctor.diagnosis import Diagnosis
from histolake.platform.doctor.examination import examine
from histolake.platform.errors import StoreError
from histolake.platform.lake.leases import Lease, LeaseKeeper, read_leases
from histolake.platform.storage import Location

__all__ = ["ASKED", "require_conditional_put"]

# What decides whether a lake may be written; the doctor's other probes are told to people.
ASKED = ("reachable", "ranges", "folders", "conditional put", "race")
WRITING = ("write", "sole")  # kinds of leases that writers hold
PATIENCE_S = 60.0  # a store that is only slow, or fails in passing, is asked again for so long
SILENCE_S = 5.0  # and one that gives no answer at all for so long
GOODBYE_S = 5.0  # how long the end of a process waits for its lease to be given back

_lock = threading.Lock()
_diagnoses: dict[tuple[object, ...], Diagnosis] = {}
_admitted: set[tuple[object, ...]] = set()


def require_conditional_put(root: Location) -> None:
    """Let this process write to the lake at `root`, or raise `StoreError` with the reason. Free from the second call
    on, and on disk."""
    if not root.is_remote:
        return
    key = (os.getpid(), root.uri, root.store.sole_writer, *sorted(root.store.resolved().items()))
    if key in _admitted:
        return
    with _lock:
        if key in _admitted:
            return
        diagnosis = _diagnosis(root)
        if diagnosis.ok:
            _admitted.add(key)
            return
        if not diagnosis.holds_a_lake:
            wrong = [probe for probe in diagnosis.failed() if probe.probe not in ("conditional put", "race")]
            raise StoreError(
                f"{root} cannot hold a lake, not even of a sole writer. {diagnosis.complaint(wrong)} "
                f"(`histolake doctor {root}` tells all.)"
            )
        if not root.store.sole_writer:
            raise StoreError(
                f"{root} does not keep writers apart. {diagnosis.complaint(diagnosis.failed()[-1:])} If this process "
                "alone writes to the lake, say so: store.sole_writer = true, HISTOLAKE_STORE__SOLE_WRITER=true."
            )
        _write_alone(root)
        _admitted.add(key)


def _diagnosis(root: Location) -> Diagnosis:
    """What was found at the bucket that a lake is in; asked again where nothing answered.

    A person who calls the doctor wants an answer in seconds; a writer had better wait than be refused for a store that
    is only slow or fails in passing.
    """
    key = (root.bucket_and_key()[0], *sorted(root.store.resolved().items()))
    found = _diagnoses.get(key)
    if found is None:
        start_s = time.monotonic()
        found = examine(root, only=ASKED)
        while found.is_open and time.monotonic() - start_s < (PATIENCE_S if len(found.probes) > 1 else SILENCE_S):
            found = examine(root, only=ASKED)
        if len(found.probes) > 1:
            _diagnoses[key] = found
    return found


def _write_alone(root: Location) -> None:
    """Hold the lake for this process until it ends; raises `StoreError` while another one writes."""
    now = time.time()
    keeper = LeaseKeeper(root)
    lease = Lease(lease_id=uuid.uuid4().hex, kind="sole", purpose="to write alone", started_s=now, renewed_s=now)
    # First ours, then a look at the others': of two that come at once at least one sees the other.
    keeper.hold(lease)
    others = [other for other in read_leases(root) if other.kind in WRITING and other.is_live() and not _is_ours(other)]
    if others:
        keeper.release(lease.lease_id)
        other = others[0]
        raise StoreError(
            f"{root} does not keep writers apart, and process {other.pid} of {other.machine.partition(':')[0]} is "
            f"writing to it ({other.purpose}): wait until it has ended."
        )
    atexit.register(_give_back, keeper, lease.lease_id)


def _is_ours(lease: Lease) -> bool:
    mine = Lease(lease_id="", kind="", purpose="", started_s=0.0, renewed_s=0.0)
    return (lease.machine, lease.pid, lease.process_started) == (mine.machine, mine.pid, mine.process_started)


def _give_back(keeper: LeaseKeeper, lease_id: str) -> None:
    """At the end of the process, but not for long: a lease that stays dies with its process."""
    thread = threading.Thread(target=keeper.release, args=(lease_id,), daemon=True)
    thread.start()
    thread.join(GOODBYE_S)
