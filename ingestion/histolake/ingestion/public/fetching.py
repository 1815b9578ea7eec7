"""A public cohort on this machine: its files fetched side by side, verified, pinned, unpacked.

    public/checksums.json                                what every file must hash to, and since when
    public/V1_Human_Heart/filtered_feature_bc_matrix.h5
    public/V1_Human_Heart/image.tif
    public/V1_Human_Heart/spatial.tar.gz                 kept, so that it need not be fetched again
    public/V1_Human_Heart/spatial/                       what was in it

Each section's folder is then as Space Ranger writes one. A file that is there and has its checksum is left alone, with
or without a network.
"""

from __future__ import annotations

import json
import queue
import shutil
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from histolake.ingestion.public.catalogue import Cohort, PublicFile, PublicSection, PublicSettings
from histolake.ingestion.public.download import Stopped, connect, download, sha256_of
from histolake.platform.errors import DownloadError, HistolakeError

__all__ = ["CHECKSUMS_FILE", "Pins", "fetch", "is_there"]

CHECKSUMS_FILE = "checksums.json"
ARCHIVE = "spatial.tar.gz"
STOP_S = 3.0  # a worker that has not stopped by then is left to end with the process

Tell = Callable[[str, int, int | None], None]  # file, bytes there, bytes in all


class Pins:
    """`checksums.json`: what was fetched, and what it must be from then on. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / CHECKSUMS_FILE
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Any]] = {}
        if self.file.is_file():
            try:
                self._known = dict(json.loads(self.file.read_text())["files"])
            except (ValueError, KeyError, TypeError) as error:
                raise DownloadError(f"{self.file} cannot be read ({error}); remove it to pin anew.") from error

    def sha256(self, key: str) -> str | None:
        """What `<section>/<file>` was pinned to."""
        return self._known.get(key, {}).get("sha256")

    def pin(self, key: str, *, url: str, sha256: str, size_bytes: int, stated: bool) -> None:
        """Record a file that was fetched."""
        with self._lock:
            self._known[key] = {
                "sha256": sha256,
                "bytes": size_bytes,
                "checksum_from": "catalogue" if stated else "first use",
                "url": url,
                "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
            }
            content = {"format": "histolake-checksums", "format_version": 1, "files": dict(sorted(self._known.items()))}
            draft = self.file.with_name(self.file.name + ".part")
            draft.write_text(json.dumps(content, indent=1) + "\n")
            draft.replace(self.file)


def is_there(cohort: Cohort, folder: Path) -> bool:
    """Whether an earlier run has fetched every file of a cohort; `fetch` still checks them."""
    try:
        pins = Pins(folder)
    except DownloadError:
        return False
    return all(
        pins.sha256(f"{section.name}/{file.name}") and (folder / section.name / file.name).is_file()
        for section, file in cohort.files
    )


def fetch(
    cohort: Cohort,
    folder: Path,
    settings: PublicSettings,
    *,
    tell: Tell = lambda *_: None,
    limit_s: float | None = None,
) -> dict[str, Path]:
    """Fetch a cohort below `folder`; section -> its folder. `limit_s` is how long it may take in all, in seconds.

    Raises `DownloadError` where a file cannot be had or is not what it should be. Whatever ends it early, Ctrl-C
    too, leaves whole files and `.part` files that the next call takes up.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pins = Pins(folder)
    wanted = [(section, file) for section, file in cohort.files if not _have(section, file, folder, pins, tell)]
    if wanted:
        _fetch_all(wanted, folder, pins, settings, tell, limit_s)
    for section in cohort.sections:
        _unpack(folder / section.name)
    return {section.name: folder / section.name for section in cohort.sections}


def _have(section: PublicSection, file: PublicFile, folder: Path, pins: Pins, tell: Tell) -> bool:
    """Whether the file is there and is the one that it must be."""
    place, key = folder / section.name / file.name, f"{section.name}/{file.name}"
    expected = file.sha256 or pins.sha256(key)
    if expected is None or not place.is_file() or sha256_of(place) != expected:
        return False
    tell(key, place.stat().st_size, place.stat().st_size)
    return True


