"""The catalogue: Delta tables `catalog/slides`, `catalog/rejections` and `catalog/genes`.

`catalog/slides` alone decides what the lake holds: its Delta version is the lake's version. Publishing is one Delta
commit without automatic retry, an append where nothing is retired and a merge where something is; whoever loses the
race reads again.

What a commit costs must not grow with the lake. So a table's log is read on from where this process stood, the names of
slides are kept by file (`slide_index`), a merge opens only files whose versions it retires, and files are compacted in
passing to a bounded size, so that neither their number nor what a merge rewrites grows.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, write_deltalake

from histolake.platform.errors import ConflictError, IntegrityError
from histolake.platform.lake.admission import require_conditional_put
from histolake.platform.lake.again import FAILURES, again, pause
from histolake.platform.lake.slide_index import SlideIndex, conform
from histolake.platform.schemas import CORRECTABLE, REJECTIONS, SLIDES, schema_name, schema_version
from histolake.platform.storage import Location

__all__ = ["Catalog"]

PUBLISH_TRIES = 40
COMPACT_FILES = 24  # small files after which a table is compacted in passing
COMPACTING = "histolake.compacting"  # a property that each compaction sets anew, to be kept apart from others
FILE_BYTES = (
    1 << 20
)  # a file of this size is left alone: about a thousand slides, and what a merge rewrites for one row
KEEP_COMMITS = 1_000  # in a table's log, for `lake history`; the tables need none before their newest checkpoint
THIN_EVERY = 16  # commits
MOST_NAMED = 64  # versions that the predicate of a merge names one by one; more are named as a range

# No statistics on columns that could name a person or a slide: they would stay in the log after forgetting.
_STATISTICS = {"slides": "published_in,retired_in", "rejections": "figure", "genes": "gene_id"}
_ONCE = CommitProperties(max_commit_retries=0)
_LOG = {
    "delta.checkpointInterval": "20",  # commits that are read one by one when a table is opened
    # A checkpoint lists the files that were retired within this time. `clean` needs no list to remove them.
    "delta.deletedFileRetentionDuration": "interval 10 minutes",
}
# The library would look through the whole log for expired commits after every one; `_thin_log` does it now and then.
_HOOKS = PostCommitHookProperties(create_checkpoint=True, cleanup_expired_logs=False)

# What publishing must know of a live row.
LIVE = (
    *("slide_id", "ingest_id", "published_in", "status", "source_digest", "settings_digest", "n_pairs"),
    *(*CORRECTABLE, "corrected", "first_published"),
)

RowMaker = Callable[[int, dict[str, list[dict[str, Any]]]], list[dict[str, Any]]]

PROPERTY_PREFIX = "histolake."  # of the table properties that are ours
DID = "histolake"  # the key of a commit's own words in the log: JSON with "did" and what it was done with
Told = Mapping[str, object]  # such as {"did": "reverted", "to": 3}; it stays in the log, so it names nobody


class Catalog:
    """The Delta tables of one lake."""

    def __init__(self, root: Location) -> None:
        self._lake = root
        self.root = root.join("catalog")
        self._held: dict[str, DeltaTable] = {}  # at the version that this process knows; only under the lock
        self._lock = threading.RLock()
        self._index = SlideIndex(self.root.join("slides"))

    # -- tables ---------------------------------------------------------------------------------------------------

    def create(self, name: str, schema: pa.Schema) -> None:
        """Make an empty table unless there is one."""
        require_conditional_put(self._lake)
        place = self.root.join(name)
        place.filesystem()[0].create_dir(place.filesystem()[1], recursive=True)
        # Whoever loses the race for its first commit, or wins it unknowingly, finds it there when looking again.
        again(
            lambda: DeltaTable.create(
                place.uri,
                schema=schema.remove_metadata(),
                mode="ignore",
                name=f"{schema_name(schema)} v{schema_version(schema)}",
                configuration={"delta.dataSkippingStatsColumns": _STATISTICS[name], **_LOG},
                storage_options=place.delta_options(),
                commit_properties=_ONCE,  # or the library makes an empty version 1 where the answer to 0 was lost
            )
        )

    def exists(self) -> bool:
        """Whether there is a catalogue here."""
        place = self.root.join("slides")
        return again(lambda: DeltaTable.is_deltatable(place.uri, storage_options=place.delta_options()))

    def table(self, name: str) -> DeltaTable:
        """A table at its newest version, the caller's own."""
        place = self.root.join(name)
        return again(lambda: DeltaTable(place.uri, storage_options=place.delta_options()))

    def _newest(self, name: str) -> DeltaTable:
        """A table at its newest version, read on from where it stood. Shared: to be used under the lock only, or
        another thread's commit would move it under its user."""
        held = self._held.pop(name, None)
        if held is not None:
            try:
                held.update_incremental()
            except FAILURES:  # its log was cleaned, or the store was away: what is there now tells
                held = None
        self._held[name] = held or self.table(name)
        return self._held[name]

    def dataset(self, name: str, table: DeltaTable | None = None) -> Any:
        """A table's rows as an Arrow dataset, read through Arrow's own file system.

        deltalake would lend Arrow a file system that is written in Python. Arrow's threads then hold Python objects,
        and a process that ends while one of them lets go is aborted after all its work is done ("terminate called
        without an active exception", seen in one of twenty short commands on a busy machine).
        """
        from pyarrow.fs import SubTreeFileSystem

        filesystem, path = self.root.join(name).filesystem()
        return (table or self.table(name)).to_pyarrow_dataset(filesystem=SubTreeFileSystem(path, filesystem))

    def version(self) -> int:
        """The lake's version."""
        with self._lock:
            return self._newest("slides").version()

    def row_count(self, name: str) -> int:
        """How many rows a table has, of all versions; told by its log, no file is read."""
        with self._lock:
            actions = pa.table(self._newest(name).get_add_actions(flatten=True))
        return int(pc.sum(actions["num_records"]).as_py() or 0)

    def append(self, name: str, rows: pa.Table) -> None:
        """Add the rows of ingests that the table holds none of.

        A commit whose outcome is unknown is looked up by `ingest_id` before it is repeated.
        """
        require_conditional_put(self._lake)
        failure: Exception | None = None
        ingest_ids = pc.unique(rows["ingest_id"])
        with self._lock:
            for attempt in range(PUBLISH_TRIES):
                if failure is not None and self._count(name, _text("ingest_id").isin(ingest_ids)) == rows.num_rows:
                    return  # the commit that seemed to fail had succeeded
                table = self._newest(name)
                try:
                    write_deltalake(
                        table,
                        rows.replace_schema_metadata(None),
                        mode="append",
                        commit_properties=_ONCE,
                        post_commithook_properties=_HOOKS,
                    )
                except FAILURES as error:
                    failure = error
                    self._lost(name, attempt)
                    continue
                self._keep_small(name, table)
                return
        raise ConflictError(f"Rows could not be added to {name} in {PUBLISH_TRIES} tries: {failure}") from failure

    def _lost(self, name: str, attempt: int) -> None:
        """After a commit that failed: start from what the store says, a moment later."""
        self._held.pop(name, None)
        pause(attempt)

    def create_with(self, name: str, schema: pa.Schema, rows: pa.Table) -> None:
        """Make a table with its first rows in one commit, unless there is one with rows."""
        self.create(name, schema)

        def fill() -> None:
            table = self.table(name)
            if self.dataset(name, table).count_rows() == 0:
                write_deltalake(table, rows.replace_schema_metadata(None), mode="append", commit_properties=_ONCE)

        again(fill)  # who lost the race, or won it unknowingly, finds the rows there

    # -- slides ---------------------------------------------------------------------------------------------------

    def slides(self, columns: list[str] | None = None, table: DeltaTable | None = None) -> pa.Table:
        """Every row of `catalog/slides`: all slides, all versions."""
        return again(lambda: _read(self.dataset("slides", table), SLIDES, columns))

    def rejections(self, ingest_ids: Sequence[str] | None = None) -> pa.Table:
        """Every row of `catalog/rejections`, or those of some ingests."""
        keep = None if ingest_ids is None else _text("ingest_id").isin(list(ingest_ids))
        return again(lambda: _read(self.dataset("rejections"), REJECTIONS, None, keep))

    def rejection_count(self, ingest_id: str) -> int:
        """How many rejections an ingest has written."""
        return self._count("rejections", _text("ingest_id") == ingest_id)

    def _count(self, name: str, keep: pc.Expression) -> int:
        return again(lambda: int(self.dataset(name).count_rows(filter=keep)))

    def live(self, slide_ids: Iterable[str], columns: Sequence[str] = LIVE) -> dict[str, list[dict[str, Any]]]:
        """Live rows by slide_id (a published one, a refused one, or both), with what publishing must know of them."""
        wanted = sorted(set(slide_ids))
        schema = pa.schema([SLIDES.field(name) for name in dict.fromkeys(["slide_id", *columns])])
        rows: dict[str, list[dict[str, Any]]] = {slide_id: [] for slide_id in wanted}
        for row in self._live(wanted, schema).to_pylist():
            rows[row["slide_id"]].append(row)
        return rows

    def _live(self, slide_ids: Sequence[str], schema: pa.Schema) -> pa.Table:
        failure: OSError | None = None
        with self._lock:
            for attempt in range(PUBLISH_TRIES):
                files = (uri.rsplit("/", 1)[-1] for uri in self._newest("slides").file_uris())
                try:
                    return self._index.read(files, slide_ids, schema)
                except FileNotFoundError:  # compacted and cleaned away since we looked; the newest version has others
                    continue
                except OSError as error:
                    failure = error
                    pause(attempt)
        raise ConflictError(
            f"{self.root} changed, or could not be read, {PUBLISH_TRIES} times; try again. Last: {failure}"
        ) from failure

    def commit(
        self,
        slide_ids: Sequence[str],
        make_rows: RowMaker,
        ingest_ids: Sequence[str] = (),
        columns: Sequence[str] = LIVE,
        told: Told | None = None,
        done: set[str] | None = None,
    ) -> int:
        """Publish in one commit; returns the lake version in which the rows are.

        `make_rows(version, live)` gives the merge's source: rows that equal a live one in (ingest_id, published_in)
        retire it, the others are inserted. It is asked again after every lost race. An empty list commits nothing.
        `ingest_ids` are the new ones, by which a commit that only seemed to fail is known. Columns that an older lake
        lacks are added to it. `told` is kept with the commit for `lake history`. `done` are told, before `make_rows` is
        asked again, the new ones that are in the table by then: also those that another writer has replaced since.
        """
        require_conditional_put(self._lake)
        done = set() if done is None else done
        failure: Exception | None = None
        with self._lock:
            for attempt in range(PUBLISH_TRIES):
                table = self._newest("slides")
                if failure is not None and (version := self._published(table, ingest_ids, done)) is not None:
                    return version  # the commit that seemed to fail had succeeded
                version = table.version() + 1
                live = self.live(slide_ids, columns)
                if table.version() + 1 != version:
                    continue  # another writer published while we looked
                rows = make_rows(version, live)
                if not rows:
                    return table.version()
                try:
                    self._write(table, rows, _once(told))
                except FAILURES as error:
                    failure = error
                    self._lost("slides", attempt)
                    continue
                if table.version() != version:
                    raise IntegrityError(
                        f"Version {version} was published as {table.version()}; `histolake lake check`."
                    )
                self._keep_small("slides", table)
                return version
        raise ConflictError(
            f"Other writers won {PUBLISH_TRIES} commits in a row; try again. Last: {failure}"
        ) from failure

    def _write(self, table: DeltaTable, rows: Sequence[Mapping[str, Any]], once: CommitProperties) -> None:
        """One commit right on top of the table's version, or an error."""
        source = pa.Table.from_pylist(list(rows), schema=SLIDES.remove_metadata())
        retired = [row["published_in"] for row in rows if row.get("retired_in") is not None]
        if not retired:
            known = {field.name for field in table.schema().fields}
            mode: Literal["merge"] | None = None if known.issuperset(source.schema.names) else "merge"
            write_deltalake(
                table,
                source,
                mode="append",
                schema_mode=mode,
                commit_properties=once,
                post_commithook_properties=_HOOKS,
            )
            return
        merge = table.merge(
            source,
            f"old.ingest_id = new.ingest_id AND old.published_in = new.published_in AND {_within(retired)}",
            source_alias="new",
            target_alias="old",
            merge_schema=True,
            commit_properties=once,
            post_commithook_properties=_HOOKS,
        )
        merge.when_matched_update({"retired_in": "new.retired_in"}).when_not_matched_insert_all().execute()

    def _published(self, table: DeltaTable, ingest_ids: Sequence[str], done: set[str]) -> int | None:
        """The version in which these ingests were published, None unless all were; those that were become `done`."""
        if not ingest_ids:
            return None
        keep = _text("ingest_id").isin(list(ingest_ids))
        columns = ["ingest_id", "published_in"]
        found = again(lambda: self.dataset("slides", table).to_table(columns=columns, filter=keep))
        done.update(found["ingest_id"].to_pylist())
        if len(done) < len(set(ingest_ids)):
            return None
        return int(pc.max(found["published_in"]).as_py())

    # -- properties of the lake -----------------------------------------------------------------------------------

    def properties(self, table: DeltaTable | None = None) -> dict[str, str]:
        """Our properties of `catalog/slides` (tags, the floor of expired versions, what was forgotten). They come with
        the table's metadata, so that an open table costs no further request."""
        held = (table or self.table("slides")).metadata().configuration
        return {name: value for name, value in held.items() if name.startswith(PROPERTY_PREFIX) and value}

    def change_properties(
        self, make: Callable[[int, dict[str, str]], Mapping[str, str]], told: Told | None = None
    ) -> int:
        """Set the properties that `make(newest version, properties)` gives; returns the lake version that has them. An
        empty value removes one.

        Any two commits of the table conflict, so what `make` read of its version still holds when they are set: it is
        asked again after every lost race. What it gives is equal to what is there already where a commit
        that seemed to fail had succeeded, and then nothing is done.
        """
        require_conditional_put(self._lake)
        failure: ConflictError | None = None
        for attempt in range(PUBLISH_TRIES):
            table = self.table("slides")
            held = self.properties(table)
            changes = {
                name: value for name, value in make(table.version(), held).items() if held.get(name, "") != value
            }
            if not changes:
                return table.version()
            try:
                return _set(table, changes, told)
            except ConflictError as error:
                failure = error
                pause(attempt)
        raise ConflictError(f"Other writers won {PUBLISH_TRIES} commits in a row; try again.") from failure

    # -- upkeep ---------------------------------------------------------------------------------------------------

    def _keep_small(self, name: str, table: DeltaTable) -> None:
        """In passing: few small files, and a short log."""
        sizes = pa.table(table.get_add_actions(flatten=True))["size_bytes"].to_pylist()
        if sum(size < FILE_BYTES for size in sizes) > COMPACT_FILES:
            self._held.pop(name, None)
            with suppress(*FAILURES):  # another writer was at work; the next one compacts
                self._compact(name, table)
                table = self._newest(name)
        if table.version() % THIN_EVERY == 0:
            self._thin_log(name, table.version())

    def _compact(self, name: str, table: DeltaTable) -> None:
        """Join the small files of a table, unless another writer is at it.

        delta-rs puts a compaction on top of whatever was committed meanwhile (`max_commit_retries` does not hold it),
        another compaction of the same files too: then every row is there twice. What it does refuse is to go on top of
        a change of the table's properties. So a compaction first sets its mark, in a commit that is not repeated, then
        reads the table, and goes on only where the newest mark is its own: of two, the one that marked earlier sees
        the other's mark, or read before it was set and is refused.
        """
        mark = uuid.uuid4().hex
        table.alter.set_table_properties({COMPACTING: mark}, raise_if_not_exists=False, commit_properties=_ONCE)
        marked = self.table(name)
        if marked.metadata().configuration.get(COMPACTING) == mark:
            marked.optimize.compact(target_size=FILE_BYTES, commit_properties=_ONCE, post_commithook_properties=_HOOKS)

    def _thin_log(self, name: str, version: int) -> None:
        """Remove commits that are older than `KEEP_COMMITS` and than a checkpoint: listing the log is part of every
        commit. The oldest go first, so that whatever is left is whole."""
        files = {}
        for entry in self.root.join(name, "_delta_log").entries(recursive=False):
            number = entry.location.name.partition(".")[0]
            if number.isdigit():
                files[entry.location] = int(number)
        checkpoints = [v for place, v in files.items() if ".checkpoint" in place.name and v <= version - KEEP_COMMITS]
        for place, found in files.items():
            if found < max(checkpoints, default=0):
                with suppress(FileNotFoundError):  # another writer does the same
                    place.delete()

    def delete(self, name: str, ingest_ids: Sequence[str], told: Told | None = None) -> int:
        """Delete the rows of some ingests; returns how many. The predicate names random ingest_ids only."""
        if not ingest_ids:
            return 0
        listed = ", ".join(f"'{ingest_id}'" for ingest_id in sorted(ingest_ids))
        return self._delete(name, f"ingest_id IN ({listed})", told)

    def delete_retired(self, floor: int, told: Told | None = None) -> int:
        """Delete the rows of `catalog/slides` that were retired in a version or before it; returns how many."""
        return self._delete("slides", f"retired_in <= {floor}", told)

    def _delete(self, name: str, predicate: str, told: Told | None) -> int:
        """The predicate stays in the table's log: it holds numbers and random ids only."""
        require_conditional_put(self._lake)
        failure: Exception | None = None
        for attempt in range(PUBLISH_TRIES):
            try:
                metrics = self.table(name).delete(predicate, commit_properties=_once(told))
                return int(metrics["num_deleted_rows"])
            except FAILURES as error:
                failure = error
                pause(attempt)
        raise ConflictError(f"Rows of {name} could not be deleted: other writers won every commit.") from failure

    def amend(self, rows: pa.Table) -> None:
        """Change columns of `catalog/slides` in place, in every version. `rows` hold ingest_id and published_in, by
        which a row is known (no other value of theirs is in the log), and the columns to change."""
        require_conditional_put(self._lake)
        changed = {name: f"new.{name}" for name in rows.column_names if name not in ("ingest_id", "published_in")}
        failure: Exception | None = None
        for attempt in range(PUBLISH_TRIES):
            try:
                merge = self.table("slides").merge(
                    rows,
                    "old.ingest_id = new.ingest_id AND old.published_in = new.published_in AND "
                    + _within(rows["published_in"].to_pylist()),
                    source_alias="new",
                    target_alias="old",
                    commit_properties=_once({"did": "amended"}),
                )
                merge.when_matched_update(changed).execute()
                return
            except FAILURES as error:
                failure = error
                pause(attempt)
        raise ConflictError("Rows of slides could not be amended: other writers won every commit.") from failure

    def clean(self, name: str, older_than_s: float) -> int:
        """Remove files of a table that its newest version does not hold: those the log has retired, and those that no
        commit ever named if they are older than a moment (seconds since the epoch). Returns how many."""
        require_conditional_put(self._lake)
        removed = again(
            lambda: len(self.table(name).vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False))
        )
        held = {uri.rsplit("/", 1)[-1] for uri in self.table(name).file_uris()}
        for entry in self.root.join(name).entries(recursive=False):
            if (
                entry.location.suffix == ".parquet"
                and entry.location.name not in held
                and entry.modified_s < older_than_s
            ):
                entry.location.delete()
                removed += 1
        return removed


