"""One table of embeddings, `embeddings/<model>-v<n>.lance`: rows by ingest, read, written, indexed and tidied.

A fragment holds one ingest; an ingest's fragments are committed together, and looked up by the names of their files
before a commit is repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import IntegrityError
from histolake.platform.lake.embeddings.index import IndexState, drop_stale, index_state, keep_up
from histolake.platform.lake.pairs import Fragment, PairsTable
from histolake.platform.schemas import PAIR_ID_BYTES, embeddings_schema
from histolake.platform.storage import Location

if TYPE_CHECKING:
    from histolake.platform.lake.snapshot import Snapshot

__all__ = ["MADE", "SIDES", "About", "EmbeddingTable", "EmbeddingsWriter", "Part", "View"]

SIDES = ("vector", "sentence_vector")
_KEY = "histolake.embeddings."
MADE = b"histolake.made"  # random: tells a table from a later one of its name


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


class View:
    """A table at one of its versions, with what was found out about it."""

    def __init__(self, dataset: Any, known: dict[int, tuple[str, int]]) -> None:
        self.dataset = dataset
        self._known = known  # fragment -> its ingest and rows, of all versions; neither changes
        self._states: dict[str, IndexState | None] = {}

    @cached_property
    def about(self) -> About:
        """Whose vectors these are."""
        return About.from_metadata(self.dataset.schema.metadata or {})

    @cached_property
    def parts(self) -> list[Part]:
        """Every fragment with its ingest, in the table's order. An owner that is not known yet costs one row read."""
        ids = [int(fragment_id) for fragment_id in self.dataset.fragment_ids()]
        new = [fragment_id for fragment_id in ids if fragment_id not in self._known]
        rows = {fragment_id: int(self.dataset.get_fragment(fragment_id).count_rows()) for fragment_id in new}
        rows |= {fragment_id: self._known[fragment_id][1] for fragment_id in ids if fragment_id in self._known}
        first = dict(zip(ids, accumulate((rows[fragment_id] for fragment_id in ids), initial=0), strict=False))
        if new:
            at = [first[fragment_id] for fragment_id in new]
            owners = self.dataset.take(at, columns=["ingest_id"])["ingest_id"].to_pylist()
            self._known.update((one, (owner, rows[one])) for one, owner in zip(new, owners, strict=True))
        return [Part(one, self._known[one][0], first[one], rows[one]) for one in ids]

    def ingests(self) -> dict[str, int]:
        """ingest_id -> its rows."""
        rows: dict[str, int] = {}
        for part in self.parts:
            rows[part.ingest_id] = rows.get(part.ingest_id, 0) + part.rows
        return rows

    def index(self, side: str) -> IndexState | None:
        """The vector index of a side, None if there is none."""
        if side not in self._states:
            self._states[side] = index_state(self.dataset, side)
        return self._states[side]


class EmbeddingTable:
    """The table of one model. Get one from `Lake.embeddings.open`, and keep it: it remembers what it has read."""

    def __init__(self, name: str, location: Location) -> None:
        self.name = name
        self.location = location
        self._rows = PairsTable(location)
        self._session: Any = None  # Lance's caches, of indices above all
        self._view: tuple[tuple[str, int], View] | None = None
        self._known: tuple[str, dict[int, tuple[str, int]]] = ("", {})

    def dataset(self) -> Any:
        """The newest `LanceDataset`."""
        import lance

        self._session = self._session or lance.Session()
        return lance.dataset(self.location.uri, session=self._session, storage_options=self.location.lance_options())

    def view(self) -> View:
        """The table as it is now."""
        dataset = self.dataset()
        made = (dataset.schema.metadata or {}).get(MADE, b"").decode()  # another where the table was made anew
        if self._known[0] != made:
            self._known = (made, {})
        key = (made, int(dataset.version))
        held = self._view
        if held is None or held[0] != key:
            held = self._view = (key, View(dataset, self._known[1]))
        return held[1]

    @property
    def about(self) -> About:
        """Whose vectors these are."""
        return self.view().about

    def writer(self, ingest_id: str, slide_id: str) -> EmbeddingsWriter:
        """What workers write with."""
        return EmbeddingsWriter(location=self.location, width=self.about.width, ingest_id=ingest_id, slide_id=slide_id)

    def ingests(self) -> dict[str, int]:
        """ingest_id -> its rows."""
        return self.view().ingests()

    def append(self, fragments: Sequence[Fragment]) -> None:
        """Make an ingest's fragments part of the table in one commit; safe to repeat."""
        self._rows.append(fragments)

    def drop(self, ingest_ids: Iterable[str]) -> int:
        """Drop the rows of some ingests; returns how many. Files and index still hold them (see `tidy`)."""
        wanted = set(ingest_ids)
        found: dict[str, list[int]] = {}
        rows = 0
        for part in self.view().parts:
            if part.ingest_id in wanted:
                found.setdefault(part.ingest_id, []).append(part.fragment_id)
                rows += part.rows
        self._rows.drop(found)
        return rows

    def read(
        self, snapshot: Snapshot, columns: list[str], where: str | None = None, batch_rows: int = 1024
    ) -> Iterator[pa.RecordBatch]:
        """The vectors of a lake version's slides, those for which `where` is true, in the table's order."""
        view = self.view()
        wanted = set(snapshot.slides(where=where)["ingest_id"].to_pylist())
        for part in view.parts:
            if part.ingest_id in wanted:
                fragment = view.dataset.get_fragment(part.fragment_id)
                yield from fragment.to_batches(columns=columns, batch_size=batch_rows)

    # -- index and upkeep -----------------------------------------------------------------------------------------

    def index(self) -> list[IndexState]:
        """Make the vector indices where the table is large enough, or take in what was added; says what there is."""
        for side in SIDES:
            keep_up(self.dataset, side)
        return self.index_state()

    def index_state(self) -> list[IndexState]:
        """The vector indices there are."""
        view = self.view()
        return [state for side in SIDES if (state := view.index(side)) is not None]

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
