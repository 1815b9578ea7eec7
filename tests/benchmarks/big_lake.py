"""A lake of thousands of simulated slides, made in a minute: rows as real ones are, pairs of a few bytes.

What adding a slide costs depends on how much the tables list, not on what the pictures show. So every slide has its
own fragments and a catalogue row of real width (sketch, hash, scales, flags, 3 to 5 rejections), and its pairs hold an
id, a barcode and three genes. Most of it is committed in bulk; the last slides are ingested one by one, so that the
logs end as those of a lake that grew, with small files and commits since the last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.lake import Fragment, Lake
from histolake.platform.schemas import PAIRS, REJECTIONS

__all__ = ["ONE_BY_ONE", "grow", "ingest_one", "record", "rejections", "small_rows"]

ONE_BY_ONE = 40  # slides that are ingested by themselves after the bulk
BULK = 1_000  # slides a bulk commit
WHEN = datetime(2026, 1, 1, tzinfo=UTC)
RULES = ("min_genes", "min_counts", "off_image", "duplicate_spot", "min_tissue")


def slide_name(number: int) -> str:
    """The slide_id of a simulated slide."""
    return f"simulated/section-{number:06d}"


def ingest_name(number: int) -> str:
    """Its ingest_id, as random to look at as a real one."""
    return hashlib.sha256(f"ingest {number}".encode()).hexdigest()[:32]


def record(number: int) -> dict[str, Any]:
    """The provenance of a slide: every column as wide as a real one."""
    random = np.random.default_rng(number)
    said = {"organ": "breast", "patient": f"P{number // 3}", "study": f"GSE{number // 30}", "licence": "CC BY 4.0"}
    return {
        "cohort": "simulated",
        "section": f"section-{number:06d}",
        "simulated": True,
        "flags": ["low_resolution", "image_reduced"][: number % 3],
        "source": f"s3://cohort/raw/study-{number // 30}/section-{number:06d}/outs",
        "reader": "space-ranger",
        "accession": f"GSM{5_000_000 + number}",
        **said,
        "species": "human",
        "disease": "invasive ductal carcinoma",
        "technology": "Visium",
        "expression_unit": "counts",
        "um_per_px": 0.5 + random.random() / 10,
        "scale_from": "pitch",
        "scales": [{"origin": "pitch", "um_per_px": 0.5}, {"origin": "fiducial", "um_per_px": 0.51}],
        "image": f"s3://cohort/raw/study-{number // 30}/section-{number:06d}/image.tif",
        "image_width_px": 24_000,
        "image_height_px": 23_500,
        "spot_diameter_um": 55.0,
        "pitch_um": 100.0,
        "spot_um": 55.0,
        "niche_um": 255.0,
        "image_hash": random.bytes(32).hex(),
        "profile_sketch": np.sort(random.integers(-(2**63), 2**63 - 1, 64)).tolist(),
        "look_alikes": [],
        "given": [{"column": name, "value": value} for name, value in sorted(said.items())],
        "n_spots": 5_005,
    }


def rejections(number: int) -> list[dict[str, Any]]:
    """3 to 5 refused spots of a slide, without its ids."""
    return [
        {
            "source": f"s3://cohort/raw/study-{number // 30}/section-{number:06d}/outs",
            "barcode": f"AAACAAGTATCTC{number:06d}{n}-1",
            "x_px": 1_000.0 + n,
            "y_px": 2_000.0 + number,
            "rule": RULES[n],
            "figure": float(n),
            "limit": 200.0,
            "file": f"s3://cohort/raw/study-{number // 30}/section-{number:06d}/outs/filtered_feature_bc_matrix.h5",
            "reason": f"{n} genes are expressed where {RULES[n]} asks for 200.",
        }
        for n in range(3 + number % 3)
    ]


def small_rows(first: int, slides: int, rows: int) -> pa.RecordBatch:
    """Pairs of some slides after each other, `rows` each, small as can be."""
    numbers = np.repeat(np.arange(first, first + slides), rows)
    n = len(numbers)
    ids = np.zeros((n, 2), dtype=np.int64)
    ids[:, 0], ids[:, 1] = numbers, np.tile(np.arange(rows), slides)
    owner = pa.array(np.repeat(np.arange(slides), rows))
    names = {
        "ingest_id": pa.array([ingest_name(i) for i in range(first, first + slides)]).take(owner),
        "slide_id": pa.array([slide_name(i) for i in range(first, first + slides)]).take(owner),
        "barcode": pa.array(np.char.add("spot-", ids[:, 1].astype(str))),
        "pair_id": pa.Array.from_buffers(pa.binary(16), n, [None, pa.py_buffer(ids.tobytes())]),
        "gene_ids": pa.ListArray.from_arrays(np.arange(n + 1) * 3, pa.array(np.tile([1, 5, 9], n), pa.int32())),
        "counts": pa.ListArray.from_arrays(np.arange(n + 1) * 3, pa.array(np.tile([1, 2, 3], n), pa.float32())),
    }
    columns = [names[f.name].cast(f.type) if f.name in names else pa.nulls(n, f.type) for f in PAIRS]
    return pa.RecordBatch.from_arrays(columns, schema=PAIRS)


def grow(lake: Lake, first: int, last: int, *, fragments: int, rows: int) -> None:
    """Add the slides [first, last), `fragments` fragments of `rows` pairs each."""
    bulk = max(first, last - ONE_BY_ONE)
    for start in range(first, bulk, BULK):
        _add_bulk(lake, start, min(start + BULK, bulk), fragments, rows)
    for number in range(bulk, last):
        ingest_one(lake, number, fragments=fragments, rows=rows)


def _add_bulk(lake: Lake, first: int, last: int, fragments: int, rows: int) -> None:
    from lance.fragment import write_fragments

    batches = (small_rows(n, min(n + 100, last) - n, fragments * rows) for n in range(first, last, 100))
    made = write_fragments(
        pa.RecordBatchReader.from_batches(PAIRS, batches),
        lake.pairs.location.uri,
        schema=PAIRS,
        mode="append",
        max_rows_per_file=rows,
        max_rows_per_group=rows,
        storage_options=lake.pairs.location.lance_options(),
    )
    parts = [Fragment(metadata=json.dumps(one.to_json()), rows=one.physical_rows) for one in made]
    located = lake.pairs.append(parts)
    numbers = range(first, last)
    refused = [
        {"ingest_id": ingest_name(n), "slide_id": slide_name(n), **row} for n in numbers for row in rejections(n)
    ]
    lake.catalog.append("rejections", pa.Table.from_pylist(refused, schema=REJECTIONS))

    def make(version: int, live: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
        assert not any(live.values())
        return [
            {
                **record(n),
                "slide_id": slide_name(n),
                "ingest_id": ingest_name(n),
                "published_in": version,
                "retired_in": None,
                "status": "published",
                "n_pairs": fragments * rows,
                "n_rejections": 3 + n % 3,
                "fragments": located[(n - first) * fragments : (n - first + 1) * fragments],
                "source_digest": hashlib.sha256(f"source {n}".encode()).hexdigest(),
                "settings_digest": hashlib.sha256(b"settings").hexdigest(),
                "when": WHEN,
                "software": "histolake simulated",
            }
            for n in numbers
        ]

    lake.catalog.commit([slide_name(n) for n in numbers], make, [ingest_name(n) for n in numbers])


def ingest_one(lake: Lake, number: int, *, fragments: int, rows: int) -> int:
    """Ingest one slide as an ingest does; returns the lake version."""
    attempt = lake.begin(
        slide_name(number),
        source_digest=hashlib.sha256(f"source {number}".encode()).hexdigest(),
        settings_digest=hashlib.sha256(b"settings").hexdigest(),
        source="simulated",
    )
    table = pa.Table.from_batches([small_rows(number, 1, rows)])
    written = [attempt.pairs.write(table) for _ in range(fragments)]
    attempt.stage(record(number), written, pa.Table.from_pylist(rejections(number)))
    return lake.publish([attempt])
