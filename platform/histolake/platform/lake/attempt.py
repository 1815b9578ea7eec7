"""An attempt to ingest one slide: everything between "begin" and "published", none of it visible.

The order of its steps is the order of their promises, and a crash between any two leaves the lake as it was:

1. a lease, before a file is written, so that vacuum leaves the files alone;
2. fragments, by workers;
3. the plan in the lease: what will be published;
4. rejections, then pairs: written and counted, under an `ingest_id` that no version names yet;
5. the seal, then the catalogue's one commit (`Lake.publish`);
6. the lease is given back.

An `ingest_id` is never used by a second attempt. An attempt that died after step 4 is complete: a later run of the same
source under the same settings adopts it whole.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import pyarrow as pa

from histolake.platform.errors import IntegrityError
from histolake.platform.lake.catalog import Catalog
from histolake.platform.lake.leases import Lease, LeaseKeeper, read_leases
from histolake.platform.lake.pairs import Fragment, PairsTable, PairsWriter
from histolake.platform.schemas import PROVENANCE, REJECTIONS
from histolake.platform.storage import Location

__all__ = ["Attempt", "State"]

State = Literal["new", "unchanged", "adopted"]


class Attempt:
    """One slide on its way into the lake. Made by `Lake.begin`."""

    def __init__(
        self,
        *,
        root: Location,
        catalog: Catalog,
        pairs: PairsTable,
        keeper: LeaseKeeper,
        slide_id: str,
        source_digest: str,
        settings_digest: str,
        state: State,
        ingest_id: str,
        live: dict[str, Any] | None = None,
        plan: dict[str, Any] | None = None,
        after: int = -1,
    ) -> None:
        self._root = root
        self._catalog = catalog
        self._table = pairs
        self._keeper = keeper
        self.slide_id = slide_id
        self.source_digest = (plan or {}).get("source_digest", source_digest)
        self.settings_digest = settings_digest
        self.state: State = state
        self.ingest_id = ingest_id
        self.live = live  # the live row that makes this attempt needless, where state is "unchanged"
        self.plan = plan
        self.corrected: tuple[str, ...] = ()  # columns whose correction stands; known when it is published
        self._after = after  # an id that all its fragments exceed
        self._located: list[dict[str, int]] | None = None  # its fragments, once they are committed
        self._sealed = state == "adopted"

    @property
    def pairs(self) -> PairsWriter:
        """What workers write rows with."""
        return PairsWriter(location=self._table.location, ingest_id=self.ingest_id, slide_id=self.slide_id)

    def stage(self, record: dict[str, Any], fragments: Sequence[Fragment], rejections: pa.Table) -> None:
        """Commit a slide's pairs and rejections under this attempt's `ingest_id`; nobody sees them until `publish`.

        `record` holds the provenance columns of `schemas.SLIDES` and `n_spots`; `rejections` has the columns of
        `schemas.REJECTIONS` but `ingest_id` and `slide_id`.
        """
        self._plan("published", record, fragments, rejections)
        self._write_rejections(rejections)
        self._commit_pairs(fragments)

    def refuse(self, record: dict[str, Any], rejections: pa.Table) -> None:
        """Stage a slide that is refused as a whole: a row without pairs, which never retires a published one."""
        self._plan("refused", record, [], rejections)
        self._write_rejections(rejections)

    def abandon(self) -> None:
        """Give the lease back; what was written is vacuum's."""
        self._keeper.release(self.ingest_id)

    def seal(self) -> None:
        """Make sure, right before publishing, that the attempt is still ours. From then on vacuum leaves it alone."""
        assert self.plan is not None, "stage or refuse first"
        if not self._sealed and not self._keeper.seal(self.ingest_id, "publish"):
            raise IntegrityError(f"The attempt to ingest {self.slide_id} was given up for dead; run it again.")
        self._sealed = True  # a publish that failed may be tried again

    def verify(self, dataset: Any) -> None:
        """Make sure, after sealing, that its pairs are in the table as they were written."""
        assert self.plan is not None, "stage or refuse first"
        fragments = _fragments(self.plan)
        if self._located is None or not self._table.holds(fragments, self._located, dataset):
            self._located = self._table.locate(fragments, self._after, dataset)
        if self._located is None:
            raise IntegrityError(f"Pairs of {self.slide_id} are not in the lake as they were written; ingest it again.")

    def hold_on(self) -> None:
        """Make sure, on top of the version that is to be published on, that nobody took the attempt for dead meanwhile.
        Whoever does so later commits to the catalogue first, and ours is refused."""
        self._keeper.ensure(self.ingest_id)

    def _plan(self, status: str, record: dict[str, Any], fragments: Sequence[Fragment], rejections: pa.Table) -> None:
        unknown = set(record) - {field.name for field in PROVENANCE} - {"n_spots"}
        assert not unknown, f"not columns of catalog/slides: {sorted(unknown)}"
        self.plan = {
            "status": status,
            "record": record,
            "fragments": [asdict(fragment) for fragment in fragments],
            "n_rejections": rejections.num_rows,
            "after": self._after,
            "source_digest": self.source_digest,  # that of a look-alike's refusal tells of the other section too
        }
        self._keeper.update(self.ingest_id, plan=self.plan)

    def _write_rejections(self, rejections: pa.Table) -> None:
        if rejections.num_rows == 0:
            return
        own = {"ingest_id": self.ingest_id, "slide_id": self.slide_id}
        columns = [
            pa.array([own[f.name]] * rejections.num_rows, f.type)
            if f.name in own
            else rejections[f.name].cast(f.type)
            if f.name in rejections.column_names
            else pa.nulls(rejections.num_rows, f.type)
            for f in REJECTIONS
        ]
        self._keeper.ensure(self.ingest_id)
        self._catalog.append("rejections", pa.Table.from_arrays(columns, schema=REJECTIONS))

    def _commit_pairs(self, fragments: Sequence[Fragment]) -> None:
        self._keeper.ensure(self.ingest_id)
        located = self._located = self._table.append(fragments, self._after)
        wanted, found = sum(f.rows for f in fragments), sum(part["rows"] for part in located)
        if wanted != found:
            raise IntegrityError(f"{found} pairs of {self.slide_id} were committed where {wanted} were written.")

    def row(self, published_in: int) -> dict[str, Any]:
        """The row of `catalog/slides` that publishes this attempt in a version."""
        assert self.plan is not None and self._located is not None, "verify first"
        located = self._located
        return {
            **self.plan["record"],
            "slide_id": self.slide_id,
            "ingest_id": self.ingest_id,
            "published_in": published_in,
            "retired_in": None,
            "status": self.plan["status"],
            "n_pairs": sum(part["rows"] for part in located),
            "n_rejections": self.plan["n_rejections"],
            "fragments": located,
            "source_digest": self.source_digest,
            "settings_digest": self.settings_digest,
        }


