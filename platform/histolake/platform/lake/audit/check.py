"""An audit: does the lake hold what its catalogue says, once, and whole?

    metadata     files of the tables, fragments, who names them, counts, leases, images, embeddings
    every pair   whose it is, that it is there once, that its neighbours are there, that it has its image
    some pairs   of each fragment the first and the last: images are JPEG, counts fit genes; with `deep` all, decoded
    exports      bytes, checksum and rows of every shard

A lake may be written while it is looked at. What is waste is first seen, then looked for among the leases, then in the
catalogue (as vacuum does); what is missing is first named, then looked for; and whatever is no longer named at the end
is not told.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from histolake.platform.lake.audit import files as audit_files
from histolake.platform.lake.audit import rows as audit_rows
from histolake.platform.lake.audit.findings import AGAIN, COMPACT, REPORT, VACUUM, Finding, Tell
from histolake.platform.lake.embeddings.tables import audit
from histolake.platform.lake.forgotten import forgotten_of
from histolake.platform.lake.leases import Lease, read_leases
from histolake.platform.lake.places import where_they_are

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Finding", "check"]

FINISH = "`histolake lake forget --finish` ends it, unless its process is still at work"
READ_AHEAD = 2  # batches of images and counts, 10 MB each or so
BUFFER_BYTES = 32 << 20  # that Lance reads ahead of them
AT_ONCE = 4  # ingests looked at together; most of the time is waiting for the store (in depth: one)
COLUMNS = [
    *("slide_id", "ingest_id", "published_in", "retired_in", "status"),
    *("n_pairs", "n_rejections", "fragments", "image", "image_hash", "flags"),
]


def check(lake: Lake, *, deep: bool = False, tell: Tell = lambda what, done, of: None) -> list[Finding]:
    """Everything that is not as it should be, in every version that the catalogue holds.

    Without `deep` some 1.5 KB a pair are read, and the shards of exports; with it all images and counts. Memory
    holds a few batches and the ids of a few slides.
    """
    broken = audit_files.catalog_files(lake)
    if broken:  # nothing more can be known without them
        return broken
    first = _Seen.look(lake)
    leases = list(read_leases(lake.root))
    rows = lake.catalog.slides(COLUMNS).sort_by([("slide_id", "ascending"), ("published_in", "ascending")]).to_pylist()
    named = {row["ingest_id"] for row in rows}
    held = named | {lease.lease_id for lease in leases if lease.is_live()}

    found = list(_Pairs(lake, rows, deep=deep, tell=tell).findings())
    found += audit_files.twice_published([row for row in rows if row["status"] == "published"])
    found += _rejections(lake, rows)
    found += audit_files.overviews(lake, rows, first.images)
    found += audit_files.exports(lake, named, leases, tell)
    found += audit(lake)
    found += _waste(lake, first, rows, held, leases)
    found += audit_files.leases_left(lake, leases, named)
    found += _begun(lake)
    return _still(lake, list(dict.fromkeys(found)), named)


def _still(lake: Lake, found: list[Finding], named: set[str]) -> list[Finding]:
    """Without what was forgotten, or published, while we looked."""
    if not found:
        return found
    now = set(lake.catalog.slides(["ingest_id"])["ingest_id"].to_pylist())
    changed = now ^ named
    return [finding for finding in found if finding.ingest_id not in changed]


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What there is, before anybody is asked whose it is."""

    fragments: set[int]
    files: dict[str, int]  # data files of the pairs, with their bytes
    images: dict[str, list[str]]  # by attempt
    rejecting: set[str]

    @classmethod
    def look(cls, lake: Lake) -> _Seen:
        return cls(
            files=audit_files.data_sizes(lake.pairs.location),
            fragments=lake.pairs.fragment_ids(),
            images={owner: [file.location.name for file in files] for owner, files in lake.images.files().items()},
            rejecting=set(_rejection_counts(lake)),
        )


def _begun(lake: Lake) -> Iterator[Finding]:
    """Forgettings whose process died: what they were to remove may still be there."""
    for entry in forgotten_of(lake.catalog.properties()):
        if entry.pending:
            text = f"a forgetting of {len(entry.pending)} ingests that was begun at {entry.when} has not ended"
            yield Finding(severity="error", slide_id=None, ingest_id="", finding=text, fix=FINISH)


