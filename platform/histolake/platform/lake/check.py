"""An audit: does the lake hold what its catalogue says?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from histolake.platform.lake.embeddings import audit
from histolake.platform.lake.leases import read_leases

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Finding", "check"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. `severity` is "error" (data are missing) or "waste" (vacuum's)."""

    severity: str
    slide_id: str | None
    ingest_id: str
    finding: str


def check(lake: Lake) -> list[Finding]:
    """Compare the catalogue, every version of it, with the pairs table: fragments, owners and counts.

    Reads metadata and the first row's owner of each fragment, no images.
    """
    live = {lease.lease_id for lease in read_leases(lake.root) if lease.is_live()}
    rows = lake.catalog.slides(["slide_id", "ingest_id", "n_pairs", "fragments", "status"]).to_pylist()
    dataset = lake.pairs.open()
    parts = {part.fragment_id: part for part in dataset.get_fragments()}
    owners = {i: ingest_id for ingest_id, ids in lake.pairs.owners(sorted(parts)).items() for i in ids}
    findings: list[Finding] = []

    def error(row: dict[str, object], text: str) -> None:
        told = Finding(severity="error", slide_id=str(row["slide_id"]), ingest_id=str(row["ingest_id"]), finding=text)
        if told not in findings:  # a corrected slide has several rows of one ingest
            findings.append(told)

    named = set()
    for row in rows:
        for fragment in row["fragments"] or []:
            named.add(fragment["id"])
            part = parts.get(fragment["id"])
            if part is None:
                error(row, f"fragment {fragment['id']} with {fragment['rows']} pairs is gone")
            elif owners.get(fragment["id"]) != row["ingest_id"]:
                error(row, f"fragment {fragment['id']} holds another ingest")
            elif part.count_rows() != fragment["rows"]:
                error(row, f"fragment {fragment['id']} has {part.count_rows()} pairs, not {fragment['rows']}")
        if row["n_pairs"] != sum(fragment["rows"] for fragment in row["fragments"] or []):
            error(row, f"the catalogue counts {row['n_pairs']} pairs, its fragments another number")
    for fragment_id in sorted(set(parts) - named):
        owner = owners.get(fragment_id, "")
        if owner not in live:
            text = f"fragment {fragment_id} belongs to no version; `histolake lake vacuum` drops it"
            findings.append(Finding(severity="waste", slide_id=None, ingest_id=owner, finding=text))
    return findings + audit(lake)
