"""Leases: who is writing to the lake or reading from it, so that vacuum leaves them alone.

A lease is a small file `leases/<id>.json`, renewed by a thread while its holder lives. It is dead when its process is
gone (seen at once on the same machine) or when it has not been renewed for `TTL_S` (elsewhere), by the clock that
stamps the lake's files: those of machines differ. A write lease also carries the plan of its attempt, so that a later
run can adopt an attempt that died complete.

A **seal** `leases/<id>.seal` decides the fate of an attempt once and for all: it is created only if it does not exist
(atomic on disk and on S3), by the writer right before it publishes, by another that adopts a dead attempt, or by vacuum
before it drops the rows. It says who made it. That of a vacuum outlives the lease, for a writer may come back from a
long sleep; and a writer that slept looks at its lease before it goes on.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from histolake.platform.errors import IntegrityError
from histolake.platform.storage import Location

__all__ = ["SILENT_S", "TTL_S", "Lease", "LeaseKeeper", "Seal", "read_lease", "read_leases"]

TTL_S = 120.0
# A rewrite puts new files in the place of published ones. Were its files swept while it slept, it would lose rows when
# it wakes; so no pause is taken for its death.
REWRITE_TTL_S = 24 * 3600.0
RENEW_S = TTL_S / 6
SILENT_S = 10 * TTL_S
LAPSED_S = TTL_S / 2  # without a renewal, after which a holder looks whether it was taken for dead


@cache
def _machine() -> str:
    """What tells this machine, boot and process namespace from any other."""
    parts = [socket.gethostname()]
    boot = Path("/proc/sys/kernel/random/boot_id")
    if boot.exists():
        parts.append(boot.read_text().strip())
    namespace = Path("/proc/self/ns/pid")
    if namespace.exists():
        parts.append(str(namespace.readlink()))
    return ":".join(parts)


def _process_started(pid: int) -> str:
    """When a process started, in clock ticks, "" if there is none: tells it from a later one of its number."""
    try:
        said = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if said[0] in "ZX" else said[19]  # one that ended, and that nobody has asked after yet, is gone


def _steady_s() -> float:
    """Seconds by a clock that nobody sets, and that goes on while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, kw_only=True)
class _Holder:
    """A process on a machine."""

    machine: str = field(default_factory=_machine)
    pid: int = field(default_factory=os.getpid)
    process_started: str = field(default_factory=lambda: _process_started(os.getpid()))

    @property
    def is_here(self) -> bool:
        """Whether it can be looked up: it runs, or ran, on this machine."""
        return self.machine == _machine() and bool(self.process_started)

    @property
    def is_running(self) -> bool:
        """Whether it is there now; only for one that `is_here`."""
        return _process_started(self.pid) == self.process_started


@dataclass(frozen=True, kw_only=True)
class Seal(_Holder):
    """The content of a seal: who decided an attempt's fate. Its `token` is like no other's."""

    by: str  # "publish" | "adopt" | "vacuum"
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def encode(self) -> bytes:
        """As bytes."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read(cls, place: Location) -> Seal | None:
        """The seal at a place, None where none is. One that was left half written is nobody's."""
        try:
            data = place.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return cls(by="unknown", machine="unknown", pid=0, process_started="")


@dataclass(frozen=True, kw_only=True)
class Lease(_Holder):
    """The content of one lease file."""

    lease_id: str  # the ingest_id of a write lease; random for a read lease
    kind: str  # "write" | "read" | "rewrite" | "embed", a claim of work that is written elsewhere
    purpose: str
    started_s: float = 0.0  # seconds since the epoch, by the store's clock; told when it is held
    renewed_s: float = 0.0
    slide_id: str | None = None
    source_digest: str | None = None
    settings_digest: str | None = None
    version: int | None = None  # what a reader pins
    plan: dict[str, Any] | None = None  # what a writer is about to publish
    silent_s: float | None = None  # how long it was not renewed, by the store's clock; known where it was read

    def is_live(self) -> bool:
        """Whether its holder may still be at work."""
        return (
            self.is_running if self.is_here else self._silent_s() < (REWRITE_TTL_S if self.kind == "rewrite" else TTL_S)
        )

    def is_certainly_dead(self) -> bool:
        """Whether nothing can come of it any more: its process is gone, or it was silent far longer than any pause."""
        return not self.is_running if self.is_here else self._silent_s() > SILENT_S

    def _silent_s(self) -> float:
        return time.time() - self.renewed_s if self.silent_s is None else self.silent_s

    def location(self, root: Location) -> Location:
        """Where the lease lies."""
        return root.join("leases", f"{self.lease_id}.json")

    def seal_location(self, root: Location) -> Location:
        """Where its seal lies."""
        return root.join("leases", f"{self.lease_id}.seal")

    def seal(self, root: Location, by: str) -> bool:
        """Decide the attempt's fate; False if it was decided before."""
        return self.seal_location(root).create(Seal(by=by).encode())

    def is_sealed(self, root: Location) -> bool:
        """Whether the attempt's fate was decided."""
        return self.seal_location(root).exists()

    def write(self, root: Location) -> None:
        """Write the lease file."""
        content = {name: value for name, value in asdict(self).items() if name != "silent_s"}
        self.location(root).write_bytes(json.dumps(content).encode())

    def remove(self, root: Location, *, with_seal: bool = True) -> None:
        """Remove the lease, then its seal."""
        self.location(root).delete()
        if with_seal:
            self.seal_location(root).delete()


