"""The KubeRay manifests: they hold together, and they name what is really here.

No package of the registries that we install from carries KubeRay's CRD schemas, so the manifests are checked against
the fields that we use (ray_io_v1_fields.json beside this file).
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from histolake.platform.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "infra" / "kuberay"
FIELDS = json.loads((Path(__file__).parent / "ray_io_v1_fields.json").read_text())
OVERLAYS = sorted(path.parent for path in KUBERAY.rglob("kustomization.yaml"))


def resources(folder: Path) -> list[dict[str, Any]]:
    """What kustomize would read for this folder: its resources, with its JSON patches applied."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[dict[str, Any]] = []
    for name in kustomization["resources"]:
        path = (folder / name).resolve()
        found += resources(path) if path.is_dir() else [d for d in yaml.safe_load_all(path.read_text()) if d]
    for patch in kustomization.get("patches", []):
        wanted = patch["target"]
        (target,) = [d for d in found if (d["kind"], d["metadata"]["name"]) == (wanted["kind"], wanted["name"])]
        for step in yaml.safe_load((folder / patch["path"]).read_text()):
            assert step["op"] == "add" and step["path"].endswith("/-"), "this reader knows appending to a list only"
            place: Any = target
            for key in step["path"].strip("/").split("/")[:-1]:
                place = place[key]
            place.append(step["value"])
    return found


def of_ray(folder: Path) -> list[dict[str, Any]]:
    return [document for document in resources(folder) if document["apiVersion"].startswith("ray.io/")]


def containers(node: Any) -> list[dict[str, Any]]:
    """Every container anywhere below a node."""
    if isinstance(node, dict):
        own = node.get("containers", [])
        return own + [c for key, value in node.items() if key != "containers" for c in containers(value)]
    if isinstance(node, list):
        return [c for value in node for c in containers(value)]
    return []


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_manifests_use_fields_that_kuberay_has(folder: Path) -> None:
    documents = of_ray(folder)
    assert documents
    for document in documents:
        jsonschema.validate(document, FIELDS)


def test_the_schema_refuses_a_misspelt_field() -> None:
    document = of_ray(KUBERAY / "base")[0]
    document["spec"]["workerGroups"] = document["spec"].pop("workerGroupSpecs")
    with pytest.raises(jsonschema.ValidationError, match="workerGroups"):
        jsonschema.validate(document, FIELDS)


def test_every_manifest_belongs_to_a_kustomization() -> None:
    named: set[Path] = set()
    for folder in OVERLAYS:
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        patches = [patch["path"] for patch in kustomization.get("patches", [])]
        named |= {(folder / name).resolve() for name in [*kustomization["resources"], *patches]}
        named.add(folder / "kustomization.yaml")
    assert set(KUBERAY.rglob("*.yaml")) <= named


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda path: path.name)
def test_the_image_of_every_container_is_set_by_the_kustomization(folder: Path) -> None:
    images = {entry["name"] for path in (folder, KUBERAY / "base") for entry in _images(path)}
    used = {container["image"] for document in of_ray(folder) for container in containers(document["spec"])}
    assert used and used <= images


def _images(folder: Path) -> list[dict[str, str]]:
    return yaml.safe_load((folder / "kustomization.yaml").read_text()).get("images", [])


def test_settings_in_the_config_map_exist() -> None:
    (config,) = [d for d in resources(KUBERAY / "base") if d["kind"] == "ConfigMap"]
    known = {setting.env for setting in load_settings().describe()}
    assert set(config["data"]) <= known


def test_keys_come_from_a_secret_and_are_nowhere_in_the_files() -> None:
    for folder in OVERLAYS:
        for document in of_ray(folder):
            for container in containers(document["spec"]):
                assert {"secretRef": {"name": "histolake-store"}} in container["envFrom"]
    text = "".join(path.read_text() for path in KUBERAY.rglob("*.yaml"))
    assert not re.search(r"(SECRET|ACCESS)_(ACCESS_)?KEY\w*\s*:", text)


def test_jobs_run_commands_that_the_command_line_has() -> None:
    commands = {entry.name for entry in entry_points(group="histolake.commands")}
    jobs = [d for folder in OVERLAYS for d in of_ray(folder) if d["kind"] == "RayJob"]
    called = {match for job in jobs for match in re.findall(r"histolake ([a-z]+) ", job["spec"]["entrypoint"])}
    assert called == {"ingest", "train"} and called <= commands


def test_jobs_use_options_that_their_commands_have() -> None:
    from typer.testing import CliRunner

    from histolake.platform.cli import app

    jobs = [d for folder in OVERLAYS for d in of_ray(folder) if d["kind"] == "RayJob"]
    for job in jobs:
        name, words = re.findall(r"histolake ([a-z]+) ([^|']*)", job["spec"]["entrypoint"])[0]
        described = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        used = [word for word in words.split() if word.startswith("--")]
        assert used and all(option in described for option in used), (name, used)


def test_jobs_select_the_cluster_that_the_base_makes() -> None:
    (cluster,) = of_ray(KUBERAY / "base")
    jobs = [d for folder in OVERLAYS for d in of_ray(folder) if d["kind"] == "RayJob"]
    assert len(jobs) == 2
    for job in jobs:
        assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}


def test_the_service_names_the_application_that_is_here() -> None:
    (service,) = [d for d in of_ray(KUBERAY / "overlays" / "serve") if d["kind"] == "RayService"]
    (application,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    assert callable(getattr(import_module(module), name))


def test_ray_is_the_version_that_is_tested() -> None:
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    for folder in OVERLAYS:
        for document in of_ray(folder):
            spec = document["spec"].get("rayClusterConfig", document["spec"])
            if document["kind"] != "RayJob":
                assert spec["rayVersion"] == pinned[1]
