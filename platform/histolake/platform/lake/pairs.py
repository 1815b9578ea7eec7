"""`pairs.lance`: one row a spot, append-only, a fragment holds one ingest.

Workers write fragments as files that nobody sees; the driver makes them part of the table in one Lance commit; only the
catalogue makes them part of the lake. Whole fragments are dropped, never rows.

The manifest lists every fragment of the lake, some 240 bytes each. So a process that ingests keeps it, reads it again
only after others have committed, and commits on top of the one at hand; what was just committed is looked for
among the fragments that are newer than the attempt, not among all.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

import pyarrow as pa

from histolake.platform.errors import ConflictError, IntegrityError
from histolake.platform.lake.again import FAILURES, again, pause
from histolake.platform.schemas import PAIRS
from histolake.platform.storage import Location

__all__ = ["Fragment", "PairsTable", "PairsWriter"]

STORAGE_VERSION: Final = "2.1"  # of Lance's files
COMMIT_TRIES = 40
WRITE_TRIES = 3
METADATA_CACHE_BYTES = 8 << 20  # else Lance keeps every manifest that it has seen, up to a GiB
INDEX_CACHE_BYTES = 16 << 20
# Lance packs whole numbers by itself and leaves others as they are. Most counts are 1 or 2: by LZ4 they take a third of
# the room and are read as fast (by Zstandard a fifth, a third slower).
PACKED = pa.field("item", pa.float32(), metadata={"lance-encoding:compression": "lz4"})
WRITTEN = PAIRS.set(PAIRS.get_field_index("counts"), pa.field("counts", pa.list_(PACKED)))
MANIFEST = ".manifest"
KEEP_MANIFESTS = 16  # of the newest versions, which another process may be about to read
KEEP_MANIFESTS_S = 300.0  # and those of this time


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """A written file of rows: Lance's own description of it, and how many rows it holds. Safe to send to the driver."""

    metadata: str  # JSON
    rows: int

    @property
    def files(self) -> tuple[str, ...]:
        """Names of its data files, each unique for ever."""
        return tuple(file["path"] for file in json.loads(self.metadata)["files"])


