"""Reading pairs from a lake, against the same rows in tuned Parquet and in WebDataset shards.

    python -m tests.benchmarks.reading [--work DIR] [--out FILE.json] [--quick]

Rates over those of the others, so above 1 the lake is faster: `random_vs_*` are batches of 256 pairs drawn at random
from all, `scan_vs_*` all pairs in order. Each in four settings, the worst of which stands under the plain name:
`disk` and `s3` (SeaweedFS on loopback; both are in the memory of the machine), and with `_counts` where the sparse
profile is read besides picture and sentence. What is asked for is the same everywhere: pictures as bytes, sentences as
text, profiles as NumPy arrays.

- The lake: `Snapshot.take` and `Snapshot.pairs`; pairs as the ingest writes them, a fragment a slide.
- Parquet: one file, every size of row groups of `ROW_GROUPS` tried for both ways of reading and the best one taken for
  each (on disk; it is taken on S3 too), counts compressed by Zstandard, pictures not at all, column chunks read ahead
  (`pre_buffer`). pyarrow reads whole column chunks of a row group: it does not seek to a page.
- WebDataset: shards of 1,000. A tar file cannot be read at random. `_index`: with an index of our own of where each
  member lies, made once and not counted, and one read a member (S3: a request each, 16 at a time). `_shuffle`: as
  WebDataset means it, a buffer of 1,000 samples that is filled in order: not a draw from all pairs, but what its users
  do. The worse for us of the two counts.
"""

from __future__ import annotations

import io
import statistics
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tests import object_store
from tests.benchmarks import many_pairs, store
from tests.benchmarks.alone import Figures, interleaved, main

from histolake.platform.lake import Lake
from histolake.platform.storage import Location

__all__ = ["measure"]

PLAIN, COUNTS = ["spot_image", "sentence"], ["spot_image", "sentence", "gene_ids", "counts"]
ROW_GROUPS = (32, 128, 512, 2048)
BATCH = 256
SHARD_ROWS = 1_000
ROUNDS, ROUND_S = 3, 3.0
READERS = 16  # requests under way at once, where a way of reading makes one a member

Way = Callable[[], int]  # reads some pairs and says how many


@dataclass(frozen=True)
class Size:
    """How much is read."""

    slides: int = 10
    spots: int = 2_048
    rounds: int = ROUNDS
    round_s: float = ROUND_S
    row_groups: tuple[int, ...] = ROW_GROUPS


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring, and rates in pairs a second."""
    size = Size(slides=2, spots=600, rounds=1, round_s=0.15, row_groups=(128,)) if quick else Size()
    figures: Figures = {}
    with ExitStack() as stack:
        many_pairs.write(work, slides=size.slides, spots=size.spots)
        _write_others(work, size)
        best = {way: _best_row_group(work, way, size) for way in ("random", "scan")}
        figures |= {f"parquet_row_group_{way}": float(rows) for way, rows in best.items()}
        places = {"disk": Location.parse(str(work))}
        if object_store.store_binary() is not None and not quick:
            files = [f"rows-{rows}.parquet" for rows in sorted(set(best.values()))]
            places["s3"] = store.uploaded(stack, work, ["lake", "shards", "shards-counts", *files])
        for place, root in places.items():
            for columns, name in ((PLAIN, place), (COUNTS, f"{place}_counts")):
                figures |= _compared(root, columns, best, size, name)
    for way in ("random", "scan"):
        for other in ("parquet", "webdataset"):
            key = f"{way}_vs_{other}"
            figures[key] = min(value for name, value in figures.items() if name.startswith(f"{key}_"))
    return figures


def _compared(root: Location, columns: list[str], best: dict[str, int], size: Size, name: str) -> Figures:
    """Rates of every way of reading from one place, and ratios of those taken together."""
    ours, parquet, shards = _Ours(root), _Parquet(root, best), _Shards(root, counts=columns is COUNTS)
    ways: dict[str, dict[str, Way]] = {
        "random": {
            "lake": partial(ours.random, columns),
            "parquet": partial(parquet.random, columns),
            "webdataset_index": shards.random,
            "webdataset_shuffle": shards.shuffled,
        },
        "scan": {
            "lake": partial(ours.scan, columns),
            "parquet": partial(parquet.scan, columns),
            "webdataset": shards.scan,
        },
    }
    figures: Figures = {}
    for way, readers in ways.items():
        at_least_s = size.round_s if way == "random" else 0.0
        timed = {reader: partial(_rate, read, at_least_s) for reader, read in readers.items()}
        for read in readers.values():
            read()  # opened, and in memory
        rates = interleaved(timed, size.rounds)
        figures |= {f"{way}_pairs_per_s_{reader}_{name}": statistics.median(r) for reader, r in rates.items()}
        for reader in readers:
            if reader != "lake":
                ratio = statistics.median(a / b for a, b in zip(rates["lake"], rates[reader], strict=True))
                other, _, kind = reader.partition("_")
                figures[f"{way}_vs_{other}_{name}{kind and '_' + kind}"] = ratio
    return figures


def _rate(read: Way, at_least_s: float) -> float:
    """Pairs a second of one or more calls."""
    began, done = time.perf_counter(), 0
    while not done or time.perf_counter() - began < at_least_s:
        done += read()
    return done / (time.perf_counter() - began)


# -- the lake ---------------------------------------------------------------------------------------------------------


class _Ours:
    def __init__(self, root: Location) -> None:
        self._snapshot = Lake.open(root.join("lake")).at()
        self._chunks = self._snapshot.chunks(rows=256)
        rows = [chunk.rows for chunk in self._chunks]
        self._places = np.array([(c, r) for c, n in enumerate(rows) for r in range(n)])
        self._rng = np.random.default_rng(1)

    def random(self, columns: list[str]) -> int:
        drawn = self._places[self._rng.integers(0, len(self._places), BATCH)]
        return _used(self._snapshot.take(self._chunks, drawn, columns))

    def scan(self, columns: list[str]) -> int:
        return sum(_used(batch) for batch in self._snapshot.pairs(columns))


def _used(rows: pa.Table | pa.RecordBatch) -> int:
    """What came as a model's code wants it: bytes, text, arrays; how many rows."""
    for name in rows.schema.names:
        column = rows.column(name)
        pieces = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        for piece in pieces:
            if pa.types.is_list(piece.type) or pa.types.is_large_list(piece.type):
                values, offsets = piece.values.to_numpy(), piece.offsets.to_numpy()
                _ = [values[a:b] for a, b in pairwise(offsets)]
            else:
                _ = piece.to_pylist()
    return int(rows.num_rows)


