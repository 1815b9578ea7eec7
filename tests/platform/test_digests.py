"""A digest is taken again if, and only if, something may have changed."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from histolake.platform import digests
from histolake.platform.digests import content_digest, stamp
from histolake.platform.storage import Location

BEFORE_NS = 1_700_000_000_000_000_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "histolake" / "digests"


@pytest.fixture
def at_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files need not lie still for seconds."""
    monkeypatch.setattr(digests, "AT_REST_S", -1.0)


def entries(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def spoil(cache: Path) -> bytes:
    """Make every entry say something else, by which one knows whether it was asked."""
    other = hashlib.sha256(b"from the cache").digest()
    for entry in entries(cache):
        entry.write_text(other.hex())
    return other


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, cache: Path, at_rest: None) -> None:
    file = tmp_path / "counts.h5"
    file.write_bytes(b"counts")
    assert content_digest(Location.parse(file)) == hashlib.sha256(b"counts").digest()
    assert len(entries(cache)) == 1
    known = spoil(cache)
    assert content_digest(Location.parse(file)) == known
    assert content_digest(Location.parse(file), rehash=True) == hashlib.sha256(b"counts").digest()
    assert content_digest(Location.parse(file)) == hashlib.sha256(b"counts").digest(), "rehash mends the entry"


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b"COUNTS"),  # as long as before
        lambda file: (file.write_bytes(b"COUNTS"), os.utime(file, ns=(0, BEFORE_NS))),  # and as old
        lambda file: (file.with_name("new").write_bytes(b"COUNTS"), file.with_name("new").replace(file)),
        lambda file: os.utime(file, ns=(0, BEFORE_NS + 1)),
    ],
)
def test_a_changed_file_is_read_again(
    tmp_path: Path, cache: Path, at_rest: None, change: Callable[[Path], object]
) -> None:
    file = tmp_path / "counts.h5"
    file.write_bytes(b"counts")
    os.utime(file, ns=(0, BEFORE_NS))
    content_digest(Location.parse(file))
    spoil(cache)
    time.sleep(0.02)  # a tick of the disk's clock
    change(file)
    assert content_digest(Location.parse(file)) == hashlib.sha256(file.read_bytes()).digest()


def test_a_file_that_was_just_written_is_not_kept(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "counts.h5"
    file.write_bytes(b"counts")
    assert content_digest(Location.parse(file)) == hashlib.sha256(b"counts").digest()
    assert entries(cache) == []


def test_a_file_that_changes_while_it_is_read_is_not_kept(tmp_path: Path, cache: Path, at_rest: None) -> None:
    file = tmp_path / "big.tif"
    file.write_bytes(bytes(64 << 20))
    stop = threading.Event()

    def touch() -> None:
        while not stop.is_set():
            os.utime(file)
            time.sleep(0.001)

    writer = threading.Thread(target=touch)
    writer.start()
    try:
        content_digest(Location.parse(file))
    finally:
        stop.set()
        writer.join()
    assert entries(cache) == []


def test_a_folder_is_all_its_files(tmp_path: Path, cache: Path, at_rest: None) -> None:
    folder = tmp_path / "store.zarr"
    (folder / "c").mkdir(parents=True)
    (folder / "c" / "0").write_bytes(b"chunk")
    (folder / "zarr.json").write_bytes(b"{}")
    first = content_digest(Location.parse(folder))
    assert len(entries(cache)) == 1
    known = spoil(cache)
    assert content_digest(Location.parse(folder)) == known
    (folder / "c" / "1").write_bytes(b"another")
    second = content_digest(Location.parse(folder))
    assert second not in (first, known)
    (folder / "c" / "1").unlink()
    assert content_digest(Location.parse(folder), rehash=True) == first
    with pytest.raises(FileNotFoundError):
        content_digest(Location.parse(tmp_path / "nothing"))


def test_a_broken_or_locked_cache_costs_time_only(tmp_path: Path, cache: Path, at_rest: None) -> None:
    file = tmp_path / "counts.h5"
    file.write_bytes(b"counts")
    cache.parent.mkdir(parents=True)
    cache.write_bytes(b"a file where the folder should be")
    assert content_digest(Location.parse(file)) == hashlib.sha256(b"counts").digest()
    cache.unlink()
    content_digest(Location.parse(file))
    (entry,) = entries(cache)
    entry.write_text("half an ent")
    assert content_digest(Location.parse(file)) == hashlib.sha256(b"counts").digest()


def test_the_cache_is_bounded(tmp_path: Path, cache: Path, at_rest: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST_IN_SHELF", 3)
    file = tmp_path / "counts.h5"
    for n in range(1100):
        file.write_bytes(bytes(n))
        content_digest(Location.parse(file))
    assert all(len(list(shelf.iterdir())) <= 3 for shelf in cache.iterdir())
    known = spoil(cache)
    assert content_digest(Location.parse(file)) == known, "the newest is kept"


def test_on_s3_an_unchanged_object_is_asked_for_and_not_fetched(
    bucket: str, cache: Path, at_rest: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location.parse(bucket).join("cohort", "image.tif")
    place.write_bytes(b"picture")
    place.parent().join("image.tif.bak").write_bytes(b"another file of nearly this name")
    assert stamp(place).age_s < 60
    assert content_digest(place) == hashlib.sha256(b"picture").digest()
    known = spoil(cache)
    assert content_digest(place) == known
    place.write_bytes(b"PICTURE")
    assert content_digest(place) == hashlib.sha256(b"PICTURE").digest()
    folder = content_digest(place.parent())
    known = spoil(cache)
    assert content_digest(place.parent()) == known
    place.parent().join("more").write_bytes(b"1")
    assert content_digest(place.parent()) not in (folder, known)
    with pytest.raises(FileNotFoundError):
        stamp(Location.parse(bucket).join("nothing"))
