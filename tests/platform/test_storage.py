"""Locations on disk: parsing, atomic writes, create-if-absent."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from histolake.platform.errors import LocationError
from histolake.platform.storage import Location


def test_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.parse("a/b").uri == str(tmp_path / "a" / "b")
    assert Location.parse(f"file://{tmp_path}/with%20space").uri == f"{tmp_path}/with space"
    assert Location.parse("s3://bucket/x/").join("y", "z.tar.GZ").uri == "s3://bucket/x/y/z.tar.GZ"
    assert Location.parse("s3://bucket/x/y.JPG").suffix == ".jpg"
    for wrong in ("http://host/x", "s3:///x", ""):
        with pytest.raises(LocationError):
            Location.parse(wrong)


def test_files(tmp_path: Path) -> None:
    place = Location.parse(tmp_path / "deep" / "er" / "file.bin")
    assert not place.exists()
    place.write_bytes(b"one")
    place.write_bytes(b"two")
    assert place.read_bytes() == b"two" and place.local_path() == Path(place.uri)
    assert [entry.location.name for entry in Location.parse(tmp_path).entries()] == ["file.bin"], (
        "no part files are left"
    )
    Location.parse(tmp_path / "deep").delete()
    assert not place.exists()
    Location.parse(tmp_path / "deep").delete()
    assert list(Location.parse(tmp_path / "nowhere").entries()) == []


def test_create_has_one_winner(tmp_path: Path) -> None:
    place, wins = Location.parse(tmp_path / "seal"), []
    start = threading.Barrier(8)

    def race(number: int) -> None:
        start.wait()
        if place.create(str(number).encode()):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1 and place.read_bytes() == str(wins[0]).encode()