def _set(table: DeltaTable, changes: Mapping[str, str], told: Told | None) -> int:
    try:
        table.alter.set_table_properties(dict(changes), raise_if_not_exists=False, commit_properties=_once(told))
    except FAILURES as error:
        raise ConflictError(f"Properties could not be set after version {table.version()}: {error}") from error
    return int(table.version())


def _once(told: Told | None) -> CommitProperties:
    """A commit that is not retried by the library, with its own words for `lake history`."""
    return _ONCE if told is None else CommitProperties(max_commit_retries=0, custom_metadata={DID: json.dumps(told)})


def _text(name: str) -> pc.Expression:
    """A column of text to compare with. Files that a merge or a compaction wrote hold it as string_view, which Arrow
    cannot compare with a string when it prunes by a file's statistics; a cast column is compared row by row."""
    return pc.field(name).cast(pa.string())


def _within(versions: Sequence[int]) -> str:
    """A condition on `published_in` in numbers, by which a merge passes over files that hold none of them."""
    named = sorted(set(versions))
    if len(named) > MOST_NAMED:
        return f"old.published_in >= {named[0]} AND old.published_in <= {named[-1]}"
    return f"old.published_in IN ({', '.join(map(str, named))})"


def _read(dataset: Any, schema: pa.Schema, columns: list[str] | None, keep: pc.Expression | None = None) -> pa.Table:
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    held = set(dataset.schema.names)
    return conform(dataset.to_table(columns=[name for name in wanted.names if name in held], filter=keep), wanted)
