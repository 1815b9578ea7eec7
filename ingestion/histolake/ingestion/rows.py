"""The rows of a section: a run of its spots as a table of `schemas.PAIRS`.

`SectionRows` is a section ready to be written: its kept spots, counts by the lake's genes, niches, sentences, and its
image open. Counts stay packed but for those of the spots at hand. Nothing here reads a source or judges it (`worker`
does), and nothing writes.

Axes: N spots, K neighbours, G genes, U genes of the lake, W spots of a run and of their niches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import DuplicateSettings
from histolake.ingestion.genes import GeneSettings, LakeGenes, resolve
from histolake.ingestion.handover import PackedSlide
from histolake.ingestion.housekeeping import left_out
from histolake.ingestion.images.settings import ImageSettings
from histolake.ingestion.niches import Niches, find_niches, niche_sums
from histolake.ingestion.quality import QualitySettings
from histolake.ingestion.refusing import as_refusal
from histolake.ingestion.scale import ScaleSettings
from histolake.ingestion.sentences import GeneSentences, SentenceSettings
from histolake.ingestion.slide import Slide, SlideImage
from histolake.ingestion.tiling import PairTiler, Patches, PatchSettings, Tiles
from histolake.platform.lake import Lake
from histolake.platform.schemas import PAIR_ID_BYTES

__all__ = ["DEFAULT_SPECIES", "IngestSettings", "SectionRows", "pair_ids", "widths_um"]

DEFAULT_SPECIES = "human"


@dataclass(frozen=True, kw_only=True)
class IngestSettings:
    """The settings that decide what is written."""

    quality: QualitySettings
    scale: ScaleSettings
    patches: PatchSettings
    sentences: SentenceSettings
    genes: GeneSettings = field(default_factory=GeneSettings)
    duplicates: DuplicateSettings = field(default_factory=DuplicateSettings)
    housekeeping: tuple[str, ...] = ()  # the symbols that `sentences.housekeeping` stands for
    gene_table: str = ""  # a hash of what `genes.table` holds
    images: ImageSettings = field(default_factory=ImageSettings)  # decides no row of the pairs


def pair_ids(slide_id: str, barcodes: np.ndarray) -> list[bytes]:
    """A pair's id: the first 16 bytes of SHA-256 over slide and barcode."""
    return [hashlib.sha256(f"{slide_id}\0{barcode}".encode()).digest()[:PAIR_ID_BYTES] for barcode in barcodes]


def widths_um(slide: Slide, patches: PatchSettings) -> tuple[float, float]:
    """The physical widths of the spot patch and of the niche patch, micrometres."""
    diameter, pitch = slide.metadata.spot_diameter_um, slide.metadata.pitch_um
    assert diameter is not None, "a reader gives the spots' diameter"
    assert pitch is not None, "a reader gives the pitch"
    return patches.widths_um(diameter, pitch)


