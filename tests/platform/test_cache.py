"""The cache of this machine: what was used longest ago goes first, what is in use stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from histolake.platform.cache import cache_folder, drop, trim, use
from histolake.platform.storage import Location

DAY_S = 86_400.0


def test_the_oldest_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for days, (kind, name) in enumerate((("files", "c"), ("embedded", "b"), ("files", "a")), start=1):
        path = cache_folder(kind) / name
        path.write_bytes(bytes(400_000))
        os.utime(path, (time.time() - days * DAY_S,) * 2)
    assert use(cache_folder("files") / "a")  # the oldest until now
    assert trim(0.001) == 400_000
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a", "c"]
    assert trim(0.001) == 0
    assert trim(0.0) == 400_000
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["a"], "it was used a moment ago"
    assert trim(0.0, in_use_s=0.0) == 400_000
    assert not use(cache_folder("files") / "a")


def test_remote_files_are_kept_within_the_limit(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HISTOLAKE_STORE__CACHE_GB", "0.00015")
    copies = []
    for name in ("a", "b"):
        place = Location.parse(bucket).join(name)
        place.write_bytes(name.encode() * 100_000)
        copies.append(place.local_path())
        os.utime(copies[-1], (time.time() - DAY_S,) * 2)
    assert not copies[0].exists()
    assert copies[1].read_bytes() == b"b" * 100_000
    assert Location.parse(bucket).join("a").local_path().read_bytes() == b"a" * 100_000


def test_a_copy_is_dropped_by_its_place_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy, other = cache_folder("embedded") / "a.tif", tmp_path / "slide.tif"
    for path in (copy, other):
        path.write_bytes(bytes(10))
    assert [drop(str(copy)), drop(str(copy)), drop(str(other)), drop("s3://bucket/slide.tif")] == [10, 0, 0, 0]
    assert (copy.exists(), other.exists()) == (False, True)
