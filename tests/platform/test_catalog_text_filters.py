"""Looking slides up among files that a merge wrote with several slides each."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from histolake.platform.lake import Lake
from histolake.platform.schemas import REJECTIONS


def test_slides_published_together_can_be_looked_up_and_followed_by_others(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake", create=True)

    def refuse(*slide_ids: str) -> int:
        attempts = [lake.begin(s, source_digest=s, settings_digest="x", source=s) for s in slide_ids]
        for attempt in attempts:
            attempt.refuse({"cohort": "c", "section": "s", "n_spots": 0}, _one_rejection())
        return lake.publish(attempts)

    assert refuse("c/A", "c/B") == 1
    assert {key: len(rows) for key, rows in lake.catalog.live(["c/A", "c/B", "c/C"]).items()} == {
        "c/A": 1,
        "c/B": 1,
        "c/C": 0,
    }
    assert refuse("c/C", "c/D") == 2
    assert len(lake.at().slides(include_refused=True)) == 4


def _one_rejection() -> pa.Table:
    fields = [f for f in REJECTIONS if f.name not in ("ingest_id", "slide_id")]
    return pa.Table.from_pylist([{"rule": "empty", "reason": "nothing there"}], schema=pa.schema(fields))