class SectionRows:
    """A section ready to be written. `packed` has the spots that are kept, judged and with its scale settled; `image`
    is its image, open, None where it has none. It is closed with this."""

    def __init__(
        self, candidate: Candidate, packed: PackedSlide, image: SlideImage | None, lake: Lake, settings: IngestSettings
    ) -> None:
        self.candidate = candidate
        self._packed, self._slide, self._image = packed, packed.slide, image
        self._patches = settings.patches
        self._tiler = None if image is None else self._make_tiler(image)
        species = self._slide.metadata.species or DEFAULT_SPECIES
        genes = resolve(lake, self._slide.symbols, self._slide.ensembl_ids, species=species, allocate=False)
        assert (genes.gene_ids_G >= 0).all(), "unknown genes are allocated before tiling"
        self._genes = LakeGenes.of(genes)
        assert self._slide.metadata.um_per_px is not None, "the scale is settled"
        self._niches = find_niches(self._slide.xy_px, self._slide.metadata.um_per_px, settings.patches)
        common = left_out(settings.housekeeping, species)
        self._sentences = GeneSentences(self._genes.symbols, settings.sentences, common)
        self._pair_ids = pair_ids(candidate.slide_id, self._slide.barcodes)

    def close(self) -> None:
        """Close the image."""
        if self._tiler is not None:
            self._tiler.close()
        if self._image is not None:
            self._image.close()

    def rows(self, start: int, stop: int) -> tuple[pa.Table, int]:
        """The rows of `schemas.PAIRS` of some spots, and how many of their patches leave the image."""
        slide, run = self._slide, slice(start, stop)
        um_per_px = slide.metadata.um_per_px
        assert um_per_px is not None, "the scale is settled"
        spots, niches = self._tiles(start, stop)
        counts, around = self._counts(start, stop)
        offsets = pa.array(counts.indptr, pa.int32())
        niche_ids = [[self._pair_ids[k] for k in self._niches.of(i)] for i in range(start, stop)]
        f32 = pa.float32()
        table = pa.table(
            {
                "pair_id": pa.array(self._pair_ids[run], pa.binary(PAIR_ID_BYTES)),
                "barcode": pa.array(slide.barcodes[run].tolist(), pa.string()),
                "array_row": pa.array(slide.array_row[run], f32),
                "array_col": pa.array(slide.array_col[run], f32),
                "x_px": pa.array(slide.xy_px[run, 0].astype(np.float32)),
                "y_px": pa.array(slide.xy_px[run, 1].astype(np.float32)),
                "x_um": pa.array((slide.xy_px[run, 0] * um_per_px).astype(np.float32)),
                "y_um": pa.array((slide.xy_px[run, 1] * um_per_px).astype(np.float32)),
                "spot_image": pa.array(spots.jpegs if spots else [None] * (stop - start), pa.binary()),
                "niche_image": pa.array(niches.jpegs if niches else [None] * (stop - start), pa.binary()),
                "sentence": pa.array(self._sentences(counts), pa.string()),
                "niche_sentence": pa.array(self._sentences.of_sums(around), pa.string()),
                "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(self._genes.gene_ids_U[counts.indices])),
                "counts": pa.ListArray.from_arrays(offsets, pa.array(counts.data, f32)),
                "niche": pa.array(niche_ids, pa.list_(pa.binary(PAIR_ID_BYTES))),
                "n_counts": pa.array(np.asarray(counts.sum(axis=1), dtype=np.float32)),
                "n_genes": pa.array(np.diff(counts.indptr).astype(np.float32)),
                "tissue_fraction": pa.array(spots.tissue_fraction_N) if spots else pa.nulls(stop - start, f32),
                "focus": pa.array(spots.focus_N) if spots else pa.nulls(stop - start, f32),
            }
        )
        padded = sum(int((tiles.outside_N > 0).sum()) for tiles in (spots, niches) if tiles)
        return table, padded

    def _counts(self, start: int, stop: int) -> tuple[Any, Iterator[np.ndarray]]:
        """The counts of a run of spots, sparse (stop - start, U), and the sums over each one's niche."""
        indptr = self._niches.indptr[start : stop + 1]
        others = self._niches.indices[indptr[0] : indptr[-1]]
        spots_W = np.union1d(np.arange(start, stop), others)
        counts_WU = self._genes.counts(self._packed.counts(spots_W))
        first = int(np.searchsorted(spots_W, start))
        run = slice(first, first + stop - start)  # the run's spots follow each other
        sizes_W = np.zeros(len(spots_W), dtype=np.int64)
        sizes_W[run] = np.diff(indptr)
        niches = Niches(np.concatenate([[0], np.cumsum(sizes_W)]), np.searchsorted(spots_W, others))
        return counts_WU[run], niche_sums(counts_WU, niches, include_self=self._patches.niche_include_self, run=run)

    def _make_tiler(self, image: SlideImage) -> PairTiler:
        spot_um, niche_um = widths_um(self._slide, self._patches)
        um_per_px = self._slide.metadata.um_per_px
        assert um_per_px is not None, "the scale is settled"
        return PairTiler(
            image,
            self._slide.xy_px,
            spot_um=spot_um,
            niche_um=niche_um,
            um_per_px=um_per_px,
            settings=self._patches,
        )

    def _tiles(self, start: int, stop: int) -> tuple[Tiles, Patches] | tuple[None, None]:
        if self._tiler is None:
            return None, None
        with as_refusal(self.candidate):
            return self._tiler.pairs(start, stop)
