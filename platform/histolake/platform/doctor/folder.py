"""A folder on disk under examination: what Lance, Delta and the lake ask of a file system.

Lance and Delta commit by a hard link to a file that is already written, which fails where the name is taken; the lake's
seals do the same. Leases and images appear by a rename.
"""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from histolake.platform.doctor.diagnosis import Probe
from histolake.platform.doctor.race import race
from histolake.platform.storage import CLOCK_SLACK_S, Location

__all__ = ["Folder"]

PUT_S = 0.0002  # a small file, about
LATE_S = 1.0
FREE_BYTES = 1 << 30
MOUNTS = Path("/proc/mounts")


class Folder:
    """A context: what was written goes when it is left. Of a folder that is not there yet, the nearest one above it
    that is there is examined."""

    def __init__(self, place: Location) -> None:
        found = Path(place.uri)
        while not found.is_dir() and found != found.parent:
            found = found.parent
        self._above = found
        self._folder = found / f".doctor-{uuid.uuid4().hex}"
        self.server = _file_system(found)

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def probes(self) -> list[tuple[str, Callable[[], Probe]]]:
        """The questions, in their order; where the first fails the others make no sense."""
        return [
            ("reachable", self._reachable),
            ("create", self._create_race),
            ("link", self._link_race),
            ("rename", self._rename),
            ("sync", self._sync),
            ("clock", self._clock),
            ("latency", self._latency),
            ("space", self._space),
        ]

    def afresh(self) -> None:
        """Nothing is asked twice here."""

    def is_fleeting(self, error: Exception) -> bool:
        """Disks that fail are not asked again."""
        return False

    def says(self, error: Exception) -> str:
        """One sentence: what was asked, what came, what to do."""
        return f"{self._above} was to be written to and it failed: {error}; name a folder that you may write to."

    # -- the questions --------------------------------------------------------------------------------------------

    def _reachable(self) -> Probe:
        self._folder.mkdir()
        path, data = self._folder / "first", os.urandom(512)
        path.write_bytes(data)
        same = path.read_bytes() == data
        listed = [entry.name for entry in self._folder.iterdir()] == ["first"]
        path.unlink()
        ok = same and listed and not path.exists()
        means = f"{self._above} ({self.server}) takes a file, gives it back, lists it and deletes it."
        if not ok:
            means = f"{self._above} does not give a file back as it was written, or lists it wrong: use another disk."
        return Probe(probe="reachable", ok=ok, figure=self.server or None, limit=None, means=means)

    def _create_race(self) -> Probe:
        def create(name: str, data: bytes) -> bool:
            try:
                with (self._folder / name).open("xb") as stream:
                    stream.write(data)
            except FileExistsError:
                return False
            return True

        return race("create", create, self._read, PUT_S, LATE_S)[0]

    def _link_race(self) -> Probe:
        def create(name: str, data: bytes) -> bool:
            part = self._folder / f"part-{uuid.uuid4().hex}"
            part.write_bytes(data)
            try:
                (self._folder / name).hardlink_to(part)
            except FileExistsError:
                return False
            return True

        return race("link", create, self._read, PUT_S, LATE_S)[0]

    def _read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def _rename(self) -> Probe:
        """A file that is replaced by a rename while another thread reads it."""
        path = self._folder / "renamed"
        known = {bytes([65 + n]) * (3000 + 977 * n) for n in range(6)}
        path.write_bytes(min(known))
        stop, torn, reads = threading.Event(), [], []

        def watch() -> None:
            while not stop.is_set():
                try:
                    reads.append(1)
                    if path.read_bytes() not in known:
                        torn.append("a mixture")
                except FileNotFoundError:
                    torn.append("nothing")

        reader = threading.Thread(target=watch, daemon=True)
        reader.start()
        stale = 0
        for number, version in enumerate(sorted(known) * 5):
            part = self._folder / f"part-{number}"
            part.write_bytes(version)
            part.replace(path)
            stale += path.read_bytes() != version
        stop.set()
        reader.join(LATE_S)
        means = "A file that is replaced by a rename reads whole, and new at once."
        if stale or torn:
            means = (
                f"Of {len(reads)} reads beside a rename {len(torn)} gave {' or '.join(sorted(set(torn))) or 'all'}, "
            )
            means += f"and {stale} of 30 after it the old content: use another disk."
        return Probe(
            probe="rename", ok=not stale and not torn, figure=f"{stale} stale, {len(torn)} torn", limit="0", means=means
        )

    def _sync(self) -> Probe:
        start_s = time.perf_counter()
        for path, flags in ((self._folder / "synced", os.O_CREAT | os.O_WRONLY), (self._folder, os.O_RDONLY)):
            number = os.open(path, flags)
            try:
                os.fsync(number)
            finally:
                os.close(number)
        took_ms = (time.perf_counter() - start_s) * 1000
        means = "Files and folders can be flushed to the disk."
        return Probe(probe="sync", ok=True, figure=f"{took_ms:.1f} ms", limit=None, means=means)

    def _clock(self) -> Probe:
        before_s = time.time()
        path = self._folder / "clock"
        path.write_bytes(b"x")
        written_s, after_s = path.stat().st_mtime, time.time()
        # A file system may round down to two seconds.
        apart_s = max(0.0, written_s - after_s) or min(0.0, written_s + 2.0 - before_s)
        ok = abs(apart_s) < CLOCK_SLACK_S
        means = f"The disk's clock and this machine's differ by {abs(apart_s):.0f} s."
        if not ok:
            means += " Vacuum would take fresh files for old ones: set both clocks (NTP)."
        return Probe(probe="clock", ok=ok, figure=f"{apart_s:+.0f} s", limit=f"{CLOCK_SLACK_S:.0f} s", means=means)

    def _latency(self) -> Probe:
        data, path = os.urandom(4096), self._folder / "latency"
        took: dict[str, list[float]] = {"write": [], "read": []}
        for _ in range(9):
            start_s = time.perf_counter()
            path.write_bytes(data)
            took["write"].append(time.perf_counter() - start_s)
            start_s = time.perf_counter()
            path.read_bytes()
            took["read"].append(time.perf_counter() - start_s)
        figure = ", ".join(f"{verb} {statistics.median(times) * 1000:.2f} ms" for verb, times in took.items())
        means = "Medians of nine files of 4 KiB, one after another."
        return Probe(probe="latency", ok=True, figure=figure, limit=None, means=means)

    def _space(self) -> Probe:
        free = shutil.disk_usage(self._above).free
        ok = free >= FREE_BYTES
        means = f"{free / 1e9:.1f} GB are free; a section of 5,000 spots takes about 0.3 GB."
        if not ok:
            means += " Make room, or name another disk."
        return Probe(
            probe="space", ok=ok, figure=f"{free / 1e9:.1f} GB", limit=f"{FREE_BYTES / 1e9:.1f} GB", means=means
        )


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, as the kernel calls it; "" where it does not say."""
    if not MOUNTS.exists():
        return ""
    kinds: dict[str, str] = {}
    for line in MOUNTS.read_text().splitlines():
        _, mount, kind, *_ = line.split()
        kinds[mount.replace("\\040", " ")] = kind
    found = path.resolve()
    while str(found) not in kinds and found != found.parent:
        found = found.parent
    return kinds.get(str(found), "")
