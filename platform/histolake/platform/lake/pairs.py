"""`pairs.lance`: one row a spot, append-only, a fragment holds one ingest.

Workers write fragments as files that nobody sees; the driver makes them part of the table in one Lance commit; only the
catalogue makes them part of the lake. Whole fragments are dropped, never rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa

from histolake.platform.errors import ConflictError, IntegrityError
from histolake.platform.lake.again import again, pause
from histolake.platform.schemas import PAIRS
from histolake.platform.storage import Location

__all__ = ["Fragment", "PairsTable", "PairsWriter"]

COMMIT_TRIES = 40


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

        `rows` has the columns of `schemas.PAIRS`; `ingest_id` and `slide_id` are filled in here. A generator of batches
        is written as it comes, so memory holds one batch.
        """
        from lance.fragment import write_fragments

        batches = rows.to_batches() if isinstance(rows, pa.Table) else rows
        reader = pa.RecordBatchReader.from_batches(PAIRS, (self._own(batch) for batch in batches))
        written = write_fragments(
            reader, self.location.uri, schema=PAIRS, mode="append", storage_options=self.location.lance_options()
        )
        if len(written) != 1:
            raise IntegrityError(f"Writing {self.slide_id} made {len(written)} fragments where one was expected.")
        return Fragment(metadata=json.dumps(written[0].to_json()), rows=written[0].physical_rows)

    def _own(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        own = {"ingest_id": self.ingest_id, "slide_id": self.slide_id}
        columns = []
        for wanted in PAIRS:
            if wanted.name in own:
                columns.append(pa.array([own[wanted.name]] * batch.num_rows, pa.string()))
            else:
                columns.append(batch.column(wanted.name).cast(wanted.type))
        return pa.RecordBatch.from_arrays(columns, schema=PAIRS)


class PairsTable:
    """The Lance table, always at its newest version."""

    def __init__(self, location: Location) -> None:
        self.location = location

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
                data_storage_version="2.1",
                enable_v2_manifest_paths=True,
                storage_options=self.location.lance_options(),
            )
        except OSError:
            # Another process may have created it in the meantime; anything else is seen when it is opened.
            self.open()

    def open(self) -> Any:
        """The newest `LanceDataset`."""
        import lance

        return again(lambda: lance.dataset(self.location.uri, storage_options=self.location.lance_options()))

    def append(self, fragments: Sequence[Fragment]) -> list[dict[str, int]]:
        """Make fragments part of the table in one commit; returns `{"id", "rows"}` of each, in order.

        A commit whose outcome is unknown is looked up by file names before it is repeated: Lance would accept the same
        fragments twice and double the rows.
        """
        import lance
        from lance.commit import CommitConflictError
        from lance.fragment import FragmentMetadata

        if not fragments:
            return []
        failure: Exception | None = None
        for attempt in range(COMMIT_TRIES):
            dataset = self.open()
            found = self.locate(fragments, dataset)
            if found is not None:
                return found
            operation = lance.LanceOperation.Append([FragmentMetadata.from_json(f.metadata) for f in fragments])
            try:
                lance.LanceDataset.commit(
                    self.location.uri,
                    operation,
                    read_version=dataset.version,
                    storage_options=self.location.lance_options(),
                    max_retries=0,  # Lance would take a commit that only seemed to fail for another writer's
                )
            except (OSError, CommitConflictError) as error:
                failure = error
                pause(attempt)
        found = self.locate(fragments)
        if found is None:
            raise ConflictError(f"Pairs could not be committed in {COMMIT_TRIES} tries: {failure}") from failure
        return found

    def locate(self, fragments: Sequence[Fragment], dataset: Any = None) -> list[dict[str, int]] | None:
        """Ids and rows of committed fragments, by their file names; None unless every one is there, whole."""
        dataset = dataset or self.open()
        by_file = {file.path: part for part in dataset.get_fragments() for file in part.data_files()}
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

    def fragment_ids(self) -> set[int]:
        """The ids of all committed fragments."""
        return {int(part.fragment_id) for part in self.open().get_fragments()}

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
        try:
            first = part.to_table(columns=["ingest_id"], limit=1)
        except OSError:
            if all(self.location.join("data", file.path).exists() for file in part.data_files()):
                raise
            return ""
        return str(first["ingest_id"][0].as_py())

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
            try:
                lance.LanceDataset.commit(
                    self.location.uri,
                    lance.LanceOperation.Delete([], ids, f"ingest_id IN ({listed})"),
                    read_version=dataset.version,
                    storage_options=self.location.lance_options(),
                    max_retries=0,
                )
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
            freed += self.open().cleanup_old_versions(older_than=timedelta(0)).bytes_removed
        dataset = self.open()
        named = {
            file.path
            for version in dataset.versions()
            for part in dataset.checkout_version(version["version"]).get_fragments()
            for file in part.data_files()
        }
        for entry in self.location.join("data").entries():
            if entry.location.name not in named and entry.modified_s < older_than_s:
                entry.location.delete()
                freed += entry.size_bytes
        return freed

    def fragment(self, fragment_id: int, dataset: Any) -> Any:
        """One fragment of an open dataset; raises `IntegrityError` if it is gone."""
        part = dataset.get_fragment(fragment_id)
        if part is None:
            raise IntegrityError(
                f"Fragment {fragment_id} of {self.location} is gone though the catalogue names it; "
                "run `histolake lake check`."
            )
        return part
