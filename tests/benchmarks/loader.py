"""Reading pairs for training, against decoding alone, a WebDataset loader, and a folder of files.

    python -m tests.benchmarks.loader [--work DIR] [--out FILE.json] [--quick]

A pair is a picture of 224 px (JPEG, about 14 KB) and a sentence of 50 symbols, in batches of 64; `loaders` says what
each side does. All are measured at 1 decoder (thread or process) and at 2, and are confined to as many cores, with
everything that they do: threads that read, the process that waits for batches, pickling between processes. Each lives
in a process of its own and they take turns, for 5 s in each of 5 rounds; ratios are of measurements of the same round,
and their median counts. Ratios above 1 are in our favour. `_disk` and `_s3` are where the lake is (SeaweedFS on
loopback; all is in the machine's memory). The store must have a core that no reader has, so S3 is measured with fewer
decoders than there are cores.

- `loader_vs_decode`: pairs a second that `PairReader` delivers, tokens included, over the same codec decoding pictures
  that are in memory and copying them into a batch that is used again and again, one process a core: no reading, no
  shuffling, no sentences, no new memory. `_with_tokens`: where that loop tokenises as many sentences too. `_straight`:
  where it decodes into the batch without a copy, as ours does. `_flips`: where ours turns pictures at random on the
  same cores (`Batch.to("cpu")`; on a GPU it is done there). The plain figure is the worst of the places and decoders
  without these.
- `loader_vs_webdataset`: over a WebDataset loader on tar shards of the same pairs on disk. `loader_vs_files`: over
  torch's DataLoader on a JPEG and a text file a pair. As many processes as we have threads; with one, also decoding in
  the process that asks, which spares the copies between processes (`_inline`). The worst counts.
- `profile_pairs_per_s`: what ST-Align reads, both pictures (28 px and 224 px) and both profiles over 3,000 genes; a
  plain rate.
- `seconds_to_first_batch`: from opening the lake to the first batch, imports and tokenizer apart; `_late`: of step
  100,000. `peak_mb`: memory of our process at its highest, libraries and all.
"""

from __future__ import annotations

import os
import statistics
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests import object_store
from tests.benchmarks import loaders, many_pairs, store
from tests.benchmarks.alone import Figures, interleaved, main, median_ratio
from tests.benchmarks.streams import Stream, Together

__all__ = ["measure"]

DECODERS = (1, 2)
LATE = 100_000  # a step


@dataclass(frozen=True)
class Size:
    """How much is read."""

    slides: int = 10
    spots: int = 2_048
    rounds: int = 5
    round_s: float = 5.0


def measure(work: Path, quick: bool = False) -> Figures:
    """All figures; keys as in the module's docstring, and rates in pairs a second."""
    size = Size(slides=2, spots=600, rounds=1, round_s=0.3) if quick else Size()
    cores = sorted(os.sched_getaffinity(0))
    figures: Figures = {}
    with ExitStack() as stack:
        many_pairs.write(work, slides=size.slides, spots=size.spots)
        places = {"disk": str(work / "lake")}
        loaders.write_others(work, places["disk"])
        if object_store.store_binary() is not None and not quick:
            places["s3"] = store.uploaded(stack, work, ["lake"]).join("lake").uri
        for decoders in DECODERS[:1] if quick else DECODERS:
            if decoders <= len(cores):
                here = {place: root for place, root in places.items() if place == "disk" or decoders < len(cores)}
                figures |= _compared(work, here, cores[:decoders], size)
    for key, worst in (("seconds_to_first_batch", max), ("peak_mb", max), ("loader_vs_decode", min)):
        settings = [f"{key}_{place}_{decoders}" for place in ("disk", "s3") for decoders in DECODERS]
        figures[key] = worst(figures[setting] for setting in settings if setting in figures)
    for key in ("loader_vs_webdataset", "loader_vs_files", "profile_pairs_per_s"):
        figures[key] = min(value for name, value in figures.items() if name.startswith(f"{key}_"))
    return figures


def _compared(work: Path, places: dict[str, str], cores: list[int], size: Size) -> Figures:
    """All loaders on some cores with as many decoders."""
    decoders, disk = len(cores), places["disk"]
    mine = {f"lake_{place}": partial(loaders.ours, root, decoders) for place, root in places.items()}
    mine["lake_disk_flips"] = partial(loaders.ours, disk, decoders, flips=True)
    mine["profile"] = partial(loaders.ours, disk, decoders, st_align=True)
    others = {
        "webdataset": partial(loaders.webdataset, work / "shards"),
        "files": partial(loaders.files, work / "files"),
    }
    each = {name: partial(loader, decoders) for name, loader in others.items()}
    if decoders == 1:
        each |= {f"{name}_inline": partial(loader, 0) for name, loader in others.items()}
    alone = {
        "decode": partial(loaders.bare, disk),
        "decode_with_tokens": partial(loaders.bare, disk, tokens=True),
        "decode_straight": partial(loaders.bare, disk, straight=True),
    }
    one: dict[str, Stream] = {}
    figures: Figures = {}
    with ExitStack() as stack:
        for name, loader in (mine | each).items():
            one[name] = stack.enter_context(Stream(loader, cores=cores))
            figures[f"seconds_to_first_batch_{_setting(name)}_{decoders}"] = one[name].seconds_to_first_batch
        asked = {name: partial(stream.rate, size.round_s) for name, stream in one.items()}
        for name, loader in alone.items():
            some = Together([stack.enter_context(Stream(loader, cores=[core])) for core in cores])
            asked[name] = partial(some.rate, size.round_s)
        rates = interleaved(asked, size.rounds)
        for name in mine:
            figures[f"peak_mb_{_setting(name)}_{decoders}"] = one[name].peak_mb()
    with Stream(partial(loaders.ours, disk, decoders, start=LATE), cores=cores) as late:
        figures[f"seconds_to_first_batch_late_{decoders}"] = late.seconds_to_first_batch
    figures |= {f"{name}_pairs_per_s_{decoders}": statistics.median(found) for name, found in rates.items()}
    for place in places:
        for name in alone:
            figures[f"loader_vs_{name}_{place}_{decoders}"] = median_ratio(rates[f"lake_{place}"], rates[name])
    figures[f"loader_vs_decode_flips_disk_{decoders}"] = median_ratio(rates["lake_disk_flips"], rates["decode"])
    for name in each:
        other, _, kind = name.partition("_")
        key = f"loader_vs_{other}_disk_{decoders}{kind and '_' + kind}"
        figures[key] = median_ratio(rates["lake_disk"], rates[name])
    return figures


def _setting(name: str) -> str:
    """The name of a loader without what all of ours have in common."""
    return name.removeprefix("lake_")


if __name__ == "__main__":
    main(measure, "Reading pairs for training, against decoding alone, WebDataset and a folder of files.")
