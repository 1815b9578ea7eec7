"""The house: packaging that never shadows `platform`, arrows of one direction, faces that import, a quick CLI."""

from __future__ import annotations

import ast
import importlib
import os
import pkgutil
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("platform", "ingestion", "training", "serving")
LONGEST_FILE = 600
HELP_S = 1.0


def sources() -> list[Path]:
    return [path for part in PARTS for path in sorted((ROOT / part / "histolake").rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_no_package_file_shadows_the_standard_library() -> None:
    forbidden = [ROOT / "platform" / "__init__.py"]
    forbidden += [ROOT / part / "histolake" / "__init__.py" for part in PARTS]
    forbidden += list((ROOT / "tests").rglob("__init__.py"))
    assert [path for path in forbidden if path.exists()] == []
    standard = [path for path in sources() if path.stem in sys.stdlib_module_names and path.parent.name not in PARTS]
    assert standard == [], "a module is named like one of the standard library"
    assert all((ROOT / part / "histolake" / part / "py.typed").exists() for part in PARTS)


@pytest.mark.parametrize("folder", [".", *PARTS, "tests/platform"])
def test_import_platform_finds_the_standard_library(folder: str) -> None:
    code = "import platform, sys; platform.system(); print(platform.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / folder, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).name == "platform.py"


def test_arrows_run_one_way() -> None:
    wrong = []
    for path in sources():
        part = path.relative_to(ROOT).parts[0]
        later = PARTS[PARTS.index(part) + 1 :]
        wrong += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in imports(path)
            if any(name == f"histolake.{other}" or name.startswith(f"histolake.{other}.") for other in later)
        ]
    assert wrong == []


def test_files_are_small_rooms() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources()}
    assert {path: lines for path, lines in long.items() if lines > LONGEST_FILE} == {}


@pytest.mark.parametrize("part", PARTS)
def test_faces_import_and_are_sorted(part: str) -> None:
    package = importlib.import_module(f"histolake.{part}")
    modules = [package.__name__]
    modules += [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if found.ispkg]
    for name in modules:
        module = importlib.import_module(name)
        assert module.__all__ == sorted(module.__all__), name
        for member in module.__all__:
            assert getattr(module, member) is not None, f"{name}.{member}"


def test_importing_the_faces_is_light() -> None:
    heavy = ("torch", "ray", "lance", "mlflow", "pyvips", "scanpy", "matplotlib", "open_clip", "pandas", "faiss")
    code = f"import sys; {'; '.join(f'import histolake.{part}' for part in PARTS)}; import histolake.platform.cli;"
    code += f" print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_help_answers_within_a_second_and_lists_every_command() -> None:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "histolake.platform", "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        )
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < HELP_S, seconds
    names = {entry.name for entry in entry_points(group="histolake.commands") if "." not in entry.name}
    assert {name for name in names if name not in done.stdout} == set()


def test_a_group_lists_its_own_commands_and_those_of_other_parts(tmp_path: Path) -> None:
    (tmp_path / "plug.py").write_text('def mend() -> None:\n    """Mend what is broken."""\n    print("mended")\n')
    entries = tmp_path / "plug-1.0.dist-info"
    entries.mkdir()
    (entries / "METADATA").write_text("Metadata-Version: 2.1\nName: plug\nVersion: 1.0\n")
    (entries / "entry_points.txt").write_text("[histolake.commands]\nlake.mend = plug:mend\n")

    def run(*words: str) -> str:
        command = [sys.executable, "-m", "histolake.platform", *words]
        with_plug = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=with_plug, capture_output=True, text=True, check=True, cwd=ROOT).stdout

    listed = run("lake", "--help")
    places = [listed.index(f" {name} ") for name in ("slides", "history", "check", "mend")]
    assert places == sorted(places)
    assert "Mend what is broken" in listed and "mend" not in run("--help")
    assert run("lake", "mend") == "mended\n"


def test_every_command_teaches() -> None:
    for entry in entry_points(group="histolake.commands"):
        done = subprocess.run(
            [sys.executable, "-m", "histolake.platform", *entry.name.split("."), "--help"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, f"{entry.name}: {done.stderr}"
        assert len(done.stdout.split()) > 20, f"{entry.name} says too little"


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "histolake.platform", "lake", "slides", "--lake", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: There is no lake at ")
    shown = subprocess.run([*command, "--debug"], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" in shown.stderr and "LakeNotFoundError" in shown.stderr


def test_nothing_of_one_machine_is_written_down() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.strip()]
    assert all("==" in line and "/" not in line and " " not in line for line in pinned)
    large = [name for name in tracked if (ROOT / name).exists() and (ROOT / name).stat().st_size > 2_000_000]
    assert large == []
