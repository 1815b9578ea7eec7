"""The unit of a matrix: counts, TPM, FPKM or another normalisation, which is kept as it is and flagged.

A normalisation is never inverted: the totals that it divided by are gone. A sentence needs none of it, for the order of
the genes in a spot is the same before and after (ST-bank keeps TPM and FPKM matrices as they are for that reason); what
learns from values can leave the flagged slides out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from histolake.ingestion.slide import Slide
from histolake.platform.errors import SourceError

__all__ = ["unit_name", "with_unit"]

BLOCK = 1 << 20  # values looked at together
COUNTS = "counts"
NORMALISED = "normalised"  # fractions whose unit nobody named
_NAMES = {
    COUNTS: ("count", "counts", "raw", "raw counts", "umi", "umis", "umi counts"),
    "TPM": ("tpm",),
    "FPKM": ("fpkm",),
    "RPKM": ("rpkm",),
    "CPM": ("cpm",),
    NORMALISED: ("normalised", "normalized", "log-normalised", "log-normalized", "lognorm"),
}
_SPELLINGS = {spelling: name for name, spellings in _NAMES.items() for spelling in spellings}


def unit_name(text: str | None) -> str | None:
    """The catalogue's name of a unit: "umi" is counts, "tpm" is TPM; one that is not known comes back as it is."""
    if text is None or not text.strip():
        return None
    return _SPELLINGS.get(text.strip().lower(), text.strip())


def with_unit(slide: Slide) -> Slide:
    """The slide with its unit named, and flagged `expression: <unit>` unless it is counts.

    Where nobody named it, whole numbers are counts and others `normalised`. Raises `SourceError` by rule `counts_valid`
    where counts are stated and fractions found.
    """
    stated = unit_name(slide.metadata.expression_unit)
    values = slide.counts.data
    parts = np.split(values, range(BLOCK, len(values), BLOCK))
    fractions = np.concatenate([part != np.floor(part) for part in parts])
    if stated == COUNTS and fractions.any():
        i = int(np.flatnonzero(fractions)[0])
        row = int(np.searchsorted(slide.counts.indptr, i, side="right")) - 1
        raise SourceError(
            f"{int(fractions.sum())} of {len(values)} counts are no whole numbers, the first {values[i]:g} for "
            f"{slide.symbols[int(slide.counts.indices[i])]} of spot {slide.barcodes[row]}. Say expression_unit = TPM, "
            "FPKM or normalised in the metadata if that is what they are, or give the raw counts.",
            rule="counts_valid",
            figure=float(fractions.sum()),
            limit=0.0,
            file=slide.matrix_file,
        )
    unit = stated or (NORMALISED if fractions.any() else COUNTS)
    flags = slide.flags if unit == COUNTS else tuple(sorted({*slide.flags, f"expression: {unit}"}))
    return replace(slide, metadata=replace(slide.metadata, expression_unit=unit), flags=flags)
