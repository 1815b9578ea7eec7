"""Processes of this machine, as /proc tells them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

__all__ = ["descendants"]


def descendants(pid: int) -> Iterator[tuple[int, str]]:
    """Process ids and command lines of all that a process has started, directly or not."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    waiting = list(parents.get(pid, []))
    while waiting:
        child = waiting.pop()
        waiting += parents.get(child, [])
        try:
            yield child, Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
