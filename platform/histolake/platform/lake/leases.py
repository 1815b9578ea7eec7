"""Leases: who is writing to the lake or reading from it, so that vacuum leaves them alone.

A lease is a small file `leases/<id>.json`, renewed by a thread while its holder lives. It is dead when its process is
gone (seen at once on the same machine) or when it has not been renewed for `TTL_S` (elsewhere). A write lease also
carries the plan of its attempt, so that a later run can adopt an attempt that died complete.

A **seal** `leases/<id>.seal` decides the fate of an attempt once and for all: it is created only if it does not exist
(atomic on disk and on S3), either by the writer right before it publishes, or by vacuum before it drops the rows.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from histolake.platform.storage import Location

__all__ = ["TTL_S", "Lease", "LeaseKeeper", "read_lease", "read_leases"]

TTL_S = 120.0
RENEW_S = TTL_S / 6
SILENT_S = 10 * TTL_S


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
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The content of one lease file."""

    lease_id: str  # the ingest_id of a write lease; random for a read lease
    kind: str  # "write" | "read" | "embed", a claim of work that is written elsewhere
    purpose: str
    started_s: float  # seconds since the epoch
    renewed_s: float
    machine: str = field(default_factory=_machine)
    pid: int = field(default_factory=os.getpid)
    process_started: str = field(default_factory=lambda: _process_started(os.getpid()))
    slide_id: str | None = None
    source_digest: str | None = None
    settings_digest: str | None = None
    version: int | None = None  # what a reader pins
    plan: dict[str, Any] | None = None  # what a writer is about to publish

    def is_live(self) -> bool:
        """Whether its holder may still be at work."""
        if self.machine == _machine() and self.process_started:
            return _process_started(self.pid) == self.process_started
        return time.time() - self.renewed_s < TTL_S

    def is_certainly_dead(self) -> bool:
        """Whether nothing can come of it any more: its process is gone, or it was silent far longer than any pause."""
        here = self.machine == _machine() and bool(self.process_started)
        return not self.is_live() and (here or time.time() - self.renewed_s > SILENT_S)

    def location(self, root: Location) -> Location:
        """Where the lease lies."""
        return root.join("leases", f"{self.lease_id}.json")

    def seal(self, root: Location, by: str) -> bool:
        """Decide the attempt's fate; False if it was decided before."""
        return root.join("leases", f"{self.lease_id}.seal").create(by.encode())

    def is_sealed(self, root: Location) -> bool:
        """Whether the attempt's fate was decided."""
        return root.join("leases", f"{self.lease_id}.seal").exists()

    def write(self, root: Location) -> None:
        """Write the lease file."""
        self.location(root).write_bytes(json.dumps(asdict(self)).encode())

    def remove(self, root: Location) -> None:
        """Remove the lease, then its seal."""
        self.location(root).delete()
        root.join("leases", f"{self.lease_id}.seal").delete()


def read_leases(root: Location, known: Collection[str] = ()) -> Iterator[Lease]:
    """Every lease of a lake, live or dead, but those that are `known` by id: they are not even read."""
    for place in root.join("leases").list():
        if place.suffix != ".json" or place.name.removesuffix(".json") in known:
            continue
        lease = read_lease(root, place.name.removesuffix(".json"))
        if lease is not None:  # its holder may have removed it between the listing and now
            yield lease


def read_lease(root: Location, lease_id: str) -> Lease | None:
    """One lease, live or dead; None where there is none."""
    try:
        data = root.join("leases", f"{lease_id}.json").read_bytes()
    except FileNotFoundError:
        return None
    return Lease(**json.loads(data))


class LeaseKeeper:
    """Holds the leases of one process and renews them from one thread."""

    def __init__(self, root: Location) -> None:
        self._root = root
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def hold(self, lease: Lease) -> Lease:
        """Write a lease and keep it alive until `release`."""
        with self._lock:
            lease.write(self._root)
            self._held[lease.lease_id] = lease
            if self._thread is None or not self._thread.is_alive():
                self._stop.clear()
                self._thread = threading.Thread(target=self._renew, name="histolake-leases", daemon=True)
                self._thread.start()
        return lease

    @property
    def held(self) -> frozenset[str]:
        """The ids of the leases that this process holds."""
        with self._lock:
            return frozenset(self._held)

    def update(self, lease_id: str, **changes: Any) -> Lease:
        """Change a held lease, such as its plan."""
        with self._lock:
            lease = replace(self._held[lease_id], renewed_s=time.time(), **changes)
            lease.write(self._root)
            self._held[lease_id] = lease
        return lease

    def seal(self, lease_id: str, by: str) -> bool:
        """Decide the fate of an attempt whose lease is held; False if it was decided before."""
        return self._held[lease_id].seal(self._root, by)

    def release(self, lease_id: str) -> None:
        """Give a lease back."""
        with self._lock:
            lease = self._held.pop(lease_id, None)
            if lease is not None:
                lease.remove(self._root)
            if not self._held:
                self._stop.set()

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_S):
            with self._lock:
                for lease_id, lease in self._held.items():
                    self._held[lease_id] = replace(lease, renewed_s=time.time())
                    self._held[lease_id].write(self._root)