def _rejection_counts(lake: Lake) -> Counter[str]:
    ids = lake.catalog.dataset("rejections").to_table(columns=["ingest_id"])["ingest_id"]
    counted = pc.value_counts(ids)
    return Counter({entry["values"]: entry["counts"] for entry in counted.to_pylist()})


def _rejections(lake: Lake, rows: list[dict[str, Any]]) -> Iterator[Finding]:
    counts = _rejection_counts(lake)
    for row in rows:
        held = counts[row["ingest_id"]]
        if held != (row["n_rejections"] or 0):
            text = f"the catalogue counts {row['n_rejections']} rejections, catalog/rejections holds {held}"
            yield _error(row, text, REPORT)


def _waste(
    lake: Lake, first: _Seen, rows: list[dict[str, Any]], held: set[str], leases: list[Lease]
) -> Iterator[Finding]:
    """What no version names and no live lease holds."""

    def waste(ingest_id: str, text: str) -> Finding:
        return Finding(severity="waste", slide_id=None, ingest_id=ingest_id, finding=text, fix=VACUUM)

    named = {part["id"] for row in rows for part in row["fragments"] or []}
    live = {lease.lease_id for lease in leases if lease.is_live()}
    for owner, ids in sorted(lake.pairs.owners(sorted(first.fragments - named)).items()):
        if owner not in live:  # the catalogue may name its owner, and other fragments
            for fragment_id in ids:
                yield waste(owner, f"fragment {fragment_id} belongs to no version")
    for owner, files in sorted(first.images.items()):
        if owner not in held:
            yield waste(owner, f"{', '.join(sorted(files))} in images/ belongs to no version")
    for owner in sorted(first.rejecting - held):
        yield waste(owner, "rejections of no version")
    if not any(lease.is_live() and lease.kind == "write" for lease in leases):
        dataset = lake.pairs.open()
        known = {file.path for part in dataset.get_fragments() for file in part.data_files()}
        stray = {name: size for name, size in first.files.items() if name not in known}
        if stray:
            yield waste("", f"{len(stray)} data files of pairs, {sum(stray.values())} bytes, that no version names")


def _error(row: dict[str, Any], text: str, fix: str = AGAIN) -> Finding:
    return Finding(severity="error", slide_id=row["slide_id"], ingest_id=row["ingest_id"], finding=text, fix=fix)