def find_dead(
    root: Location,
    catalog: Catalog,
    pairs: PairsTable,
    keeper: LeaseKeeper,
    wanted: tuple[str, str, str],
) -> Lease | None:
    """A dead attempt at the `wanted` (slide_id, source digest, settings digest) that is complete, or None.

    Our own leases are passed over unread, or beginning n slides would read n^2 of them.
    """
    for lease in read_leases(root, keeper.held):
        if lease.kind != "write" or (lease.slide_id, lease.source_digest, lease.settings_digest) != wanted:
            continue
        if lease.plan is None or lease.is_live() or lease.is_sealed(root):
            continue
        if is_complete(lease, catalog, pairs):
            return lease
    return None


def is_complete(lease: Lease, catalog: Catalog, pairs: PairsTable) -> bool:
    """Whether all that an attempt planned is in the tables."""
    if lease.plan is None or pairs.locate(_fragments(lease.plan), lease.plan.get("after", -1)) is None:
        return False
    return catalog.rejection_count(lease.lease_id) == lease.plan["n_rejections"]


def new_ingest_id() -> str:
    """Random, so that it says nothing about a slide or a person and may stay when they are forgotten."""
    return uuid.uuid4().hex


def _fragments(plan: dict[str, Any]) -> list[Fragment]:
    return [Fragment(**fragment) for fragment in plan["fragments"]]
