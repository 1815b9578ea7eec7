"""What libraries raise on damaged files becomes a refusal of the section that they belong to."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from histolake.ingestion.discover import Candidate
from histolake.platform.errors import SourceError

__all__ = ["DATA_ERRORS", "as_refusal"]

# What libraries raise on damaged or missing files.
DATA_ERRORS = (OSError, ValueError, EOFError, zlib.error, struct.error)


@contextmanager
def as_refusal(candidate: Candidate) -> Iterator[None]:
    """Turn what libraries raise on damaged files into a refusal of the section."""
    try:
        yield
    except DATA_ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{candidate.uri} cannot be read: {type(error).__name__}: {said}", rule="unreadable", file=candidate.uri
        ) from error
