"""`cohort.json`: which sections make up a cohort and where they lie, with a metadata table beside it.

`histolake sample` writes one, `histolake ingest` takes it. Paths in it are absolute, or below the folder that it lies
in.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import Any, Literal

from histolake.ingestion.readers.beside import place_of
from histolake.platform.errors import UsageError
from histolake.platform.storage import Location

__all__ = ["COHORT_FILE", "Chosen", "read_cohort", "write_cohort"]

COHORT_FILE = "cohort.json"
METADATA_FILE = "metadata.csv"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """The cohort that was chosen."""

    name: str
    data: Literal["real", "simulated"]
    why: str
    sections: dict[str, str]  # section -> path, absolute or below the folder of the cohort's file
    metadata: dict[str, dict[str, str]]  # section -> what is known
    left_aside: tuple[str, ...]
    file: str

    def rows(self) -> list[dict[str, Any]]:
        """One flat object a section, for `--json`."""
        about = {"cohort": self.name, "data": self.data, "why": self.why, "file": self.file}
        return [{**about, "section": s, "path": path, **self.metadata.get(s, {})} for s, path in self.sections.items()]


def write_cohort(chosen: Chosen, target: Location) -> None:
    """Write the cohort's file, and its metadata table where anything is known, into a folder."""
    content = {
        "format": "histolake-cohort",
        "format_version": FORMAT,
        "name": chosen.name,
        "data": chosen.data,
        "why": chosen.why,
        "left_aside": list(chosen.left_aside),
        "metadata": METADATA_FILE if chosen.metadata else None,
        "sections": [{"section": section, "path": path} for section, path in chosen.sections.items()],
    }
    if chosen.metadata:
        columns = ["section", *dict.fromkeys(name for row in chosen.metadata.values() for name in row)]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({"section": section, **row} for section, row in chosen.metadata.items())
        target.join(METADATA_FILE).write_bytes(text.getvalue().encode())
    target.join(COHORT_FILE).write_bytes(json.dumps(content, indent=1).encode() + b"\n")


def read_cohort(location: Location) -> tuple[list[tuple[str, Location]], str | None]:
    """Sections of a cohort file, and its metadata table. Paths are absolute, or below the file's folder."""
    try:
        cohort = json.loads(location.read_bytes())
        listed = [(str(entry["section"]), str(entry["path"])) for entry in cohort["sections"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{location} is no cohort file ({error}); `histolake sample` writes one.") from error
    folder = location.parent()

    gone = [path for _, path in listed if not place_of(path, folder).exists()]
    if gone:
        raise UsageError(f"{location} names {gone[0]}, which is not there; run `histolake sample` again.")
    table = cohort.get("metadata")
    places = [(section, place_of(path, folder)) for section, path in listed]
    return places, place_of(table, folder).uri if table else None
