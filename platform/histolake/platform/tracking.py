"""MLflow: where runs are tracked and models registered, in one place.

By default that is a SQLite file in the working folder with the artifacts in a folder beside it; any MLflow server
does, by its URI. The rule for MLflow's own variable: a value of ours (flag, HISTOLAKE_TRACKING__URI, histolake.toml)
wins; where none is given, MLFLOW_TRACKING_URI is used if it is set; else the SQLite file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import ModelError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "TrackingSettings",
    "Trained",
    "connect",
    "ensure_experiment",
    "lineage",
    "mark_forgotten",
    "models_that_saw",
    "tracking_uri",
    "trained_on",
]

DEFAULT_URI = "sqlite:///histolake-mlflow.db"

# Tags of a run and of a model version that tie it to what it was learned from.
TAG_LAKE_URI = "histolake.lake_uri"
TAG_LAKE_VERSION = "histolake.lake_version"
TAG_SPLIT = "histolake.split"
TAG_FORGOTTEN = "histolake.forgotten"  # of a model version: how many of its slides were forgotten since, and when
TAG_WHERE = "histolake.where"  # the filter over the catalogue, where there was one
LINEAGE_FILE = "lineage.json"  # artifact of a run: slides with their sides, ingest_ids and sources


@dataclass(frozen=True, kw_only=True)
class TrackingSettings:
    """Where runs and models are kept."""

    uri: str = DEFAULT_URI  # an MLflow tracking URI: a SQLite file or a server
    artifacts: str = ""  # folder or URI for artifacts where the URI is a SQLite file; empty: NAME-artifacts beside it
    experiment: str = "histolake"  # MLflow experiment for runs
    model: str = "omiclip"  # registered model that new versions are added to


def tracking_uri(settings: TrackingSettings) -> str:
    """The URI that is used (see the rule above), with the path of a SQLite file made absolute."""
    uri = settings.uri
    if uri == DEFAULT_URI:
        uri = os.environ.get("MLFLOW_TRACKING_URI", uri)
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    return uri


def connect(settings: TrackingSettings) -> MlflowClient:
    """A client of the tracking server and registry; also makes both MLflow's defaults in this process."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own bars would stand between the lines of our progress.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import logging

    import mlflow

    for noisy in ("mlflow.store.db.utils", "alembic", "mlflow.tracking"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    uri = tracking_uri(settings)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def ensure_experiment(settings: TrackingSettings, client: MlflowClient) -> str:
    """The id of the experiment for runs, made where there is none."""
    found = client.get_experiment_by_name(settings.experiment)
    if found is not None:
        return str(found.experiment_id)
    return str(client.create_experiment(settings.experiment, artifact_location=_artifact_location(settings)))


def _artifact_location(settings: TrackingSettings) -> str | None:
    uri = tracking_uri(settings)
    if not uri.startswith("sqlite:///"):
        return settings.artifacts or None  # a server knows where its artifacts go
    file = Path(uri.removeprefix("sqlite:///"))
    place = settings.artifacts or str(file.with_name(f"{file.stem}-artifacts"))
    return place if "://" in place else Path(place).absolute().as_uri()


def models_that_saw(settings: TrackingSettings, lake_uri: str, slide_ids: Iterable[str]) -> list[str]:
    """Registered versions (`name/version (side)`) of whose split some of these slides of this lake were a part.

    Nothing is made where nothing is tracked. Needs no torch.
    """
    return sorted(
        f"{version.name}/{version.version} ({', '.join(sorted({slide['side'] for slide in slides}))})"
        for version, slides in _that_saw(settings, lake_uri, frozenset(slide_ids))
    )


def mark_forgotten(settings: TrackingSettings, lake_uri: str, slide_ids: Iterable[str], when: str) -> None:
    """Tag the registered versions that saw some of these slides with how many of them were forgotten, and when; the
    tag names no slide."""
    for version, slides in _that_saw(settings, lake_uri, frozenset(slide_ids)):
        said = [text for text in (version.tags.get(TAG_FORGOTTEN), f"{len(slides)} on {when[:10]}") if text]
        connect(settings).set_model_version_tag(version.name, version.version, TAG_FORGOTTEN, ", ".join(said))


def _that_saw(
    settings: TrackingSettings, lake_uri: str, slide_ids: frozenset[str]
) -> Iterator[tuple[ModelVersion, list[dict[str, Any]]]]:
    """Registered versions with the slides of their lineage that are among these."""
    uri = tracking_uri(settings)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return
    client = connect(settings)
    for version in _all(client.search_model_versions):
        if version.tags.get(TAG_LAKE_URI) == lake_uri and version.run_id:
            slides = [slide for slide in read_lineage(client, version.run_id) if slide["slide_id"] in slide_ids]
            if slides:
                yield version, slides


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A registered model version, and the lake version that it was trained on."""

    name: str  # NAME/VERSION
    lake_version: int


def trained_on(settings: TrackingSettings, lake_uri: str) -> list[Trained]:
    """The registered versions that were trained on a version of this lake, by name.

    Nothing is made where nothing is tracked. Needs no torch.
    """
    uri = tracking_uri(settings)
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        return []
    found = [
        Trained(name=f"{version.name}/{version.version}", lake_version=int(version.tags[TAG_LAKE_VERSION]))
        for version in _all(connect(settings).search_model_versions)
        if version.tags.get(TAG_LAKE_URI) == lake_uri and version.tags.get(TAG_LAKE_VERSION, "").isdigit()
    ]
    return sorted(found, key=lambda trained: trained.name)


def read_lineage(client: MlflowClient, run_id: str) -> list[dict[str, Any]]:
    """The slides of a run as its artifact `lineage.json` names them."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, LINEAGE_FILE, folder)
        slides: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return slides


def lineage(uri: str, settings: TrackingSettings) -> list[dict[str, Any]]:
    """The slides behind a model (NAME@ALIAS or NAME/VERSION, with or without models:/), one row each: lake and its
    version, side, study, patient, accession, source. Raises `ModelError`."""
    from mlflow.exceptions import MlflowException

    client = connect(settings)
    try:
        name, version = named_version(client, uri if uri.startswith("models:/") else f"models:/{uri}")
        found = client.get_model_version(name, version)
        slides = read_lineage(client, str(found.run_id))
    except MlflowException as error:
        raise ModelError(f"There is no model {uri} ({error.message}); `histolake models` lists them.") from error
    head = {
        "model": f"{name}/{version}",
        "run_id": found.run_id,
        "lake_uri": found.tags.get(TAG_LAKE_URI),
        "lake_version": number(found.tags.get(TAG_LAKE_VERSION)),
        "where": found.tags.get(TAG_WHERE),
    }
    return [head | slide for slide in slides]


def named_version(client: MlflowClient, uri: str) -> tuple[str, str]:
    """Name and version of a `models:/` URI; both empty for a run's."""
    if not uri.startswith("models:/"):
        return "", ""
    reference = uri.removeprefix("models:/")
    name, at, alias = reference.partition("@")
    if at:
        return name, str(client.get_model_version_by_alias(name, alias).version)
    name, slash, version = reference.rpartition("/")
    if not slash:
        raise ModelError(f"{uri} names no version; write models:/{reference}@ALIAS or models:/{reference}/VERSION.")
    return name, version


def number(text: str | None) -> int | None:
    """A tag that holds a whole number."""
    return int(text) if text is not None and text.isdigit() else None


def _all(search: Any) -> Iterable[Any]:
    """Every page of a search."""
    token = None
    while True:
        page = search(page_token=token) if token else search()
        yield from page
        token = page.token
        if not token:
            return
