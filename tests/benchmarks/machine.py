"""On what a figure was measured: processor, memory, versions. No path, no name of a machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

__all__ = ["commit", "description"]

LIBRARIES = ("ray", "pylance", "deltalake", "pyarrow", "simplejpeg", "imagecodecs", "numpy", "torch", "webdataset")


def description() -> str:
    """One line on the machine and the libraries."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    cores, system = len(os.sched_getaffinity(0)), f"{platform.system()} {platform.machine()}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{cores} cores of {_processor()}, {memory:.0f} GiB, {system}, Python {platform.python_version()}, {libraries}"
    )


def _processor() -> str:
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    return " and ".join(sorted(names)) or platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the working tree, with a mark where it is changed; "unknown" outside a repository."""
    told = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return told.stdout.strip() or "unknown"