def read_leases(root: Location, known: Collection[str] = ()) -> Iterator[Lease]:
    """Every lease of a lake, live or dead, but those that are `known` by id: they are not even read."""
    now_s = cache(root.join("leases").clock_s)
    for place in root.join("leases").list():
        if place.suffix != ".json" or place.name.removesuffix(".json") in known:
            continue
        lease = read_lease(root, place.name.removesuffix(".json"), now_s)
        if lease is not None:  # its holder may have removed it between the listing and now
            yield lease


def read_lease(root: Location, lease_id: str, now_s: Callable[[], float] | None = None) -> Lease | None:
    """One lease, live or dead; None where there is none. `now_s` tells the time by the store's clock."""
    folder = root.join("leases")
    place = folder.join(f"{lease_id}.json")
    try:
        lease = _parse(place.read_bytes(), lease_id)
    except FileNotFoundError:
        return None
    if lease.is_here:
        return lease
    written_s = place.modified_s()
    return replace(lease, silent_s=(now_s or folder.clock_s)() - written_s) if written_s else None


def _parse(data: bytes, lease_id: str) -> Lease:
    """A lease from its file. One that cannot be read (cut short, or of a later version) is somebody's all the same."""
    try:
        said = json.loads(data)
        return Lease(**{f.name: said[f.name] for f in fields(Lease) if f.name in said})
    except (ValueError, TypeError):
        nobody: dict[str, Any] = {"machine": "unknown", "pid": 0, "process_started": ""}
        return Lease(lease_id=lease_id, kind="write", purpose="unreadable", **nobody)


class LeaseKeeper:
    """Holds the leases of one process and renews them from one thread.

    A lease that could not be renewed is tried again in the next round. One that was not renewed for long (the store or
    this machine was away) is not simply written anew: where it was taken for dead meanwhile, it is lost.
    """

    def __init__(self, root: Location) -> None:
        self._root = root
        self._held: dict[str, Lease] = {}
        self._renewed: dict[str, float] = {}  # when each was last written, by the steady clock
        self._seals: dict[str, Seal] = {}  # those that we made
        self._lost: set[str] = set()
        self._ahead_s: float | None = None  # the store's clock less ours
        self._lock = threading.RLock()
        self._stop: threading.Event | None = None  # of the thread that renews, while there is one

    def hold(self, lease: Lease) -> Lease:
        """Write a lease and keep it alive until `release`; it starts now."""
        with self._lock:
            now_s = self._now_s()
            lease = replace(lease, started_s=now_s, renewed_s=now_s)
            self._write(lease)
            if self._stop is None:
                self._stop = threading.Event()
                threading.Thread(target=self._renew, args=(self._stop,), name="histolake-leases", daemon=True).start()
        return lease

    @property
    def held(self) -> frozenset[str]:
        """The ids of the leases that this process holds."""
        with self._lock:
            return frozenset(self._held)

    def update(self, lease_id: str, **changes: Any) -> Lease:
        """Change a held lease, such as its plan. Raises `IntegrityError` where it is lost."""
        with self._lock:
            self.ensure(lease_id)
            lease = replace(self._held[lease_id], renewed_s=self._now_s(), **changes)
            self._write(lease)
        return lease

    def seal(self, lease_id: str, by: str) -> bool:
        """Decide the fate of an attempt whose lease is held; False if it was decided before."""
        with self._lock:
            self.ensure(lease_id)
            return self._seal(self._held[lease_id], by)

    def adopt(self, lease: Lease) -> bool:
        """Seal a dead attempt and hold its lease from now on; False if its fate was decided before."""
        with self._lock:
            if not self._seal(lease, "adopt"):
                return False
            self.hold(lease)
            return True

    def ensure(self, lease_id: str) -> None:
        """Raise `IntegrityError` if an attempt was taken for dead while this process slept. Asks nobody where the lease
        was renewed of late."""
        with self._lock:
            if lease_id in self._lost or (self._is_late(lease_id) and self._was_given_up(lease_id)):
                self._lost.add(lease_id)
                raise IntegrityError(
                    f"The attempt {self._held[lease_id].purpose!r} was given up for dead; run it again."
                )

    def release(self, lease_id: str) -> None:
        """Give a lease back. What cannot be removed now is vacuum's."""
        with self._lock:
            lease = self._held.pop(lease_id, None)
            if lease is not None:
                with suppress(OSError):
                    lease.remove(self._root, with_seal=lease_id not in self._lost)
            for known in (self._renewed, self._seals):
                known.pop(lease_id, None)
            self._lost.discard(lease_id)
            if not self._held and self._stop is not None:
                self._stop.set()
                self._stop = None

    def _seal(self, lease: Lease, by: str) -> bool:
        seal = Seal(by=by)
        if not lease.seal_location(self._root).create(seal.encode()):
            return False
        self._seals[lease.lease_id] = seal
        return True

    def _write(self, lease: Lease) -> None:
        lease.write(self._root)
        self._held[lease.lease_id] = lease
        self._renewed[lease.lease_id] = _steady_s()

    def _is_late(self, lease_id: str) -> bool:
        return _steady_s() - self._renewed[lease_id] > LAPSED_S

    def _was_given_up(self, lease_id: str) -> bool:
        lease = self._held[lease_id]
        return not lease.location(self._root).exists() or (
            Seal.read(lease.seal_location(self._root)) != self._seals.get(lease_id)
        )

    def _now_s(self) -> float:
        """The time by the store's clock."""
        if self._ahead_s is None:
            self._ahead_s = self._root.join("leases").clock_s() - time.time()
        return time.time() + self._ahead_s

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(RENEW_S):
            self._ahead_s = None
            for lease_id in self.held:
                with self._lock, suppress(OSError, IntegrityError):
                    # A lease that is lost stays so, and its attempt is told; a store that was away is asked again.
                    if lease_id in self._held:
                        self.update(lease_id)
