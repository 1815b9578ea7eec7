"""The image's recipe and the set-up script: same versions everywhere, no root, no registry address."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "infra" / "images" / "Dockerfile").read_text()
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())


def stages() -> dict[str, tuple[str, str]]:
    """Stage name -> (what it starts from, its body)."""
    found = re.findall(r"^FROM (\S+) AS (\w+)\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    return {name: (origin, body) for origin, name, body in found}


def test_constraints_are_exact_versions_only() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert PINS["torch"] == "2.13.0"


@pytest.mark.parametrize(
    "package", ["ray", "torch", "torchvision", "pylance", "deltalake", "mlflow", "numpy", "fastapi"]
)
def test_the_environment_under_test_is_the_pinned_one(package: str) -> None:
    try:
        here = version(package).split("+")[0]
    except PackageNotFoundError:
        pytest.fail(f"{package} is pinned but not installed")
    assert here == PINS[package]


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_both_targets_end_as_a_user_that_is_not_root(target: str) -> None:
    user, stage = "", target
    table = stages()
    while not user and stage in table:
        origin, body = table[stage]
        users = re.findall(r"^USER (\S+)", body, re.M)
        user, stage = (users[-1] if users else ""), origin
    assert user.split(":")[0].isdigit() and int(user.split(":")[0]) > 0


def test_the_image_installs_the_wheel_with_the_constraints() -> None:
    _, body = stages()["environment"]
    assert "--constraint /tmp/constraints.txt /wheel/histolake-*.whl" in body
    for pinned in ("torch", "torchvision"):
        assert re.search(rf"\b{pinned}\b", body), "torch's build is chosen first, by its pin"
    # Versions come from constraints.txt alone: none is written a second time.
    assert not re.search(r"[a-z]==\d", DOCKERFILE)


def test_the_image_holds_every_source_root() -> None:
    _, body = stages()["wheel"]
    pyproject = (ROOT / "pyproject.toml").read_text()
    parts = re.findall(r'"(\w+)/histolake"', pyproject.split("[tool.hatch.build.targets.wheel]")[1].split("\n\n")[0])
    assert parts
    for part in parts:
        assert f"COPY {part} {part}" in body
        assert f"!{part}" in (ROOT / "infra" / "images" / "Dockerfile.dockerignore").read_text()


def test_no_registry_address_is_written_in_any_set_up_file() -> None:
    names = [
        "Makefile",
        "constraints.txt",
        ".ci/run",
        "infra/environment.sh",
        "infra/images/Dockerfile",
        "pyproject.toml",
    ]
    for name in names:
        assert not re.search(r"https?://", (ROOT / name).read_text()), name


def test_the_set_up_script_says_so_when_no_python_fits(tmp_path: Path) -> None:
    import subprocess

    folder = tmp_path / "environment"
    done = subprocess.run(
        [ROOT / "infra" / "environment.sh", folder],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/no/such/python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 that runs was found" in done.stderr
    assert not folder.exists()
