"""What adding a slide costs in a lake of 10,000 slides, over an empty one.

    python -m tests.benchmarks.append_cost [--work DIR] [--out FILE.json] [--quick]

Into a lake of simulated slides (`big_lake`) goes a slide of 5,000 spots of realistic size (3,500 genes and 40 KB of
pictures a spot, in five fragments), in turn with one into an empty lake: `append_cost_ratio`. The pictures and counts
are made beforehand; what an ingest does before (reading, tiling, encoding) is the same in both and is left out, which
makes the ratio the worse.

`append_metadata_ms` is all of it but writing rows: begin, open the tables as a process does for its first slide, commit
rejections and pairs, publish. `append_metadata_next_ms` is that of a further slide of the same run. Both are measured
at several sizes of the lake; `append_metadata_us_per_slide` is the slope of a line through them.

The slides that are there have one fragment each (`..._whole`), as an ingest of a cohort writes them and `histolake lake
compact` leaves them, or five (`..._cut`), as slides come out that were ingested one by one; the plain key is the worse
of the two. The same on a store on loopback (SeaweedFS), where each request costs, stands beside: `..._s3`.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from tests import object_store
from tests.benchmarks import big_lake
from tests.benchmarks.alone import Figures, interleaved, main, median_ratio, seconds

from histolake.platform.lake import Lake
from histolake.platform.schemas import PAIRS

__all__ = ["measure"]

SIZES = (0, 2_500, 5_000, 10_000)  # slides
FRAGMENTS = {"_whole": 1, "_cut": 5}  # of every slide that is there already
ROWS = 120  # pairs of such a slide
SPOTS, RUNS, GENES = 5_000, 5, 3_500  # of the slide that is added
PICTURE_BYTES = 20_000
REPEATS = 7
ADDED = 1_000_000  # the numbers of slides that are added in order to be timed


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring."""
    sizes = (0, 10, 20) if quick else SIZES
    spots = RUNS * 20 if quick else SPOTS
    repeats = 2 if quick else REPEATS
    slide = _slide(spots)
    figures: Figures = {}
    for suffix, fragments in FRAGMENTS.items():
        place = work / f"lake{suffix}"
        shutil.rmtree(place, ignore_errors=True)
        lake = Lake.open(place, create=True)
        figures |= _by_size(lake, sizes, fragments, repeats, suffix)
        figures[f"append_cost_ratio{suffix}"] = _ratio(place, work / "empty", slide, repeats)
        figures[f"append_pairs_missing{suffix}"] = _missing(place)
        shutil.rmtree(place)
    names = [name.removesuffix("_whole") for name in figures if name.endswith("_whole")]
    figures |= {name: max(figures[name + suffix] for suffix in FRAGMENTS) for name in names}
    if object_store.store_binary() is not None:
        with _store(work / "store"):
            lake = Lake.open(f"{object_store.new_bucket()}/lake", create=True)
            figures |= _by_size(lake, (sizes[0], sizes[-1]), 1, repeats, "_s3")
    return figures


