"""The tables' schemas: what each column means, with a name and a version in the metadata.

A schema is a promise. A change that a reader of an older lake would notice raises the version, and the tests keep a
small table of every released version that must still be read.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

__all__ = [
    "CORRECTABLE",
    "GENES",
    "LOOK_ALIKE",
    "PAIRS",
    "REJECTIONS",
    "SLIDES",
    "embeddings_schema",
    "schema_name",
    "schema_version",
]

PAIR_ID_BYTES = 16
LOOK_ALIKE = "look_alike"  # the flag of a slide that has look_alikes


def _schema(name: str, version: int, fields: list[pa.Field]) -> pa.Schema:
    return pa.schema(fields, metadata={"histolake.schema": name, "histolake.schema_version": str(version)})


def schema_name(schema: pa.Schema) -> str | None:
    """The histolake name in a schema's metadata, or None."""
    return (schema.metadata or {}).get(b"histolake.schema", b"").decode() or None


def schema_version(schema: pa.Schema) -> int:
    """The histolake version in a schema's metadata; 0 where there is none."""
    return int((schema.metadata or {}).get(b"histolake.schema_version", b"0"))


PAIRS = _schema(
    "pairs",
    1,
    [
        pa.field("pair_id", pa.binary(PAIR_ID_BYTES), nullable=False),  # stable hash of slide and barcode
        pa.field("ingest_id", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("barcode", pa.string(), nullable=False),
        pa.field("array_row", pa.float32()),
        pa.field("array_col", pa.float32()),
        pa.field("x_px", pa.float32()),  # spot centre, full-resolution pixels of the slide's image
        pa.field("y_px", pa.float32()),
        pa.field("x_um", pa.float32()),
        pa.field("y_um", pa.float32()),
        pa.field("spot_image", pa.binary()),  # JPEG, at most 224 px wide, never enlarged
        pa.field("niche_image", pa.binary()),
        pa.field("sentence", pa.string()),
        pa.field("niche_sentence", pa.string()),
        pa.field("gene_ids", pa.list_(pa.int32())),  # sorted
        pa.field("counts", pa.list_(pa.float32())),
        pa.field("niche", pa.list_(pa.binary(PAIR_ID_BYTES))),  # the k nearest other spots, nearest first
        pa.field("n_counts", pa.float32()),
        pa.field("n_genes", pa.float32()),
        pa.field("tissue_fraction", pa.float32()),
        pa.field("focus", pa.float32()),
    ],
)

# The provenance that a curator may correct without touching a pair.
PROVENANCE: list[pa.Field] = [
    pa.field("cohort", pa.string()),
    pa.field("section", pa.string()),
    pa.field("simulated", pa.bool_()),
    pa.field("flags", pa.list_(pa.string())),  # low_resolution, image: none, image_reduced
    pa.field("source", pa.string()),  # the URI that was ingested
    pa.field("reader", pa.string()),
    pa.field("accession", pa.string()),
    pa.field("licence", pa.string()),
    pa.field("study", pa.string()),
    pa.field("patient", pa.string()),
    pa.field("organ", pa.string()),
    pa.field("species", pa.string()),
    pa.field("disease", pa.string()),
    pa.field("technology", pa.string()),
    pa.field("expression_unit", pa.string()),
    pa.field("um_per_px", pa.float64()),
    pa.field("scale_from", pa.string()),  # who said so: stated, pitch, fiducial, image_tag, source
    # every statement of the scale that was found
    pa.field("scales", pa.list_(pa.struct([pa.field("origin", pa.string()), pa.field("um_per_px", pa.float64())]))),
    pa.field("image", pa.string()),
    pa.field("image_width_px", pa.int64()),
    pa.field("image_height_px", pa.int64()),
    pa.field("spot_diameter_um", pa.float64()),
    pa.field("pitch_um", pa.float64()),
    pa.field("spot_um", pa.float64()),  # physical width of the stored patches
    pa.field("niche_um", pa.float64()),
    pa.field("image_hash", pa.string()),  # perceptual hash of the picture, hexadecimal
    pa.field("profile_sketch", pa.list_(pa.int64())),  # the smallest hashes of the spots' profiles
    pa.field("look_alikes", pa.list_(pa.string())),  # slide_ids of slides whose content is likely the same
    # what the curator's metadata table said at the ingest
    pa.field("given", pa.list_(pa.struct([pa.field("column", pa.string()), pa.field("value", pa.string())]))),
]

# Those of them that can be set right without touching a pair; the others are in the pairs.
CORRECTABLE = ("accession", "disease", "licence", "organ", "patient", "study", "technology")

SLIDES = _schema(
    "slides",
    # 1 lacks scale_from, scales, image_hash, profile_sketch, look_alikes, given and corrected, 2 first_published and
    # reverted_to: null there
    3,
    [
        pa.field("slide_id", pa.string()),
        pa.field("ingest_id", pa.string()),  # random, new for every attempt
        pa.field("published_in", pa.int64()),
        pa.field("retired_in", pa.int64()),
        pa.field("status", pa.string()),  # published | refused
        pa.field("n_pairs", pa.int64()),
        pa.field("n_spots", pa.int64()),  # as read, before any was refused
        pa.field("n_rejections", pa.int64()),
        pa.field("fragments", pa.list_(pa.struct([pa.field("id", pa.int64()), pa.field("rows", pa.int64())]))),
        pa.field("source_digest", pa.string()),
        pa.field("settings_digest", pa.string()),
        pa.field("when", pa.timestamp("us", tz="UTC")),
        pa.field("software", pa.string()),
        *PROVENANCE,
        # columns that were corrected, and what the source says of them
        pa.field("corrected", pa.list_(pa.struct([pa.field("column", pa.string()), pa.field("said", pa.string())]))),
        # the version that first published the slide_id, whatever was ingested again or corrected since (see `placing`)
        pa.field("first_published", pa.int64()),
        pa.field("reverted_to", pa.int64()),  # the version whose row this is again; null where it is new
    ],
)

REJECTIONS = _schema(
    "rejections",
    1,
    [
        pa.field("ingest_id", pa.string()),
        pa.field("slide_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("barcode", pa.string()),  # null: the whole slide
        pa.field("x_px", pa.float64()),
        pa.field("y_px", pa.float64()),
        pa.field("rule", pa.string()),
        pa.field("figure", pa.float64()),
        pa.field("limit", pa.float64()),
        pa.field("file", pa.string()),
        pa.field("reason", pa.string()),  # one sentence
    ],
)

GENES = _schema(
    "genes",
    1,
    [
        pa.field("gene_id", pa.int32()),
        pa.field("ensembl_id", pa.string()),
        pa.field("symbol", pa.string()),
        pa.field("species", pa.string()),
    ],
)


def embeddings_schema(width: int, about: Mapping[str, str] | None = None) -> pa.Schema:
    """One row a pair and model, vectors of `width` numbers; `about` joins the metadata.

    Vectors are float32 as the model gives them: half the bytes would cost the promise that they equal the served ones.
    """
    vector = pa.list_(pa.float32(), width)
    schema = _schema(
        "embeddings",
        1,
        [
            pa.field("pair_id", pa.binary(PAIR_ID_BYTES), nullable=False),
            pa.field("ingest_id", pa.string(), nullable=False),
            pa.field("slide_id", pa.string(), nullable=False),
            pa.field("vector", vector),  # of the picture, unit length; null: the pair has none
            pa.field("sentence_vector", vector),  # of the sentence, unit length; null: the pair has none
        ],
    )
    return schema.with_metadata({**schema.metadata, **(about or {})})
