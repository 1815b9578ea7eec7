"""What a run leaves in MLflow beside its figures: the pairs of each side as a dataset, and what it ran on.

A dataset is named by what decides which pairs are read, and nothing else: lake, version, filter, split, side.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from histolake.platform.splits import Selection, Split

__all__ = ["PACKAGES_FILE", "log_dataset", "package_versions"]

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


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide what a run gives, of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
