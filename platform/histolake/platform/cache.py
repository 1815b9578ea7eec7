"""The cache of this machine: copies of remote files, and images taken out of other files.

It lies in `$XDG_CACHE_HOME/histolake` (`~/.cache/histolake`). Whatever is in it can be made again, so it is kept within
a size (`store.cache_gb`): what was used longest ago goes first. A copy that was used within `IN_USE_S` stays whatever
the size is, for some worker may still read it; so a cache that is too small for the work at hand grows, and shrinks
after.
"""

from __future__ import annotations

import glob
import os
import time
from pathlib import Path

__all__ = ["cache_folder", "copies", "drop", "trim", "use"]

IN_USE_S = 1800.0


def cache_folder(kind: str, *, make: bool = True) -> Path:
    """The folder of one kind of copies; made if it is not there."""
    root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    folder = root / "histolake" / kind
    if make:
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def use(path: Path) -> bool:
    """Whether a copy is there; it counts as used now."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def drop(uri: str) -> int:
    """Remove a copy by its place, because what it shows is to be forgotten; returns the bytes freed, 0 where the place
    is not in this machine's cache or nothing is there."""
    path = Path(uri)
    if path.parent.parent != cache_folder("files").parent or not path.is_file():
        return 0
    size = path.stat().st_size
    path.unlink(missing_ok=True)
    return size


def copies(uri: str) -> list[Path]:
    """The copies on this machine of a file: itself, where it lies in the cache, or those of a remote file by its
    name."""
    path = Path(uri)
    if "://" in uri:
        return sorted(cache_folder("files").glob(f"*-{glob.escape(path.name)}"))
    return [path] if path.parent.parent == cache_folder("files").parent and path.is_file() else []


def trim(limit_gb: float, *, in_use_s: float = IN_USE_S) -> int:
    """Remove the copies used longest ago until the cache holds at most `limit_gb`; returns the bytes freed."""
    root = cache_folder("files").parent
    held = []
    for path in root.glob("*/*"):
        try:
            state = path.stat()
        except FileNotFoundError:  # another process trims too
            continue
        if path.is_file():
            held.append((state.st_mtime, state.st_size, path))
    excess = sum(size for _, size, _ in held) - limit_gb * 1e9
    freed = 0
    for used_s, size, path in sorted(held):
        if freed >= excess or time.time() - used_s < in_use_s:
            break
        path.unlink(missing_ok=True)
        freed += size
    return freed