def _where_moved(lake: Lake, dataset: Any, rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The rows, with the fragments in which a compaction has put their pairs since or meanwhile; and a finding for each
    that the catalogue does not list yet."""
    present = set(dataset.fragment_ids())

    def missing(some: list[dict[str, Any]]) -> dict[str, int]:
        lost = [row for row in some if any(place["id"] not in present for place in row["fragments"] or [])]
        return {row["ingest_id"]: sum(place["rows"] for place in row["fragments"]) for row in lost}

    lost = missing(rows)
    if not lost:
        return rows, []
    now = lake.catalog.slides(["ingest_id", "fragments"]).to_pylist()
    found = where_they_are(lake, dataset, now, lost)
    stale = found.keys() & missing(now).keys()
    names = {row["ingest_id"]: row["slide_id"] for row in rows}
    text = "its pairs were moved to other fragments than the catalogue lists"
    told = [
        Finding(severity="waste", slide_id=names[name], ingest_id=name, finding=text, fix=COMPACT)
        for name in sorted(stale)
    ]
    return [{**row, "fragments": found.get(row["ingest_id"], row["fragments"])} for row in rows], told


class _Pairs:
    """The pairs of every ingest that the catalogue names, whatever the version."""

    def __init__(self, lake: Lake, rows: list[dict[str, Any]], *, deep: bool, tell: Tell) -> None:
        self._lake, self._deep, self._tell = lake, deep, tell
        self._dataset = lake.pairs.open()
        self._parts = {int(part.fragment_id): part for part in self._dataset.get_fragments()}
        self._rows, self._moved = _where_moved(lake, self._dataset, rows)
        self._sizes = audit_files.data_sizes(
            lake.pairs.location
        )  # after the catalogue: nothing named is too new for it
        genes = lake.genes()["gene_id"].to_numpy()
        self._is_gene = np.zeros(int(genes.max(initial=-1)) + 1, dtype=bool)
        self._is_gene[genes] = True
        self._fields = {
            field.name(): field.id()
            for field in self._dataset.lance_schema.fields()
            if field.name() in audit_rows.IMAGES
        }

    def findings(self) -> Iterator[Finding]:
        """All of them, by slide."""
        yield from self._moved
        yield from self._named_twice()
        ingests = {row["ingest_id"]: row for row in self._rows}
        for row in self._rows:
            if (row["n_pairs"] or 0) != sum(fragment["rows"] for fragment in row["fragments"] or []):
                yield _error(row, f"the catalogue counts {row['n_pairs']} pairs, its fragments another number", REPORT)
        self._tell("pairs", 0, len(ingests))
        with ThreadPoolExecutor(1 if self._deep else AT_ONCE) as threads:
            for number, found in enumerate(threads.map(self._ingest, ingests.values()), 1):
                yield from found
                self._tell("pairs", number, len(ingests))

    def _named_twice(self) -> Iterator[Finding]:
        owners: dict[int, dict[str, Any]] = {}
        for row in self._rows:
            for fragment in row["fragments"] or []:
                other = owners.setdefault(fragment["id"], row)
                if other["ingest_id"] != row["ingest_id"]:
                    text = f"fragment {fragment['id']} is also named by an ingest of {other['slide_id']}"
                    yield _error(row, text, REPORT)

    def _ingest(self, row: dict[str, Any]) -> list[Finding]:
        found, whole = [], []
        for fragment in row["fragments"] or []:
            part = self._parts.get(fragment["id"])
            if part is None:
                found.append(_error(row, f"fragment {fragment['id']} with {fragment['rows']} pairs is gone"))
                continue
            damage = audit_files.amiss(part, self._sizes)
            found += [_error(row, text) for text in damage]
            if part.count_rows() != fragment["rows"]:
                text = f"fragment {fragment['id']} has {part.count_rows()} pairs, not {fragment['rows']}"
                found.append(_error(row, text, REPORT))
            if not damage:
                whole.append(part)
        complete = len(whole) == len(row["fragments"] or [])
        try:
            known, wrong = audit_rows.identity(whole, row["ingest_id"], row["slide_id"])
            found += [_error(row, text, REPORT) for text in wrong]
            if complete:  # else neighbours are missing with their fragment
                found += [_error(row, text, REPORT) for text in audit_rows.niches(whole, known)]
            found += [_error(row, text) for text in self._content(row, whole)]
        except (OSError, ValueError) as error:  # what Lance and Arrow raise on damaged files
            said = " ".join(str(error).split())[:200]
            found.append(_error(row, f"its pairs cannot be read: {said}"))
        return found

    def _content(self, row: dict[str, Any], parts: list[Any]) -> list[str]:
        has_image = bool(row["image"]) and "image: none" not in (row["flags"] or [])
        wrong = []
        if self._deep:
            batches = (
                batch
                for part in parts
                for batch in part.to_batches(
                    columns=audit_rows.CONTENT,
                    batch_size=audit_rows.WIDE_ROWS,
                    batch_readahead=READ_AHEAD,
                    io_buffer_size=BUFFER_BYTES,
                )
            )
            return audit_rows.content(batches, self._is_gene, has_image=has_image, decode=True)
        if has_image:
            missing: Counter[str] = Counter()
            for part in parts:
                full = audit_files.without_nulls(self._lake.pairs.location, part, self._fields)
                for column in sorted(set(self._fields) - full):
                    missing[column] += part.count_rows(filter=f"{column} IS NULL")
            wrong = [f"{count} pairs have no {column}" for column, count in sorted(missing.items()) if count]
        ends = (
            batch
            for part in parts
            if part.count_rows()
            for batch in part.take(sorted({0, part.count_rows() - 1}), columns=audit_rows.CONTENT).to_batches()
        )
        seen = audit_rows.content(ends, self._is_gene, has_image=False, decode=False)
        return wrong + [f"{text} (of the first and last of each fragment; --deep looks at all)" for text in seen]