def _by_size(lake: Lake, sizes: Sequence[int], fragments: int, repeats: int, suffix: str) -> Figures:
    """Milliseconds of metadata for a run's first slide and for the next ones, at the largest size; their growth."""
    first, then = [], []
    for before, size in pairwise((0, *sizes)):
        big_lake.grow(lake, before, size, fragments=fragments, rows=ROWS // fragments)
        _tell(f"{lake.uri}: {size} slides")
        first.append(1e3 * statistics.median(_metadata_s(lake.uri, size, n, 1) for n in range(repeats)))
        then.append(1e3 * _metadata_s(lake.uri, size, repeats, 1 + repeats))
    found = {
        "ms": first[-1],
        "ms_empty": first[0],
        "next_ms": then[-1],
        "us_per_slide": 1e3 * float(np.polyfit(sizes, first, 1)[0]),
        "next_us_per_slide": 1e3 * float(np.polyfit(sizes, then, 1)[0]),
    }
    return {f"append_metadata_{name}{suffix}": value for name, value in found.items()}


def _metadata_s(uri: str, size: int, number: int, slides: int) -> float:
    """Seconds of all but writing rows, of the last of some slides that one process adds."""
    lake = Lake.open(uri)
    taken = []
    for n in range(slides):
        added = ADDED + 1_000 * size + 100 * number + n
        rows = pa.Table.from_batches([big_lake.small_rows(added, 1, 2)])
        provenance, refused = big_lake.record(added), pa.Table.from_pylist(big_lake.rejections(added))
        began = time.perf_counter()
        attempt = lake.begin(big_lake.slide_name(added), source_digest="a", settings_digest="b", source="benchmark")
        fragments = [attempt.pairs.write(rows) for _ in range(RUNS)]
        attempt.stage(provenance, fragments, refused)
        lake.publish([attempt])
        taken.append(time.perf_counter() - began)
    return taken[0] if slides == 1 else statistics.median(taken[1:])


def _ratio(big: Path, empty: Path, slide: list[pa.Table], repeats: int) -> float:
    """The median of the ratios of times to add a slide of real size to both lakes, one after the other.

    Each empty lake is a new one, and all are removed at the end: pages that a removed file leaves are quicker to write
    to than others, and only one side would have them.
    """
    numbers, empties = iter(range(2 * ADDED, 3 * ADDED)), count()

    def add(place: Path) -> float:
        lake = Lake.open(place, create=True)
        taken = seconds(lambda: _add(lake, next(numbers), slide))
        os.sync()  # what one way leaves to be written must not slow the other
        return taken

    def to_empty() -> float:
        place = empty / str(next(empties))
        Lake.open(place, create=True)
        return add(place)

    shutil.rmtree(empty, ignore_errors=True)
    taken = interleaved({"big": lambda: add(big), "empty": to_empty}, repeats)
    shutil.rmtree(empty)
    _tell(", ".join(f"{name}: {statistics.median(times):.2f} s" for name, times in taken.items()))
    return median_ratio(taken["big"], taken["empty"])


def _add(lake: Lake, number: int, slide: list[pa.Table]) -> None:
    attempt = lake.begin(big_lake.slide_name(number), source_digest="a", settings_digest="b", source="benchmark")
    fragments = [attempt.pairs.write(part) for part in slide]
    attempt.stage(big_lake.record(number), fragments, pa.Table.from_pylist(big_lake.rejections(number)))
    lake.publish([attempt])


def _slide(spots: int) -> list[pa.Table]:
    """The pairs of one slide, in runs: random bytes for pictures (a JPEG does not shrink either), sorted gene ids."""
    random = np.random.default_rng(7)
    parts = []
    for run in range(RUNS):
        n = spots // RUNS
        small = pa.Table.from_batches([big_lake.small_rows(run, 1, n)])
        genes = np.sort(random.integers(0, 60_000, (n, GENES), dtype=np.int32), axis=1).ravel()
        counts = random.poisson(2.0, n * GENES).astype(np.float32) + 1
        offsets = np.arange(n + 1, dtype=np.int32) * GENES
        pictures = [pa.array([random.bytes(PICTURE_BYTES) for _ in range(n)], pa.binary()) for _ in range(2)]
        sentence = pa.array([" ".join(f"GENE{g}" for g in genes[i * GENES : i * GENES + 50]) for i in range(n)])
        made = {
            "spot_image": pictures[0],
            "niche_image": pictures[1],
            "sentence": sentence,
            "niche_sentence": sentence,
            "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(genes)),
            "counts": pa.ListArray.from_arrays(offsets, pa.array(counts)),
        }
        columns = [made.get(name, small[name]) for name in PAIRS.names]
        parts.append(pa.table(columns, names=PAIRS.names))
    return parts


def _missing(place: Path) -> float:
    """Pairs that the catalogue counts and a scan does not bring back (a spreadsheet ends at 1,048,575)."""
    snapshot = Lake.open(place).at()
    counted = sum(snapshot.slides()["n_pairs"].to_pylist())
    found = sum(batch.num_rows for batch in snapshot.pairs(["barcode"]))
    _tell(f"{found} of {counted} pairs read back")
    return float(counted - found)


@contextmanager
def _store(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before = dict(os.environ)
    with object_store.running_store(folder) as endpoint:
        os.environ.update(object_store.environment(endpoint))
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(measure, __doc__)
