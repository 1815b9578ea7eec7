"""`embeddings/<model>-v<n>.lance`: the vectors of the lake's pairs under one version of one model.

A table is derived: it can be made again from the pairs and the model, and the catalogue still decides what is in a
version of the lake. A fragment holds one ingest; an ingest's fragments are committed together, looked up by the names
of their files before a commit is repeated. An ingest counts as embedded when its rows are as many as the catalogue's
`n_pairs`; one with fewer or more (two embedders that each thought the other dead) is replaced by the next run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import IntegrityError, ModelError, UsageError
from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.leases import read_leases
from histolake.platform.lake.pairs import Fragment, PairsTable
from histolake.platform.lake.vector_index import IndexState, drop_stale, index_state, keep_up
from histolake.platform.schemas import PAIR_ID_BYTES, embeddings_schema
from histolake.platform.storage import CLOCK_SLACK_S, Location

if TYPE_CHECKING:
    from histolake.platform.lake.findings import Finding
    from histolake.platform.lake.lake import Lake
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["SIDES", "About", "EmbeddingTable", "EmbeddingTables", "EmbeddingsWriter", "Part", "audit", "writing"]

SIDES = ("vector", "sentence_vector")
_KEY = "histolake.embeddings."


def writing(name: str) -> str:
    """The purpose of the lease that a run holds which writes to a table."""
    return f"embed {name}"


@dataclass(frozen=True, kw_only=True)
class About:
    """Whose vectors a table holds; kept in its metadata."""

    model: str  # the registered name, or the folder's
    version: str  # of the registered model; empty for a folder
    digest: str  # of the weights and of what decides how a pair is read
    width: int  # numbers a vector
    image_column: str  # spot_image or niche_image
    image_um: float | None  # width of the pictures that the model was trained on

    def to_metadata(self) -> dict[str, str]:
        """As text, for the schema."""
        return {_KEY + name: json.dumps(value) for name, value in self.__dict__.items()}

    @classmethod
    def from_metadata(cls, metadata: dict[bytes, bytes]) -> About:
        """Out of a schema."""
        return cls(**{name: json.loads(metadata[(_KEY + name).encode()]) for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Part:
    """One fragment of a table."""

    fragment_id: int
    ingest_id: str
    first: int  # row of the table that is its first, counted through all fragments
    rows: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingsWriter:
    """Writes the vectors of one ingest. Cheap to send to a worker."""

    location: Location
    width: int
    ingest_id: str
    slide_id: str

    def write(
        self,
        pair_ids: Sequence[bytes],
        vector_ND: np.ndarray,
        has_N: np.ndarray,
        text_ND: np.ndarray,
        said_N: np.ndarray,
    ) -> Fragment:
        """Write one fragment; nothing of it can be seen until it is appended.

        N pairs, D numbers a vector, float32. Where `has_N` or `said_N` is False the vector is null.
        """
        from lance.fragment import write_fragments

        schema = embeddings_schema(self.width)
        rows = pa.Table.from_arrays(
            [
                pa.array(pair_ids, pa.binary(PAIR_ID_BYTES)),
                pa.array([self.ingest_id] * len(pair_ids), pa.string()),
                pa.array([self.slide_id] * len(pair_ids), pa.string()),
                _vectors(vector_ND, has_N, self.width),
                _vectors(text_ND, said_N, self.width),
            ],
            schema=schema,
        )
        written = write_fragments(
            rows, self.location.uri, schema=schema, mode="append", storage_options=self.location.lance_options()
        )
        if len(written) != 1:
            raise IntegrityError(f"The vectors of {self.slide_id} made {len(written)} fragments, not one.")
        return Fragment(metadata=json.dumps(written[0].to_json()), rows=written[0].physical_rows)


def _vectors(vector_ND: np.ndarray, known_N: np.ndarray, width: int) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(vector_ND, dtype=np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, width, mask=pa.array(~np.asarray(known_N, dtype=bool)))


class EmbeddingTable:
    """The table of one model, always at its newest version. Get one from `Lake.embeddings.open`."""

    def __init__(self, name: str, location: Location) -> None:
        self.name = name
        self.location = location
        self._rows = PairsTable(location)
        self._owners: dict[int, str] = {}  # fragment -> ingest; neither changes

    def dataset(self) -> Any:
        """The newest `LanceDataset`."""
        return self._rows.open()

    @property
    def about(self) -> About:
        """Whose vectors these are."""
        return About.from_metadata(self.dataset().schema.metadata or {})

    def writer(self, ingest_id: str, slide_id: str) -> EmbeddingsWriter:
        """What workers write with."""
        return EmbeddingsWriter(location=self.location, width=self.about.width, ingest_id=ingest_id, slide_id=slide_id)

    def parts(self, dataset: Any = None) -> list[Part]:
        """Every fragment with its ingest, in the table's order. An owner that is not known yet costs one row read."""
        dataset = dataset or self.dataset()
        found = [(int(part.fragment_id), int(part.count_rows())) for part in dataset.get_fragments()]
        starts = np.concatenate([[0], np.cumsum([rows for _, rows in found], dtype=np.int64)])
        new = [(fragment_id, int(start)) for (fragment_id, _), start in zip(found, starts, strict=False)]
        new = [(fragment_id, start) for fragment_id, start in new if fragment_id not in self._owners]
        if new:
            first = dataset.take([start for _, start in new], columns=["ingest_id"])["ingest_id"].to_pylist()
            self._owners |= {fragment_id: owner for (fragment_id, _), owner in zip(new, first, strict=True)}
        return [
            Part(fragment_id, self._owners[fragment_id], int(start), rows)
            for (fragment_id, rows), start in zip(found, starts, strict=False)
        ]

    def ingests(self, dataset: Any = None) -> dict[str, int]:
        """ingest_id -> its rows."""
        rows: dict[str, int] = {}
        for part in self.parts(dataset):
            rows[part.ingest_id] = rows.get(part.ingest_id, 0) + part.rows
        return rows

    def append(self, fragments: Sequence[Fragment]) -> None:
        """Make an ingest's fragments part of the table in one commit; safe to repeat."""
        self._rows.append(fragments)

    def drop(self, ingest_ids: Iterable[str]) -> int:
        """Drop the rows of some ingests; returns how many. Files and index still hold them (see `tidy`)."""
        wanted = set(ingest_ids)
        found: dict[str, list[int]] = {}
        rows = 0
        for part in self.parts():
            if part.ingest_id in wanted:
                found.setdefault(part.ingest_id, []).append(part.fragment_id)
                rows += part.rows
        self._rows.drop(found)
        return rows

    def read(
        self, snapshot: Snapshot, columns: list[str], where: str | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The vectors of a lake version's slides, those for which `where` is true, in the table's order."""
        dataset = self.dataset()
        wanted = set(snapshot.slides(where=where)["ingest_id"].to_pylist())
        for part in self.parts(dataset):
            if part.ingest_id in wanted:
                fragment = dataset.get_fragment(part.fragment_id)
                yield from fragment.to_batches(columns=columns, batch_size=batch_rows)

    # -- index and upkeep -----------------------------------------------------------------------------------------

    def index(self) -> list[IndexState]:
        """Make the vector indices where the table is large enough, or take in what was added; says what there is."""
        for side in SIDES:
            keep_up(self.dataset, side)
        return self.index_state()

    def index_state(self) -> list[IndexState]:
        """The vector indices there are."""
        dataset = self.dataset()
        return [state for side in SIDES if (state := index_state(dataset, side)) is not None]

    def tidy(self, older_than_s: float) -> int:
        """Make anew the indices that hold rows which were dropped, then remove old versions and files without a name
        that are older than a moment (seconds since the epoch). Returns the bytes freed."""
        for side in SIDES:
            drop_stale(self.dataset, side)
        freed = self._rows.clean(older_than_s)
        dataset = self.dataset()
        named = {str(entry["uuid"]) for entry in dataset.list_indices()}
        for entry in self.location.join("_indices").entries():
            if entry.location.parent().name not in named and entry.modified_s < older_than_s:
                entry.location.delete()
                freed += entry.size_bytes
        return freed


class EmbeddingTables:
    """The folder `embeddings/` of one lake."""

    def __init__(self, root: Location) -> None:
        self._root = root
        self._folder = root.join("embeddings")

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
        return EmbeddingTable(name, self._place(name))

    def create(self, name: str, about: About) -> EmbeddingTable:
        """The table of that name, made if there is none. Raises `ModelError` where it holds another model's vectors."""
        require_conditional_put(self._root)
        import lance

        place = self._place(name)
        if not place.join("_versions").exists():
            schema = embeddings_schema(about.width, about.to_metadata())
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
        from histolake.platform.lake.nearest import nearest

        return nearest(self.open(name), vectors_QD, k, snapshot, side, where, exact=exact)

    def _place(self, name: str) -> Location:
        return self._folder.join(f"{name}.lance")

    def _cutoff_s(self) -> float:
        live = [lease.started_s for lease in read_leases(self._root) if lease.is_live()]
        return min(live) - CLOCK_SLACK_S if live else time.time()


def audit(lake: Lake) -> list[Finding]:
    """What is not as the catalogue says in the tables of embeddings; a table that covers a part of the lake is fine."""
    from histolake.platform.lake.findings import VACUUM, Finding

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
