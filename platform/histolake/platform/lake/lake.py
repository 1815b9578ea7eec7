"""The lake: one root URI, and what may be done with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from histolake.platform.errors import LakeNotFoundError
from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.attempt import Attempt, find_dead, is_complete, new_ingest_id
from histolake.platform.lake.catalog import LIVE, Catalog
from histolake.platform.lake.correct import Change, carry, correct_rows
from histolake.platform.lake.embeddings.tables import EmbeddingTables
from histolake.platform.lake.forgotten import forgotten_of, notice
from histolake.platform.lake.genes import GeneTable
from histolake.platform.lake.images import LakeImages
from histolake.platform.lake.leases import Lease, LeaseKeeper
from histolake.platform.lake.pairs import PairsTable
from histolake.platform.lake.snapshot import Snapshot
from histolake.platform.lake.versions import resolve
from histolake.platform.schemas import REJECTIONS, SLIDES
from histolake.platform.storage import Location, StoreSettings

__all__ = ["Lake"]

# What is told of a live row that makes an attempt needless.
BEGUN = (*LIVE, "n_spots", "n_rejections", "flags")


class Lake:
    """A data lake of spot-image/gene pairs at one URI. Open it with `Lake.open`."""

    def __init__(self, root: Location) -> None:
        os.environ.setdefault("LANCE_LOG", "error")  # read when lance is imported; its warnings are for its authors
        self.root = root
        self.catalog = Catalog(root)
        self.pairs = PairsTable(root.join("pairs.lance"))
        self.images = LakeImages(root)
        self.embeddings = EmbeddingTables(root)
        self.keeper = LeaseKeeper(root)
        self._genes = GeneTable(self.catalog)

    @classmethod
    def open(cls, uri: str | Path | Location, *, create: bool = False, store: StoreSettings | None = None) -> Lake:
        """Open the lake at a URI (`/path`, `file://`, `s3://`); with `create`, make an empty one where there is none.

        Raises `LakeNotFoundError`.
        """
        lake = cls(Location.parse(uri, store))
        if create:
            require_conditional_put(lake.root)
            # `catalog/slides` comes last: where it is, the others are.
            if not lake.catalog.exists():
                lake.pairs.create()
                lake.catalog.create("rejections", REJECTIONS)
                lake._genes.create()
                lake.catalog.create("slides", SLIDES)
        elif not lake.catalog.exists():
            raise LakeNotFoundError(f"There is no lake at {lake.uri}; `histolake ingest` makes one, or name another.")
        return lake

    @property
    def uri(self) -> str:
        """Its root."""
        return self.root.uri

    @property
    def version(self) -> int:
        """Its newest version: that of the Delta table `catalog/slides`."""
        return self.catalog.version()

    # -- genes ----------------------------------------------------------------------------------------------------

    def genes(self) -> pa.Table:
        """Every gene that the lake knows (`schemas.GENES`), by gene_id."""
        return self._genes.read()

    def resolve_genes(
        self,
        symbols: Sequence[str],
        ensembl_ids: Sequence[str | None] | None = None,
        *,
        species: str = "human",
        allocate: bool = False,
    ) -> np.ndarray:
        """Gene ids, int32 (G,); see `GeneTable.resolve`."""
        return self._genes.resolve(symbols, ensembl_ids, species=species, allocate=allocate)

    # -- reading --------------------------------------------------------------------------------------------------

    def at(self, version: int | str | None = None) -> Snapshot:
        """The lake at a version, given by its number (as text, too) or by a tag; the newest if none is named.

        Raises `VersionError` for one that is not there, or was expired.
        """
        table = self.catalog.table("slides")
        properties = self.catalog.properties(table)
        number = resolve(version, table.version(), properties, self.uri)
        rows = self.catalog.slides(table=table)
        retired = pc.fill_null(pc.less_equal(rows["retired_in"], number), False)
        here = pc.and_(pc.less_equal(rows["published_in"], number), pc.invert(retired))
        rows = rows.filter(here).sort_by([("slide_id", "ascending"), ("status", "ascending")])
        return Snapshot(self, number, rows, notice(forgotten_of(properties), number))

    def resolve(self, version: int | str | None = None) -> int:
        """The number of a version that is given by number or by a tag. Raises `VersionError`."""
        table = self.catalog.table("slides")
        return resolve(version, table.version(), self.catalog.properties(table), self.uri)

    # -- writing --------------------------------------------------------------------------------------------------

    def begin(self, slide_id: str, *, source_digest: str, settings_digest: str, source: str) -> Attempt:
        """Begin to ingest a slide.

        The attempt's `state` is "unchanged" where the live row was made of the same source under the same settings
        (nothing is to be done), "adopted" where a dead attempt left everything but the last commit (`publish` it), else
        "new" (write, `stage` or `refuse`, then `publish`).
        """
        require_conditional_put(self.root)
        digests = {"source_digest": source_digest, "settings_digest": settings_digest}
        common: dict[str, Any] = {
            "root": self.root,
            "catalog": self.catalog,
            "pairs": self.pairs,
            "keeper": self.keeper,
            "slide_id": slide_id,
            **digests,
        }
        for row in self.catalog.live([slide_id], BEGUN)[slide_id]:
            if all(row[key] == value for key, value in digests.items()):
                return Attempt(**common, state="unchanged", ingest_id=row["ingest_id"], live=row)
        lease = Lease(
            lease_id=new_ingest_id(),
            kind="write",
            purpose=f"ingest {source}",
            slide_id=slide_id,
            source_digest=source_digest,
            settings_digest=settings_digest,
        )
        dead = self._adopt(lease)
        if dead is not None:
            after = (dead.plan or {}).get("after", -1)
            return Attempt(**common, state="adopted", ingest_id=dead.lease_id, plan=dead.plan, after=after)
        after = self.pairs.last_id()
        self.keeper.hold(lease)
        return Attempt(**common, state="new", ingest_id=lease.lease_id, after=after)

    def _adopt(self, lease: Lease) -> Lease | None:
        """Make a dead attempt at what a lease is about to attempt our own, if there is one that is complete."""
        wanted = (lease.slide_id or "", lease.source_digest or "", lease.settings_digest or "")
        while (dead := find_dead(self.root, self.catalog, self.pairs, self.keeper, wanted)) is not None:
            mine = replace(lease, lease_id=dead.lease_id, plan=dead.plan)
            if not self.keeper.adopt(mine):
                continue  # somebody else was first: another adopts it, or vacuum drops it
            if is_complete(mine, self.catalog, self.pairs):
                return mine
            self.keeper.release(mine.lease_id)  # vacuum dropped it before we sealed it
        return None

    def publish(self, attempts: Sequence[Attempt]) -> int:
        """Publish staged attempts in one catalogue commit; returns the lake version that holds them.

        A slide's live row is retired in the version that brings the new one. A refused slide retires only an earlier
        refusal. What was corrected stands until the source says something new (see `lake.correct`). An attempt that
        another writer overtook with the same source and settings is given up.
        """
        attempts = [attempt for attempt in attempts if attempt.state != "unchanged"]
        if not attempts:
            return self.version
        for attempt in attempts:
            attempt.seal()
        dataset = self.pairs.newest()
        for attempt in attempts:
            attempt.verify(dataset)
        when = datetime.now(UTC)
        software = f"histolake {package_version('histolake')}"

        done: set[str] = set()

        def rows(version: int, live: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
            made: list[dict[str, Any]] = []
            for attempt in attempts:
                if attempt.ingest_id in done:
                    continue
                attempt.hold_on()
                new = {**attempt.row(version), "when": when, "software": software}
                current = live[attempt.slide_id]
                new = carry(new, current)
                attempt.corrected = tuple(entry["column"] for entry in new["corrected"] or ())
                if any(_same(row, new) for row in current):
                    continue
                replaced = [row for row in current if new["status"] == "published" or row["status"] == "refused"]
                made += [
                    {**{k: row[k] for k in ("ingest_id", "published_in", "slide_id")}, "retired_in": version}
                    for row in replaced
                ]
                made.append(new)
            return made

        version = self.catalog.commit([a.slide_id for a in attempts], rows, [a.ingest_id for a in attempts], done=done)
        for attempt in attempts:
            self.keeper.release(attempt.ingest_id)
        return version

    def correct(self, changes: Sequence[Change]) -> int:
        """Set right what the catalogue says of slides, without touching pairs; returns the lake version that does.

        Make the changes with `lake.correct.corrections`. Raises `ConflictError` where a value is no longer what the
        change says.
        """
        now = {"when": datetime.now(UTC), "software": f"histolake {package_version('histolake')}"}

        def rows(version: int, live: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
            made = correct_rows(version, live, changes)
            return [row if "retired_in" in row and row["retired_in"] == version else {**row, **now} for row in made]

        return self.catalog.commit([change.slide_id for change in changes], rows, columns=SLIDES.names)


def _same(row: dict[str, Any], new: dict[str, Any]) -> bool:
    return all(row[key] == new[key] for key in ("source_digest", "settings_digest", "status"))
