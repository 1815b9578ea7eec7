"""Registered models: published to MLflow, found again by URI, listed, promoted, and traced to the slides they saw."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import ModelError
from histolake.platform.tracking import (
    TAG_FORGOTTEN,
    TAG_LAKE_URI,
    TAG_LAKE_VERSION,
    TAG_SPLIT,
    TAG_WHERE,
    TrackingSettings,
    connect,
    lineage,
    named_version,
    number,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["CHAMPION", "ResolvedModel", "lineage", "list_models", "promote", "register", "resolve_model"]

CHAMPION = "champion"
TAG_RECIPE = "histolake.recipe"
TAG_SIMULATED = "histolake.simulated"
TAG_VALIDATION_MARK = "histolake.validation_mark"  # what has to be said beside the validation figures
FIGURE_PREFIX = "validation_"


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model folder on this machine, and the registered name and version it came from (empty for a plain folder)."""

    path: Path
    name: str
    version: str
    uri: str


def register(
    client: MlflowClient,
    folder: Path,
    description: str,
    *,
    run_id: str,
    name: str,
    tags: Mapping[str, str],
    aliases: tuple[str, ...],
) -> str:
    """Log a model folder to a run as an MLflow model with a signature and an example, register it with a description,
    set aliases; gives the version."""
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "image", required=False), ColSpec("string", "sentence", required=False)]),
        outputs=Schema([ColSpec(Array(DataType.double), "vector")]),
    )
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*type hint.*")
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"model": str(folder)},
            signature=signature,
            input_example=_example(),
            pip_requirements=["histolake"],
        )
    if not _registered(client, name):
        client.create_registered_model(name)
    version = client.create_model_version(
        name=name,
        source=logged.model_uri,
        run_id=run_id,
        tags=dict(tags),
        model_id=logged.model_id,
        description=description,
    ).version
    for alias in aliases:
        client.set_registered_model_alias(name, alias, version)
    return str(version)


def _example() -> Any:
    """A picture as MLflow's generic face takes it; every model reads one."""
    import base64

    import numpy as np
    import pandas as pd
    import simplejpeg

    grey = np.full((32, 32, 3), 200, dtype=np.uint8)
    return pd.DataFrame({"image": [base64.b64encode(simplejpeg.encode_jpeg(grey)).decode()]})


def promote(settings: TrackingSettings, name: str, version: str | int, alias: str = CHAMPION) -> None:
    """Let an alias point at a version, taking it from the version that had it."""
    from mlflow.exceptions import MlflowException

    try:
        connect(settings).set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        raise ModelError(f"{name}/{version} cannot be promoted to {alias!r}: {error.message}") from error


def resolve_model(uri: str, settings: TrackingSettings) -> ResolvedModel:
    """The model folder behind `models:/name@alias`, `models:/name/3`, `runs:/<id>/model` or a folder's path.

    Raises `ModelError` if there is none.
    """
    if not uri.startswith(("models:/", "runs:/")):
        path = Path(uri.removeprefix("file://"))
        if not (path / "model.json").is_file():
            raise ModelError(f"{uri} is neither a model folder nor models:/NAME@ALIAS; `histolake models` lists them.")
        return ResolvedModel(path=path, name=path.name, version="", uri=uri)
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client = connect(settings)
    try:
        name, version = named_version(client, uri)
        pinned = f"models:/{name}/{version}" if name else uri
        root = Path(download_artifacts(artifact_uri=pinned))
    except MlflowException as error:
        raise ModelError(f"There is no model {uri} ({error.message}); `histolake models` lists them.") from error
    found = sorted(root.rglob("model.json"))
    if not found:
        raise ModelError(f"{uri} was not made by histolake: it holds no model.json.")
    return ResolvedModel(path=found[0].parent, name=name, version=version, uri=pinned)


def list_models(settings: TrackingSettings) -> list[dict[str, Any]]:
    """Every version of every model of ours, one flat row each, newest last."""
    client = connect(settings)
    rows = []
    for registered in _pages(client.search_registered_models):
        aliases: dict[str, list[str]] = {}
        for alias, version in registered.aliases.items():
            aliases.setdefault(str(version), []).append(alias)
        for version in _pages(client.search_model_versions, filter_string=f"name='{registered.name}'"):
            rows.append(_row(client, version, sorted(aliases.get(str(version.version), []))))
    return sorted(rows, key=lambda row: (row["name"], row["version"]))


def write_json(client: MlflowClient, run_id: str, name: str, content: Any) -> None:
    """Add a JSON file to a run's artifacts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        client.log_artifact(run_id, str(path))


def _row(client: MlflowClient, version: Any, aliases: list[str]) -> dict[str, Any]:
    metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    row = {
        "name": version.name,
        "version": int(version.version),
        "aliases": ",".join(aliases),
        "recipe": version.tags.get(TAG_RECIPE),
        "lake_uri": version.tags.get(TAG_LAKE_URI),
        "lake_version": number(version.tags.get(TAG_LAKE_VERSION)),
        "where": version.tags.get(TAG_WHERE),
        "validation_mark": version.tags.get(TAG_VALIDATION_MARK, ""),
        "simulated": version.tags.get(TAG_SIMULATED) == "true",
        "forgotten": version.tags.get(TAG_FORGOTTEN),
        "run_id": version.run_id,
    }
    return row | {key: value for key, value in sorted(metrics.items()) if key.startswith(FIGURE_PREFIX)}


def _registered(client: MlflowClient, name: str) -> bool:
    return any(found.name == name for found in _pages(client.search_registered_models, filter_string=f"name='{name}'"))


def _pages(search: Any, **what: Any) -> Any:
    token = None
    while True:
        page = search(**what, page_token=token) if token else search(**what)
        yield from page
        token = page.token
        if not token:
            return


def model_tags(
    *,
    recipe: str,
    lake_uri: str,
    lake_version: int,
    split: Mapping[str, Any],
    simulated: bool,
    where: str | None = None,
    validation_mark: str = "",
) -> dict[str, str]:
    """The tags that tie a run and its model version to what they were learned from."""
    return {
        TAG_RECIPE: recipe,
        TAG_LAKE_URI: lake_uri,
        TAG_LAKE_VERSION: str(lake_version),
        TAG_SPLIT: json.dumps(split),
        TAG_SIMULATED: str(simulated).lower(),
        **({} if where is None else {TAG_WHERE: where}),
        **({TAG_VALIDATION_MARK: validation_mark} if validation_mark else {}),
    }
