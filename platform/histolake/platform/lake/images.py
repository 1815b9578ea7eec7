"""Pictures of the lake's slides: `images/<ingest_id>.jpg`, an overview of every section whose image could be opened,
and `images/<ingest_id>.tif`, a tiled pyramid of those whose source cannot be read in parts.

Files are named by the attempt that wrote them, like fragments, and belong to it: vacuum drops those that no version
names and no lease holds, forgetting takes a slide's with it. Whatever comes before the first dot is the attempt, so
that a file half written when its writer died is found too.
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from histolake.platform.errors import StoreError
from histolake.platform.storage import Entry, Location

__all__ = ["LakeImages"]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def _of_the_store(place: Location, only: Collection[int] = ()) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if only and error.errno not in only:
            raise
        raise StoreError(f"{place} could not be written: {error}. Set that right and run again.") from error


class LakeImages:
    """The folder `images/` of one lake."""

    def __init__(self, root: Location) -> None:
        self._folder = root.join("images")

    def picture(self, ingest_id: str) -> Location:
        """Where the overview of an ingest is: a JPEG, its longest side 1,024 px unless the settings say otherwise."""
        return self._folder.join(f"{ingest_id}.jpg")

    def pyramid(self, ingest_id: str) -> Location:
        """Where the tiled pyramid of an ingest is: equal to the source's image in every pixel. Most have none."""
        return self._folder.join(f"{ingest_id}.tif")

    def write(self, place: Location, make: Callable[[Path], None]) -> None:
        """Let `make` write a file on this machine that then appears at `place`, whole or not at all.

        Raises `StoreError` where the lake does not take it, for that is no fault of the section's.
        """
        if place.is_remote:
            with tempfile.TemporaryDirectory(prefix="histolake-") as folder:
                made = Path(folder) / place.name
                make(made)
                with _of_the_store(place):
                    place.upload(made)
            return
        part = Path(f"{place.uri}.part")
        with _of_the_store(place):
            part.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
        try:
            with _of_the_store(place, only=FULL):
                make(part)
            with _of_the_store(place):
                part.replace(place.uri)
        finally:
            part.unlink(missing_ok=True)

    def files(self) -> dict[str, list[Entry]]:
        """The files there are, by the attempt that wrote them."""
        found: dict[str, list[Entry]] = {}
        for entry in self._folder.entries():
            found.setdefault(entry.location.name.partition(".")[0], []).append(entry)
        return found

    def drop(self, files: Iterable[Entry]) -> int:
        """Remove files; returns their bytes."""
        freed = 0
        for entry in files:
            entry.location.delete()
            freed += entry.size_bytes
        return freed