@dataclass(frozen=True, kw_only=True)
class PairsWriter:
    """Writes the rows of one ingest. Cheap to send to a worker."""

    location: Location
    ingest_id: str
    slide_id: str

    def write(self, rows: pa.Table | Iterable[pa.RecordBatch]) -> Fragment:
        """Write one fragment; nothing of it can be seen until the attempt is staged and published.

        `rows` has the columns of `schemas.PAIRS`; `ingest_id` and `slide_id` are filled in here. Batches are written as
        they come, so memory holds one. A table, or batches that can be asked for anew (no iterator), are written again
        where the store failed: the end of a transfer in parts cannot be repeated, and what it left is nobody's.
        """
        tries = 1 if isinstance(rows, Iterator) else WRITE_TRIES
        for attempt in range(tries - 1):
            try:
                return self._write(rows)
            except OSError:
                pause(attempt)
        return self._write(rows)

    def _write(self, rows: pa.Table | Iterable[pa.RecordBatch]) -> Fragment:
        from lance.fragment import LanceFragment

        batches = rows.to_batches() if isinstance(rows, pa.Table) else rows
        reader = pa.RecordBatchReader.from_batches(WRITTEN, (self._own(batch) for batch in batches))
        # As the first fragment of a table: to append, Lance would read the whole manifest for the schema. `append` sees
        # to it that the columns have the numbers that they have in the table.
        written = LanceFragment.create(
            self.location.uri,
            reader,
            schema=WRITTEN,
            mode="create",
            data_storage_version=STORAGE_VERSION,
            storage_options=self.location.lance_options(),
        )
        return Fragment(metadata=json.dumps(written.to_json()), rows=written.physical_rows)

    def _own(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        own = {"ingest_id": self.ingest_id, "slide_id": self.slide_id}
        columns = []
        for wanted in WRITTEN:
            if wanted.name in own:
                columns.append(pa.array([own[wanted.name]] * batch.num_rows, pa.string()))
            else:
                columns.append(batch.column(wanted.name).cast(wanted.type))
        return pa.RecordBatch.from_arrays(columns, schema=WRITTEN)


class PairsTable:
    """The Lance table, always at its newest version."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._held: Any = None  # the dataset as this process knows it; only under the lock
        self._lock = threading.Lock()

    def create(self) -> None:
        """Make the empty table unless there is one."""
        import lance

        if self.location.join("_versions").exists():
            return
        try:
            lance.write_dataset(
                PAIRS.empty_table(),
                self.location.uri,
                schema=PAIRS,
                mode="create",
                data_storage_version=STORAGE_VERSION,
                enable_v2_manifest_paths=True,
                storage_options=self.location.lance_options(),
            )
        except OSError:
            # Another process may have created it in the meantime; anything else is seen when it is opened.
            self.open()

    def open(self) -> Any:
        """The newest `LanceDataset`, the caller's own."""
        import lance

        return again(lambda: lance.dataset(self.location.uri, storage_options=self.location.lance_options()))

    def newest(self) -> Any:
        """The newest `LanceDataset`, for a look at its fragments; its manifest is read if it is not the one at hand."""
        with self._lock:
            if self._held is None or self._held.latest_version != self._held.version:
                self._held = _open_for_writing(self.location.uri, self.location.lance_options())
            return self._held

    def last_id(self) -> int:
        """An id that every fragment exceeds which is committed from now on."""
        return _last_id(self._held or self.newest())

    def append(self, fragments: Sequence[Fragment], after: int = -1) -> list[dict[str, int]]:
        """Make fragments part of the table in one commit; returns `{"id", "rows"}` of each, in order.

        A commit whose outcome is unknown is looked up by file names before it is repeated: Lance would accept the same
        fragments twice and double the rows. `after` is the `last_id` from before they were written; only newer
        fragments are looked through.
        """
        import lance
        from lance.commit import CommitConflictError
        from lance.fragment import FragmentMetadata

        if not fragments:
            return []
        failure: Exception | None = None
        operation = lance.LanceOperation.Append([FragmentMetadata.from_json(f.metadata) for f in fragments])
        for attempt in range(COMMIT_TRIES):
            dataset = self.newest()
            _check_columns(fragments, dataset)
            found = self.locate(fragments, after, dataset)
            if found is not None:
                return found
            try:
                # Without retries: Lance would take a commit that only seemed to fail for another writer's.
                done = lance.LanceDataset.commit(dataset, operation, read_version=dataset.version, max_retries=0)
            except (OSError, CommitConflictError) as error:
                failure = error
                pause(attempt)
                continue
            with self._lock:
                self._held = done
            if done.version % KEEP_MANIFESTS == 0:
                self._thin()
            found = self.locate(fragments, max(after, _last_id(dataset)), done)
            if found is not None:
                return found
        found = self.locate(fragments, after)
        if found is None:
            raise ConflictError(f"Pairs could not be committed in {COMMIT_TRIES} tries: {failure}") from failure
        return found

    def locate(
        self, fragments: Sequence[Fragment], after: int = -1, dataset: Any = None
    ) -> list[dict[str, int]] | None:
        """Ids and rows of committed fragments, by their file names; None unless every one is there, whole.

        Only fragments with an id above `after` are looked at, the newest first.
        """
        dataset = dataset or self.newest()
        wanted = {name for fragment in fragments for name in fragment.files}
        by_file: dict[str, Any] = {}
        for fragment_id in _ids_above(dataset, after):
            part = dataset.get_fragment(fragment_id)
            by_file |= {file.path: part for file in part.data_files() if file.path in wanted}
            if len(by_file) == len(wanted):
                break
        found = []
        for fragment in fragments:
            parts = {by_file[name].fragment_id for name in fragment.files if name in by_file}
            if len(parts) != 1:
                return None
            part = by_file[fragment.files[0]]
            if part.count_rows() != fragment.rows:
                return None
            found.append({"id": int(part.fragment_id), "rows": fragment.rows})
        return found

    def _thin(self) -> None:
        """Remove manifests of old versions, for each lists every fragment: a day of ingest into a large lake would
        leave tens of gigabytes. Data files are vacuum's, also those that only an old version names."""
        before_s = time.time() - KEEP_MANIFESTS_S
        listed = [e for e in self.location.join("_versions").entries(recursive=False) if e.location.suffix == MANIFEST]
        # The name counts down from 2^64 - 1, so that a listing begins with the newest.
        for entry in sorted(listed, key=lambda entry: entry.location.name)[KEEP_MANIFESTS:]:
            if entry.modified_s < before_s:
                with suppress(FileNotFoundError):  # another writer does the same
                    entry.location.delete()

    def holds(self, fragments: Sequence[Fragment], located: Sequence[dict[str, int]], dataset: Any) -> bool:
        """Whether fragments are still where they were located."""
        if len(fragments) != len(located):
            return False
        for fragment, place in zip(fragments, located, strict=True):
            part = dataset.get_fragment(place["id"])
            if part is None or tuple(file.path for file in part.data_files()) != fragment.files:
                return False
        return True

    def fragment_ids(self) -> set[int]:
        """The ids of all committed fragments."""
        return {int(fragment_id) for fragment_id in self.newest().fragment_ids()}

    def owners(self, fragment_ids: Sequence[int]) -> dict[str, list[int]]:
        """ingest_id -> ids of its fragments among those given, told by their first rows; those gone are left out."""
        dataset = self.open()
        owners: dict[str, list[int]] = {}
        for fragment_id in fragment_ids:
            part = dataset.get_fragment(fragment_id)
            if part is not None:
                owners.setdefault(self._owner(part), []).append(fragment_id)
        return owners

    def _owner(self, part: Any) -> str:
        """The ingest_id of a fragment; "" where its file is gone, which then belongs to nobody."""
        failures = (OSError, pa.ArrowInvalid)  # a scan of Lance's tells a missing file as the latter
        try:
            first = again(lambda: part.to_table(columns=["ingest_id"], limit=1), failures)
        except failures:
            if all(self.location.join("data", file.path).exists() for file in part.data_files()):
                raise
            return ""
        return str(first["ingest_id"][0].as_py())

    def rewrite(self, moved: Sequence[tuple[Sequence[int], Fragment]], dataset: Any) -> bool:
        """Put a new fragment in the place of several, for some ingests, in one commit on top of a dataset: whoever
        reads sees either the old ones or the new. False where another writer has dropped or moved any of them."""
        import lance
        from lance.fragment import FragmentMetadata

        _check_columns([fragment for _, fragment in moved], dataset)
        groups = []
        for ids, fragment in moved:
            old = [dataset.get_fragment(fragment_id) for fragment_id in ids]
            new = FragmentMetadata.from_json(fragment.metadata)
            metadata = [part.metadata for part in old]
            groups.append(lance.LanceOperation.RewriteGroup(old_fragments=metadata, new_fragments=[new]))
        operation = lance.LanceOperation.Rewrite(groups=groups, rewritten_indices=[])
        try:
            done = lance.LanceDataset.commit(dataset, operation, read_version=dataset.version, max_retries=0)
        except FAILURES:
            # Lost, or won unknowingly: where the new files are in the table, and the old ones are not, it was won.
            return self.locate([fragment for _, fragment in moved]) is not None
        with self._lock:
            self._held = done
        return True

    def drop(self, fragments: dict[str, list[int]]) -> None:
        """Drop whole fragments, given by ingest_id. The predicate kept in Lance's log names random ingest_ids only."""
        import lance
        from lance.commit import CommitConflictError

        listed = ", ".join(f"'{ingest_id}'" for ingest_id in sorted(fragments))
        wanted = {fragment for owned in fragments.values() for fragment in owned}
        failure: Exception | None = None
        for attempt in range(COMMIT_TRIES):
            dataset = self.open()
            ids = sorted(wanted & {part.fragment_id for part in dataset.get_fragments()})
            if not ids:
                return  # also after a commit that only seemed to fail
            operation = lance.LanceOperation.Delete([], ids, f"ingest_id IN ({listed})")
            try:
                lance.LanceDataset.commit(dataset, operation, read_version=dataset.version, max_retries=0)
                return
            except (OSError, CommitConflictError) as error:
                failure = error
                pause(attempt)
        raise ConflictError(f"Fragments could not be dropped in {COMMIT_TRIES} tries: {failure}") from failure

    def clean(self, older_than_s: float) -> int:
        """Forget old Lance versions, and remove data files that no version names and that are older than a moment
        (seconds since the epoch). Returns the bytes freed.

        Lance's own sweep of unnamed files knows no leases: it would take the files of an ingest that is under way.
        """
        freed = 0
        for _ in range(2):  # the second pass takes what only the first one's manifests still named
            freed += again(lambda: self.open().cleanup_old_versions(older_than=timedelta(0)).bytes_removed)
        named = again(self._named_files)  # another vacuum may take a version away while we look
        for entry in self.location.join("data").entries():
            if entry.location.name not in named and entry.modified_s < older_than_s:
                entry.location.delete()
                freed += entry.size_bytes
        return freed

    def _named_files(self) -> set[str]:
        dataset = self.open()
        return {
            file.path
            for version in dataset.versions()
            for part in dataset.checkout_version(version["version"]).get_fragments()
            for file in part.data_files()
        }


def _open_for_writing(uri: str, options: dict[str, str] | None) -> Any:
    import lance

    session = lance.Session(metadata_cache_size_bytes=METADATA_CACHE_BYTES, index_cache_size_bytes=INDEX_CACHE_BYTES)
    return lance.dataset(uri, storage_options=options, session=session)


def _check_columns(fragments: Sequence[Fragment], dataset: Any) -> None:
    """Files were written without a look at the table: their columns must stand under the table's numbers."""
    wanted = _columns(dataset.lance_schema)
    for fragment in fragments:
        for file in json.loads(fragment.metadata)["files"]:
            if file["fields"] != wanted:
                raise IntegrityError(
                    f"A fragment of {dataset.uri} was written with the columns {file['fields']} where the table has "
                    f"{wanted}; this version of histolake does not know the table's schema."
                )


def _columns(schema: Any) -> list[int]:
    """The numbers under which a table's columns stand in its files."""

    def leaves(fields: Sequence[Any]) -> Iterator[int]:
        for field in fields:
            below = field.children()
            if below:
                yield from leaves(below)
            else:
                yield field.id()

    return list(leaves(schema.fields()))


def _last_id(dataset: Any) -> int:
    return next(_ids_above(dataset, -1), -1)


def _ids_above(dataset: Any, after: int) -> Iterator[int]:
    """Ids of fragments, the newest first."""
    for fragment_id in reversed(list(dataset.fragment_ids())):
        if fragment_id <= after:
            return
        yield int(fragment_id)
