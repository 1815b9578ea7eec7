"""More pairs than a spreadsheet has rows (1,048,575): all of them come back."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from tests.benchmarks import append_cost, big_lake

from histolake.platform.lake import Lake
from histolake.platform.lake.compact import compact

SPREADSHEET = 1_048_575


def test_more_pairs_than_a_spreadsheet_has_rows(lake: Lake) -> None:
    names = ["c/a", "c/b", "c/c"]
    for name in names:
        attempt = lake.begin(name, source_digest="1", settings_digest="s", source="x")
        fragments = [attempt.pairs.write(pa.Table.from_batches([big_lake.small_rows(0, 1, 180_000)])) for _ in range(2)]
        attempt.stage({"n_spots": 360_000}, fragments, pa.table({"rule": pa.array([], "string")}))
        lake.publish([attempt])
    compact(lake)
    counted = sum(lake.at().slides()["n_pairs"].to_pylist())
    rows = dict.fromkeys(names, 0)
    for batch in lake.at().pairs(["slide_id"], batch_rows=60_000):
        for found in pc.value_counts(batch["slide_id"]).to_pylist():
            rows[found["values"]] += found["counts"]
    assert counted == sum(rows.values()) == 1_080_000 > SPREADSHEET
    assert set(rows.values()) == {360_000}
    assert sum(chunk.rows for chunk in lake.at().chunks()) == counted


def test_the_benchmark_gives_figures(tmp_path: Path) -> None:
    figures = append_cost.measure(tmp_path, quick=True)
    assert all(math.isfinite(value) for value in figures.values())
    assert {"append_cost_ratio", "append_metadata_ms", "append_metadata_us_per_slide"} <= set(figures)
    assert figures["append_pairs_missing"] == 0
    assert figures["append_cost_ratio"] == max(figures["append_cost_ratio_whole"], figures["append_cost_ratio_cut"])
