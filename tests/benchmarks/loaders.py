"""The loaders that are compared: ours, the bare decoder, WebDataset, and a folder of files. Each goes on for ever and
yields how many pairs a batch brought (see `streams`).

All give the same: 64 pictures of 224 px as a uint8 tensor (64, 224, 224, 3) and their sentences as tokens (64, 76),
decoded by simplejpeg, tokenised by the same tokenizer, which remembers symbols. The others' are tuned as their users
tune them: samples are put together where they are decoded, straight into shared memory, workers stay alive, four
batches are ready ahead, no epoch ends.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["bare", "files", "ours", "webdataset", "write_others"]

BATCH, PX, CONTEXT = 64, 224, 76
WINDOW_ROWS = 4_096  # rows that are shuffled among themselves, here and there
SHARD_ROWS = 1_000
AHEAD = 4  # batches that a worker of torch's DataLoader prepares
HELD = 2_048  # pairs of the bare decoder, in memory
ST_ALIGN_GENES = tuple(range(0, 30_000, 10))


def ours(root: str, decoders: int, *, flips: bool = False, st_align: bool = False, start: int = 0) -> Iterator[int]:
    """`PairReader` on a lake: OmiCLIP's inputs, or ST-Align's (both pictures, and both profiles over 3,000 genes)."""
    from histolake.platform.lake import Lake
    from histolake.platform.splits import Selection
    from histolake.training.inputs import Input, Picture, Profile, Sentence
    from histolake.training.reading import Augmentation, PairReader, ReadOptions

    inputs: list[Input] = [Picture(column="spot_image", px=PX)]
    inputs.append(Sentence(column="sentence", tokenizer="bpe", context=CONTEXT))
    if st_align:
        inputs = [Picture(column="spot_image", px=28), Picture(column="niche_image", px=PX)]
        inputs += [Profile(of=of, gene_ids=ST_ALIGN_GENES) for of in ("spot", "niche")]
    tokenizers = {} if st_align else {"sentence": _tokenizer()}
    yield 0
    snapshot = Lake.open(root).at()
    reader = PairReader(
        Selection(snapshot, snapshot.slides()["slide_id"].to_pylist()),
        inputs,
        ReadOptions(global_batch=BATCH, window_rows=WINDOW_ROWS, decoders=decoders),
        tokenizers=tokenizers,
        augmentation=Augmentation() if flips else None,
    )
    for batch in reader.batches(start, 1 << 40):
        yield len(batch.to("cpu").pair_ids)


def bare(root: str, *, tokens: bool = False, straight: bool = False) -> Iterator[int]:
    """Decode pictures that are in memory and copy them into one batch over and over (or decode `straight` into it), and
    nothing else; with `tokens`, their sentences too."""
    import simplejpeg

    from histolake.platform.lake import Lake

    snapshot = Lake.open(root).at()
    rows = next(snapshot.pairs(["spot_image", "sentence"], batch_rows=HELD))
    pictures, sentences = rows["spot_image"].to_pylist(), rows["sentence"].to_pylist()
    tokenizer = _tokenizer() if tokens else None
    image_BHWC, tokens_BL = np.zeros((BATCH, PX, PX, 3), np.uint8), np.zeros((BATCH, CONTEXT), np.int64)
    yield 0
    for first in cycle(range(0, len(pictures) - BATCH + 1, BATCH)):
        for row, picture in enumerate(pictures[first : first + BATCH]):
            if straight:
                simplejpeg.decode_jpeg(picture, colorspace="RGB", buffer=image_BHWC[row])
            else:
                image_BHWC[row] = simplejpeg.decode_jpeg(picture, colorspace="RGB")
        if tokenizer is not None:
            tokens_BL[:] = tokenizer(sentences[first : first + BATCH])
        yield BATCH


def webdataset(folder: Path, workers: int) -> Iterator[int]:
    """Shards drawn at random, a shuffle buffer of as many rows as our window (over all workers), as open_clip does."""
    import webdataset as wds

    collate = _Collate()
    yield 0
    held = WINDOW_ROWS // max(workers, 1)
    pipeline = wds.DataPipeline(
        wds.ResampledShards(sorted(str(shard) for shard in folder.glob("*.tar"))),
        wds.tarfile_to_samples(),
        wds.shuffle(held, initial=held),
        wds.map(lambda sample: (_decoded(sample["jpg"]), sample["txt"].decode())),
        wds.batched(BATCH, collation_fn=collate, partial=False),
    )
    for image_BHWC, _ in wds.WebLoader(pipeline, batch_size=None, **_workers(workers)):
        yield len(image_BHWC)


def files(folder: Path, workers: int) -> Iterator[int]:
    """A Dataset of one JPEG and one text file a pair, drawn at random."""
    from torch.utils.data import DataLoader, Dataset, RandomSampler

    class Folder(Dataset[Any]):
        def __init__(self, pictures: Sequence[Path]) -> None:
            self._stems = [str(picture)[: -len(".jpg")] for picture in pictures]

        def __len__(self) -> int:
            return len(self._stems)

        def __getitem__(self, index: int) -> tuple[Any, str]:
            stem = self._stems[index]  # a Path a file would cost time that its users need not spend
            with open(f"{stem}.jpg", "rb") as picture, open(f"{stem}.txt") as sentence:  # noqa: PTH123
                return _decoded(picture.read()), sentence.read()

    collate = _Collate()
    yield 0
    pairs = Folder(sorted(folder.glob("*/*.jpg")))
    sampler = RandomSampler(pairs, replacement=True, num_samples=1 << 40)
    for image_BHWC, _ in DataLoader(pairs, batch_size=BATCH, sampler=sampler, collate_fn=collate, **_workers(workers)):
        yield len(image_BHWC)


class _Collate:
    """Samples as a batch; in a worker the pictures are copied once, into memory that is shared."""

    def __init__(self) -> None:
        from torch.utils.data import default_collate

        self._tokenizer, self._default = _tokenizer(), default_collate

    def __call__(self, samples: Sequence[tuple[Any, str]]) -> tuple[Any, Any]:
        import torch

        pictures, sentences = zip(*samples, strict=True)
        return self._default(list(pictures)), torch.from_numpy(self._tokenizer(sentences))


def _tokenizer() -> Any:
    from histolake.training.tokenizers import make_tokenizer

    return make_tokenizer("bpe", CONTEXT)


def _decoded(picture: bytes) -> Any:
    import simplejpeg
    import torch

    return torch.from_numpy(simplejpeg.decode_jpeg(picture, colorspace="RGB"))


def _workers(workers: int) -> dict[str, Any]:
    if not workers:  # in the process that asks
        return {"num_workers": 0}
    how = {"num_workers": workers, "prefetch_factor": AHEAD, "persistent_workers": True}
    return how | {"multiprocessing_context": "fork"}  # torch's default, but in processes that were spawned themselves


def write_others(work: Path, root: str) -> None:
    """A lake's pairs as shards and as files, unless they are there."""
    from histolake.platform.lake import Lake

    if (work / "files").exists():
        return
    (work / "shards").mkdir(exist_ok=True)
    snapshot = Lake.open(root).at()
    for number, rows in enumerate(snapshot.pairs(["spot_image", "sentence"], batch_rows=SHARD_ROWS)):
        folder = work / "files" / f"{number:06d}"
        folder.mkdir(parents=True)
        with tarfile.open(work / "shards" / f"{number:06d}.tar", "w") as tar:
            for row, pair in enumerate(rows.to_pylist()):
                for kind, data in (("jpg", pair["spot_image"]), ("txt", pair["sentence"].encode())):
                    member = tarfile.TarInfo(f"{number:06d}-{row:06d}.{kind}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                    (folder / f"{row:06d}.{kind}").write_bytes(data)
