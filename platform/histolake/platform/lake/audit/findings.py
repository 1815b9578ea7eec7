"""What an audit finds: flat rows that say what is wrong and what to do about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["AGAIN", "COMPACT", "REPORT", "VACUUM", "Finding", "Tell"]

# What to do.
VACUUM = "`histolake lake vacuum` removes it"
AGAIN = "restore the file from a backup, or `histolake lake retile` the slide from its source"
REPORT = "a writer did what it must not: keep a copy of the lake and report it; `histolake lake retile` mends the slide"

COMPACT = "readers find them; `histolake lake compact` enters them"

Tell = Callable[[str, int, int], None]  # what is looked at, how many are done, of how many


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. `severity` is "error" (data are missing or wrong) or "waste" (something
    that only takes room)."""

    severity: str
    slide_id: str | None
    ingest_id: str
    finding: str
    fix: str = VACUUM