# -- Parquet ----------------------------------------------------------------------------------------------------------


class _Parquet:
    def __init__(self, root: Location, best: dict[str, int]) -> None:
        files = {}
        for rows in set(best.values()):
            place = root.join(f"rows-{rows}.parquet")
            filesystem, path = place.filesystem()
            files[rows] = pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)
        self._random, self._scan, self._rows = files[best["random"]], files[best["scan"]], best["random"]
        self._total = self._random.metadata.num_rows
        self._rng = np.random.default_rng(1)

    def random(self, columns: list[str]) -> int:
        drawn = self._rng.integers(0, self._total, BATCH)
        groups, number = np.unique(drawn // self._rows, return_inverse=True)
        found = self._random.read_row_groups(groups.tolist(), columns=columns)
        return _used(found.take(pa.array(number * self._rows + drawn % self._rows)))

    def scan(self, columns: list[str]) -> int:
        return sum(_used(batch) for batch in self._scan.iter_batches(batch_size=1024, columns=columns))


def _best_row_group(work: Path, way: str, size: Size) -> int:
    """The size of row groups with which Parquet on disk is fastest."""
    root = Location.parse(str(work))
    files = {rows: _Parquet(root, {"random": rows, "scan": rows}) for rows in size.row_groups}
    reads = {str(rows): partial(getattr(file, way), PLAIN) for rows, file in files.items()}
    for read in reads.values():
        read()
    at_least_s = size.round_s / 2 if way == "random" else 0.0
    rates = interleaved({rows: partial(_rate, read, at_least_s) for rows, read in reads.items()}, min(size.rounds, 3))
    return int(max(rates, key=lambda rows: statistics.median(rates[rows])))


# -- WebDataset -------------------------------------------------------------------------------------------------------


class _Shards:
    def __init__(self, root: Location, *, counts: bool) -> None:
        folder = root.join("shards-counts" if counts else "shards")
        self._places = sorted(folder.list(), key=lambda place: place.name)
        self._index = [member for place in self._places for member in _members(place)]
        self._rng = np.random.default_rng(1)
        self._pool = ThreadPoolExecutor(READERS)
        self._shuffled: Iterator[Any] | None = None
        self._streams = {place.uri: _opened(place) for place in self._places if not place.is_remote}

    def random(self) -> int:
        """A batch by the index: one read a sample, whose members lie one after the other."""
        drawn = [self._index[i] for i in self._rng.integers(0, len(self._index), BATCH)]
        if drawn[0].place.is_remote:
            found = list(self._pool.map(self._sample, drawn))
        else:
            found = [self._sample(sample) for sample in drawn]
        return len(found)

    def _sample(self, sample: _Sample) -> list[Any]:
        stream = self._streams.get(sample.place.uri) or _opened(sample.place)
        data = stream.read_at(sample.stop - sample.start, sample.start)
        return [_decoded(name, data[a - sample.start : b - sample.start]) for name, a, b in sample.parts]

    def shuffled(self) -> int:
        """A batch as WebDataset shuffles: the next 256 of an endless stream."""
        if self._shuffled is None:
            self._shuffled = iter(_pipeline(self._places, shuffle=True))
        return len(list(islice(self._shuffled, BATCH)))

    def scan(self) -> int:
        return sum(1 for _ in _pipeline(self._places, shuffle=False))


@dataclass(frozen=True)
class _Sample:
    """Where a sample lies in its shard."""

    place: Location
    start: int
    stop: int
    parts: tuple[tuple[str, int, int], ...]  # name, first byte, end


def _members(place: Location) -> list[_Sample]:
    """The index of a shard."""
    filesystem, path = place.filesystem()
    samples: dict[str, list[tuple[str, int, int]]] = {}
    with filesystem.open_input_file(path) as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            samples.setdefault(key, []).append((name, member.offset_data, member.offset_data + member.size))
    return [_Sample(place, parts[0][1], parts[-1][2], tuple(parts)) for parts in samples.values()]


def _opened(place: Location) -> Any:
    filesystem, path = place.filesystem()
    return filesystem.open_input_file(path)


def _pipeline(places: Sequence[Location], *, shuffle: bool) -> Any:
    import webdataset as wds

    def shards() -> Iterator[dict[str, str]]:
        rng = np.random.default_rng(1)
        while True:
            order = rng.permutation(len(places)) if shuffle else range(len(places))
            yield from ({"url": str(i)} for i in order)
            if not shuffle:
                return

    def opened(urls: Iterator[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for url in urls:
            filesystem, path = places[int(url["url"])].filesystem()
            with filesystem.open_input_stream(path, buffer_size=1 << 20) as stream:
                yield {"url": url["url"], "stream": stream}

    steps: list[Any] = [shards, opened, wds.tariterators.tar_file_expander, wds.tariterators.group_by_keys]
    if shuffle:
        steps.append(wds.shuffle(1000))
    steps.append(wds.map(lambda sample: {k: _decoded(k, v) for k, v in sample.items() if not k.startswith("__")}))
    return wds.DataPipeline(*steps)


def _decoded(name: str, data: bytes) -> Any:
    if name == "txt":
        return bytes(data).decode()
    if name in ("genes", "counts"):
        return np.frombuffer(data, dtype=np.int32 if name == "genes" else np.float32)
    return bytes(data)


# -- the files --------------------------------------------------------------------------------------------------------


def _write_others(work: Path, size: Size) -> None:
    """The lake's rows as Parquet files and as shards, unless they are there."""
    if (work / "shards-counts").exists():
        return
    rows = pa.Table.from_batches(Lake.open(work / "lake").at().pairs(["pair_id", *COUNTS]))
    for row_group in size.row_groups:
        pq.write_table(
            rows,
            work / f"rows-{row_group}.parquet",
            row_group_size=row_group,
            compression={name: "none" if name == "spot_image" else "zstd" for name in _leaves(rows.schema)},
            use_dictionary=["counts.list.element"],
            write_page_index=True,
            write_statistics=False,
        )
    for counts in (False, True):
        folder = work / ("shards-counts" if counts else "shards")
        folder.mkdir()
        for start in range(0, rows.num_rows, SHARD_ROWS):
            with tarfile.open(folder / f"{start // SHARD_ROWS:06d}.tar", "w") as tar:
                for row in rows.slice(start, SHARD_ROWS).to_pylist():
                    _add(tar, row, counts=counts)


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name for f in schema]


def _add(tar: tarfile.TarFile, row: dict[str, Any], *, counts: bool) -> None:
    parts = {"jpg": row["spot_image"], "txt": row["sentence"].encode()}
    if counts:
        parts["genes"] = np.array(row["gene_ids"], np.int32).tobytes()
        parts["counts"] = np.array(row["counts"], np.float32).tobytes()
    for name, data in parts.items():
        member = tarfile.TarInfo(f"{row['pair_id'].hex()}.{name}")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    main(measure, "Reading pairs, against Parquet and WebDataset.")
