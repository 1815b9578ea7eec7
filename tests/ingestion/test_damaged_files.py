"""Files of every format damaged, one at a time: the section is refused with a reason, or comes in without the file."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.ingestion.every_format import FOLDERS, write_every_format

from histolake.ingestion import pipeline
from histolake.ingestion.discover import find_sections
from histolake.ingestion.worker import look
from histolake.platform.errors import SourceError
from histolake.platform.settings import load_settings

FILES_A_FORMAT = 16  # of the many small files of a store
DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda data, rng: data[: rng.randrange(len(data))],
    "garbage": lambda data, rng: rng.randbytes(200),
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, make_section: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    write_every_format(folder, make_section)
    shutil.rmtree(folder / "broken")
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_damaged_file_is_told(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rng = random.Random(name)
    settings = pipeline.ingest_settings(load_settings({"quality.min_spots": 10}))
    files = [path for path in sorted((good / name).rglob("*")) if path.is_file() and path.stat().st_size]
    refused = 0
    for path in rng.sample(files, min(len(files), FILES_A_FORMAT)):
        for damage in DAMAGE.values():
            copy = tmp_path / "copy"
            shutil.copytree(good / name, copy / name)
            (copy / path.relative_to(good)).write_bytes(damage(path.read_bytes(), rng))
            for candidate in find_sections([str(copy)], "c"):
                try:
                    look(candidate, None, settings)
                except SourceError as problem:
                    refused += 1
                    assert problem.rule not in ("reader_failed", "unreadable"), f"{path.relative_to(good)}: {problem}"
                    assert problem.file and str(copy) in problem.file, path
            shutil.rmtree(copy)
    assert refused, "no damage was noticed"