def _fetch_all(
    wanted: list[tuple[PublicSection, PublicFile]],
    folder: Path,
    pins: Pins,
    settings: PublicSettings,
    tell: Tell,
    limit_s: float | None,
) -> None:
    """Every file, a few at a time; the first that fails stops the others."""
    todo: queue.SimpleQueue[tuple[PublicSection, PublicFile]] = queue.SimpleQueue()
    for one in wanted:
        todo.put(one)
    ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()  # one a file, or what went wrong
    with connect(settings) as client, _workers(settings.parallel) as (start, stop):

        def work() -> None:
            while not stop.is_set():
                try:
                    section, file = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    _fetch_one(client, section, file, folder, pins, settings, stop, tell)
                    ended.put(None)
                except BaseException as error:  # handed to whoever waits, who raises it
                    ended.put(error)
                    return

        start(work)
        _wait(ended, len(wanted), limit_s)


def _fetch_one(
    client: Any,
    section: PublicSection,
    file: PublicFile,
    folder: Path,
    pins: Pins,
    settings: PublicSettings,
    stop: threading.Event,
    tell: Tell,
) -> None:
    key, url = f"{section.name}/{file.name}", file.url(settings.base_url)
    found = download(
        client,
        url,
        folder / key,
        settings,
        sha256=file.sha256 or pins.sha256(key),
        size_bytes=file.size_bytes,
        stop=stop,
        tell=lambda done, of: tell(key, done, of),
    )
    pins.pin(key, url=url, sha256=found.sha256, size_bytes=found.size_bytes, stated=file.sha256 is not None)
    if file.name == ARCHIVE:
        # What an older archive held must not stand beside the new one.
        shutil.rmtree(folder / section.name / "spatial", ignore_errors=True)


@contextmanager
def _workers(count: int) -> Iterator[tuple[Callable[[Callable[[], None]], None], threading.Event]]:
    """Threads that end with the block: told to stop, waited for shortly, and never in the way of Ctrl-C."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(work: Callable[[], None]) -> None:
        for _ in range(count):
            threads.append(threading.Thread(target=work, daemon=True))
            threads[-1].start()

    try:
        yield start, stop
    finally:
        stop.set()
        until = time.monotonic() + STOP_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def _wait(ended: queue.SimpleQueue[BaseException | None], count: int, limit_s: float | None) -> None:
    until = None if limit_s is None else time.monotonic() + limit_s
    for _ in range(count):
        error: BaseException | None
        while True:
            if until is not None and time.monotonic() > until:
                raise DownloadError(f"The download took longer than {limit_s:g} s; what has come is kept.")
            try:
                error = ended.get(timeout=0.2)
                break
            except queue.Empty:
                continue
        if isinstance(error, Stopped):
            continue
        if error is not None:
            raise error


def _unpack(section: Path) -> None:
    """`spatial.tar.gz` to `spatial/`, whole or not at all. Nothing in it can land outside."""
    target = section / "spatial"
    if target.is_dir() or not (section / ARCHIVE).is_file():
        return
    draft = Path(tempfile.mkdtemp(dir=section, prefix=".unpacking-"))
    try:
        with tarfile.open(section / ARCHIVE) as archive:
            archive.extractall(draft, filter="data")
        if not (draft / "spatial").is_dir():
            raise DownloadError(f"{section / ARCHIVE} holds no folder spatial/, so it is no archive of Space Ranger's.")
        (draft / "spatial").rename(target)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DownloadError(f"{section / ARCHIVE} cannot be unpacked: {error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def describe(error: HistolakeError) -> str:
    """An error as the reason of a choice: its first sentence."""
    return str(error).partition(". ")[0].rstrip(".")
