"""MLflow: where runs are tracked and models registered."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TrackingSettings"]


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where runs and models are kept."""

    uri: str = "sqlite:///histolake-mlflow.db"  # an MLflow tracking URI: a SQLite file or a server
    artifacts: str = "histolake-mlflow"  # folder or URI for artifacts where the URI is a SQLite file
    experiment: str = "histolake"  # MLflow experiment for runs
