"""What a run leaves in MLflow: the figures of its steps, the pairs of each side as a dataset, and what it ran on.

A dataset is named by what decides which pairs are read, and nothing else: lake, version, filter, split, side.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from histolake.platform.splits import Selection, Split

__all__ = ["PACKAGES_FILE", "code_commit", "log_dataset", "log_steps", "package_versions"]

PACKAGES_FILE = "packages.json"
PACKAGES = (
    "histolake",
    "ray",
    "torch",
    "torchvision",
    "open_clip_torch",
    "timm",
    "numpy",
    "pyarrow",
    "pylance",
    "deltalake",
)
CONTEXT = {"train": "training", "validation": "validation", "test": "testing"}  # MLflow's words for the sides
DIGEST_CHARS = 12
METRICS_A_CALL = 1000  # as many as MLflow takes


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run gives, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_commit() -> str | None:
    """The commit of the checkout that runs, with `-dirty` where its files were changed since; None for a package that
    was installed."""
    here = Path(__file__)
    ours = ["ls-files", "--error-unmatch", here.name]  # and not of somebody's repository around an installed package
    named = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        for command in (ours, named):
            done = subprocess.run(["git", "-C", str(here.parent), *command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def log_dataset(
    client: MlflowClient, run_id: str, pairs: Selection, side: str, *, split: Split, where: str | None
) -> None:
    """The pairs of a side as an input of the run."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    snapshot = pairs.snapshot
    source: dict[str, Any] = {
        "lake": snapshot.lake.uri,
        "version": snapshot.version,
        "where": where,
        "split": split.to_dict(),
        "side": side,
    }
    dataset = Dataset(
        name=f"{snapshot.lake.root.name} version {snapshot.version}: {side}",
        digest=hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:DIGEST_CHARS],
        source_type="histolake",
        source=json.dumps(source),
        profile=json.dumps({"pairs": pairs.n_pairs, "slides": len(pairs.slide_ids)}),
    )
    tag = InputTag(key="mlflow.data.context", value=CONTEXT[side])
    client.log_inputs(run_id, [DatasetInput(dataset=dataset, tags=[tag])])


def log_steps(client: MlflowClient, run_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """All figures of some steps in as few calls as MLflow takes."""
    from mlflow.entities import Metric

    now_ms = int(time.time() * 1000)
    metrics = [
        Metric(key, float(value), now_ms, int(row["step"]))
        for row in rows
        for key, value in row.items()
        if key != "step"
    ]
    for start in range(0, len(metrics), METRICS_A_CALL):
        client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])
