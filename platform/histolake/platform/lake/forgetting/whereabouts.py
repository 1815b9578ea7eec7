"""What became of the slides that a model was trained on, as far as it can be told from here."""

from __future__ import annotations

from collections.abc import Callable

from deltalake.exceptions import DeltaError

from histolake.platform.errors import HistolakeError, VersionError
from histolake.platform.lake.lake import Lake

__all__ = ["became"]


def became(lake_uri: str | None, version: int | str | None) -> Callable[[str], str | None]:
    """From an `ingest_id` that a version of a lake had to "in the lake", "forgotten" or "expired"; to None where the
    lake cannot be opened.

    The catalogue names every ingest that was not removed for good. A version that is kept loses slides by forgetting
    alone; of one that was expired, what is gone may be either.
    """
    try:
        lake = Lake.open(lake_uri or "")
        known = set(lake.catalog.slides(["ingest_id"])["ingest_id"].to_pylist())
    except (HistolakeError, DeltaError, OSError):  # another machine's path, or no credentials here
        return lambda ingest_id: None
    try:
        lake.resolve(version)
        gone = "forgotten"
    except VersionError:
        gone = "expired"
    return lambda ingest_id: "in the lake" if ingest_id in known else gone
