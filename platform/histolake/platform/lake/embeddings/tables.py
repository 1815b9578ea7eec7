"""`embeddings/<model>-v<n>.lance`: the vectors of the lake's pairs under one version of one model.

A table is derived: it can be made again from the pairs and the model, and the catalogue still decides what is in a
version of the lake. A fragment holds one ingest; an ingest's fragments are committed together, looked up by the names
of their files before a commit is repeated. An ingest counts as embedded when its rows are as many as the catalogue's
`n_pairs`; one with fewer or more (two embedders that each thought the other dead) is replaced by the next run.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.embeddings.nearest import nearest
from histolake.platform.lake.embeddings.table import MADE, About, EmbeddingTable
from histolake.platform.lake.leases import read_leases
from histolake.platform.schemas import embeddings_schema
from histolake.platform.storage import CLOCK_SLACK_S, Location

if TYPE_CHECKING:
    from histolake.platform.lake.audit.findings import Finding
    from histolake.platform.lake.lake import Lake
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["EmbeddingTables", "audit", "writing"]


def writing(name: str) -> str:
    """The purpose of the lease that a run holds which writes to a table."""
    return f"embed {name}"


class EmbeddingTables:
    """The folder `embeddings/` of one lake."""

    def __init__(self, root: Location) -> None:
        self._root = root
        self._folder = root.join("embeddings")
        self._opened: dict[str, EmbeddingTable] = {}

    def names(self) -> list[str]:
        """The tables there are."""
        found = [place.name.removesuffix(".lance") for place in self._folder.list() if place.suffix == ".lance"]
        return [name for name in found if self._place(name).join("_versions").exists()]

    def open(self, name: str) -> EmbeddingTable:
        """The table of that name; raises `ModelError`."""
        if not self._place(name).join("_versions").exists():
            held = ", ".join(self.names()) or "none"
            raise ModelError(
                f"{self._root} has no embeddings {name!r} (there is: {held}); `histolake embed` makes them."
            )
        return self._opened.setdefault(name, EmbeddingTable(name, self._place(name)))

    def create(self, name: str, about: About) -> EmbeddingTable:
        """The table of that name, made if there is none. Raises `ModelError` where it holds another model's vectors."""
        require_conditional_put(self._root)
        import lance

        place = self._place(name)
        if not place.join("_versions").exists():
            schema = embeddings_schema(about.width, about.to_metadata() | {MADE.decode(): uuid.uuid4().hex})
            try:
                lance.write_dataset(
                    schema.empty_table(),
                    place.uri,
                    schema=schema,
                    mode="create",
                    data_storage_version="2.1",
                    enable_v2_manifest_paths=True,
                    storage_options=place.lance_options(),
                )
            except OSError:
                # Another process may have created it in the meantime; anything else is seen when it is opened.
                self.open(name).dataset()
        table = self.open(name)
        if table.about.digest != about.digest:
            raise ModelError(
                f"The embeddings {name!r} are of a model with other weights ({table.about.digest[:12]}, not "
                f"{about.digest[:12]}); `histolake embed --drop {name}` removes them."
            )
        return table

    def ingests(self, name: str) -> set[str]:
        """The ingests that a table has rows of."""
        return set(self.open(name).ingests())

    def drop(self, ingest_ids: Iterable[str], older_than_s: float | None = None) -> int:
        """Remove the rows of some ingests from every table, its files and its indices; returns how many rows.

        Files that no commit names go too if they are older than a moment (seconds since the epoch), by default than the
        oldest live lease. Safe to repeat; with no ingests it tidies.
        """
        wanted = set(ingest_ids)
        cutoff_s = self._cutoff_s() if older_than_s is None else older_than_s
        rows = 0
        for name in self.names():
            table = self.open(name)
            rows += table.drop(wanted)
            table.tidy(cutoff_s)
        return rows

    def remove(self, name: str) -> int:
        """Remove a whole table; returns its bytes. Raises `UsageError` while it is being written."""
        place = self.open(name).location
        if any(lease.purpose == writing(name) and lease.is_live() for lease in read_leases(self._root)):
            raise UsageError(f"The embeddings {name!r} are being written; stop `histolake embed` first.")
        freed = self.size_bytes(name)
        place.delete()
        self._opened.pop(name, None)
        return freed

    def size_bytes(self, name: str) -> int:
        """All that a table's files take, indices too."""
        return sum(entry.size_bytes for entry in self._place(name).entries())

    def nearest(
        self,
        name: str,
        vectors_QD: np.ndarray,
        k: int,
        snapshot: Snapshot,
        side: str = "vector",
        where: str | None = None,
        *,
        exact: bool = False,
    ) -> pa.Table:
        """The k pairs of a lake version nearest to each query; see `lake.nearest.nearest`."""
        return nearest(self.open(name), vectors_QD, k, snapshot, side, where, exact=exact)

    def _place(self, name: str) -> Location:
        return self._folder.join(f"{name}.lance")

    def _cutoff_s(self) -> float:
        live = [lease.started_s for lease in read_leases(self._root) if lease.is_live()]
        return min(live) - CLOCK_SLACK_S if live else self._root.join("leases").clock_s()


def audit(lake: Lake) -> list[Finding]:
    """What is not as the catalogue says in the tables of embeddings; a table that covers a part of the lake is fine."""
    from histolake.platform.lake.audit.findings import VACUUM, Finding

    rows = lake.catalog.slides(["slide_id", "ingest_id", "n_pairs"]).to_pylist()
    known = {row["ingest_id"]: row for row in rows}
    findings = []
    for name in lake.embeddings.names():
        table = lake.embeddings.open(name)
        for ingest_id, count in sorted(table.ingests().items()):
            row = known.get(ingest_id)
            if row is None:
                text = f"embeddings {name} hold {count} rows of no version"
                findings.append(Finding(severity="waste", slide_id=None, ingest_id=ingest_id, finding=text))
            elif count != row["n_pairs"]:
                text = f"embeddings {name} hold {count} of {row['n_pairs']} pairs"
                fix = "`histolake embed` replaces them"
                findings.append(
                    Finding(severity="error", slide_id=row["slide_id"], ingest_id=ingest_id, finding=text, fix=fix)
                )
        for state in table.index_state():
            if state.stale:
                text, fix = f"the index {state.name} of embeddings {name} holds dropped rows", VACUUM
                findings.append(Finding(severity="waste", slide_id=None, ingest_id="", finding=text, fix=fix))
    return findings
