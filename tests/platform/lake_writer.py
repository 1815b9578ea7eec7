"""Ingests one generated slide into a lake, and can be killed at a step: what the crash tests run as a process.

    python -P lake_writer.py LAKE SLIDE DIGEST ROWS [KILL_AFTER]

KILL_AFTER is "module:Class.method": the process kills itself (SIGKILL, nothing is cleaned up) right after that call.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import signal
import sys
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from histolake.platform.lake import Attempt, Lake
from histolake.platform.schemas import PAIRS


def rows(slide_id: str, digest: str, count: int, first: int = 0) -> pa.Table:
    """Pairs of plain bytes, a pure function of the slide, its digest and the row's number."""
    made = []
    for number in range(first, first + count):
        random = np.random.default_rng([number, *hashlib.sha256(f"{slide_id}{digest}".encode()).digest()])
        genes = np.sort(random.choice(20_000, size=30, replace=False))
        made.append(
            {
                **dict.fromkeys(PAIRS.names),
                "pair_id": _pair_id(slide_id, number),
                "ingest_id": "",
                "slide_id": slide_id,
                "barcode": f"{slide_id}-spot-{number}",
                "x_um": float(number),
                "spot_image": b"\xff\xd8\xff" + random.bytes(3000) + b"\xff\xd9",  # framed as a JPEG
                "sentence": f"GENE{number} ACTB",
                "gene_ids": genes.tolist(),
                "counts": random.integers(1, 50, size=30).astype(float).tolist(),
                "niche": [_pair_id(slide_id, other) for other in range(4) if other != number][:3],
            }
        )
    return pa.Table.from_pylist(made, schema=PAIRS)


def _pair_id(slide_id: str, number: int) -> bytes:
    return hashlib.sha256(f"{slide_id}\0{number}".encode()).digest()[:16]


def ingest(
    lake: Lake,
    slide_id: str,
    digest: str,
    count: int,
    *,
    patient: str = "P1",
    refused: int = 2,
    image: str | None = None,
    whole: bool = False,
) -> int:
    """Ingest a slide in two fragments; returns the lake version. A `whole` one brings a gene that the lake lacks and a
    picture, too."""
    return lake.publish([attempt(lake, slide_id, digest, count, patient, refused, image, whole)])


def ingest_all(lake: Lake, tasks: Sequence[tuple[str, str, int]]) -> int:
    """Ingest whole slides (slide_id, digest, number of pairs) in one commit."""
    return lake.publish([attempt(lake, *task, whole=True) for task in tasks])


def attempt(
    lake: Lake,
    slide_id: str,
    digest: str,
    count: int,
    patient: str = "P1",
    refused: int = 2,
    image: str | None = None,
    whole: bool = False,
) -> Attempt:
    """All but the last commit."""
    begun = lake.begin(slide_id, source_digest=digest, settings_digest="plain", source=f"generated:{slide_id}")
    if begun.state == "new":
        half = count // 2
        if whole:
            lake.resolve_genes([f"NEW-{slide_id}-{digest}"], allocate=True)
            lake.images.write(lake.images.picture(begun.ingest_id), lambda path: path.write_bytes(b"a picture"))
        fragments = [
            begun.pairs.write(rows(slide_id, digest, half)),
            begun.pairs.write(rows(slide_id, digest, count - half, first=half)),
        ]
        rejections = pa.Table.from_pylist(
            [
                {
                    "barcode": f"{slide_id}-bad-{n}",
                    "rule": "min_genes",
                    "figure": 3.0,
                    "limit": 200.0,
                    "reason": "few genes",
                }
                for n in range(refused)
            ]
        )
        record = {"cohort": "c", "section": slide_id, "study": "study", "patient": patient, "n_spots": count + refused}
        record |= {"image": image} if image else {}
        begun.stage(record, fragments, rejections)
    return begun


def kill_after(target: str) -> None:
    """Make this process die, as if its machine had lost power, after a method was called."""
    module, _, path = target.partition(":")
    owner, _, method = path.partition(".")
    kind = getattr(importlib.import_module(module), owner)
    original = getattr(kind, method)

    def dying(*args: object, **kwargs: object) -> None:
        original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(kind, method, dying)


if __name__ == "__main__":
    uri, slide, source_digest, how_many, *rest = sys.argv[1:]
    opened = Lake.open(uri, create=True)
    if rest:
        kill_after(rest[0])
    print(ingest(opened, slide, source_digest, int(how_many)))
