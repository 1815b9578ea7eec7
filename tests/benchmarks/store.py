"""What a benchmark has written, in a store of its own on loopback."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests import object_store

from histolake.platform.storage import Location

__all__ = ["uploaded"]


def uploaded(stack: ExitStack, work: Path, names: Sequence[str]) -> Location:
    """Files and folders of `work`, byte by byte in a new bucket, which is given. The store runs as long as the stack is
    open, and the standard variables of this process and of those that it starts name it."""
    folder = work / "store"
    folder.mkdir()
    os.environ.update(object_store.environment(stack.enter_context(object_store.running_store(folder))))
    bucket = Location.parse(object_store.new_bucket())
    wanted = [
        path for name in names for path in ((work / name).rglob("*") if (work / name).is_dir() else [work / name])
    ]
    client, name = bucket.s3_client(), bucket.uri.removeprefix("s3://")

    def upload(path: Path) -> None:
        client.upload_file(str(path), name, path.relative_to(work).as_posix())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, (path for path in wanted if path.is_file())))
    return bucket
