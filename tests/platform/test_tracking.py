"""Where runs go: the rule of precedence, the artifacts' place, and a registry that is not there yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from histolake.platform.tracking import TrackingSettings, connect, ensure_experiment, models_that_saw, tracking_uri


def test_a_given_uri_beats_mlflows_variable_which_beats_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(TrackingSettings()) == f"sqlite:///{tmp_path}/histolake-mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(TrackingSettings()) == "http://tracking:5000"
    assert tracking_uri(TrackingSettings(uri="sqlite:////runs.db")) == "sqlite:////runs.db"


def test_artifacts_lie_beside_the_sqlite_file_and_the_experiment_is_made_once(tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/deep/runs.db", experiment="e")
    client = connect(settings)
    made = ensure_experiment(settings, client)
    assert ensure_experiment(settings, client) == made
    assert client.get_experiment(made).artifact_location == (tmp_path / "deep" / "runs-artifacts").as_uri()


def test_nothing_saw_a_slide_where_nothing_is_tracked_and_nothing_is_made(tmp_path: Path) -> None:
    settings = TrackingSettings(uri=f"sqlite:///{tmp_path}/runs.db")
    assert models_that_saw(settings, "/lake", ["c/A"]) == []
    assert list(tmp_path.iterdir()) == []
    connect(settings)
    assert models_that_saw(settings, "/lake", ["c/A"]) == []


def test_tracking_needs_neither_torch_nor_mlflow_to_be_imported() -> None:
    code = "import sys, histolake.platform.tracking; print({'torch', 'mlflow', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
