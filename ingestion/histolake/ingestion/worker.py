"""What workers do: look at a source, read it, and turn a run of its spots into one fragment of the lake.

Nothing here talks to Ray, and nothing holds a slide's image: positions and sparse counts are in memory, regions of
the image come and go. Errors of the data become `SourceError`; any other error is a defect and is raised.

Axes: N spots, K neighbours, G genes, U genes of the lake.
"""

from __future__ import annotations

import hashlib
import struct
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import DuplicateSettings, profile_sketch
from histolake.ingestion.expression_unit import with_unit
from histolake.ingestion.genes import GeneSettings, as_lake_genes, resolve, with_symbols
from histolake.ingestion.housekeeping import left_out
from histolake.ingestion.images import open_image
from histolake.ingestion.images.keeping import keep_overview, keep_pyramid
from histolake.ingestion.images.settings import ImageSettings
from histolake.ingestion.niches import find_niches, niche_sums
from histolake.ingestion.quality import QualitySettings, check_section, judge_spots, quality_flags
from histolake.ingestion.readers import Source, digest, reader
from histolake.ingestion.recorded import given
from histolake.ingestion.scale import ScaleSettings, settle, statements
from histolake.ingestion.sentences import SentenceSettings, gene_sentences
from histolake.ingestion.slide import Slide, SlideImage, Spot
from histolake.ingestion.species import check_species
from histolake.ingestion.tiling import PatchSettings, Tiles, measure, tile
from histolake.platform.errors import SourceError
from histolake.platform.lake import Fragment, Lake, PairsWriter
from histolake.platform.schemas import PAIR_ID_BYTES
from histolake.platform.storage import Location

__all__ = [
    "IngestSettings",
    "Look",
    "SlideWorker",
    "Work",
    "Written",
    "look",
    "look_and_keep",
    "pair_ids",
    "source_digest",
    "widths_um",
]

DEFAULT_SPECIES = "human"
# What libraries raise on damaged or missing files.
_DATA_ERRORS = (OSError, ValueError, EOFError, zlib.error, struct.error)


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


@dataclass(frozen=True, kw_only=True)
class Look:
    """What reading a section told, small enough to send: its provenance, its spots, and the genes the lake lacks."""

    record: dict[str, Any]  # provenance columns and n_spots
    n_kept: int
    refused: tuple[Spot, ...]
    species: str
    unknown_genes: tuple[tuple[str, str | None], ...]
    wants_pyramid: bool = False  # its image is large and cannot be read in parts


@dataclass(frozen=True, kw_only=True)
class Work:
    """A run of a section's kept spots, [start, stop), to be written as one fragment."""

    candidate: Candidate
    writer: PairsWriter
    start: int
    stop: int
    pyramid: Location | None = None  # what to cut patches from in place of the source's image


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of a `Work`: a fragment, or the reason why the section is refused."""

    slide_id: str
    start: int
    fragment: Fragment | None = None
    padded_patches: int = 0
    problem: SourceError | None = None


def pair_ids(slide_id: str, barcodes: np.ndarray) -> list[bytes]:
    """A pair's id: the first 16 bytes of SHA-256 over slide and barcode."""
    return [hashlib.sha256(f"{slide_id}\0{barcode}".encode()).digest()[:PAIR_ID_BYTES] for barcode in barcodes]


def source_digest(candidate: Candidate) -> str:
    """A hash of all that the section is made from; of its place and problem where no reader knows it."""
    if candidate.source is None:
        return hashlib.sha256(f"{candidate.uri}\0{candidate.problem}".encode()).hexdigest()
    with _as_refusal(candidate):
        return digest(candidate.source, candidate.metadata)


def look(candidate: Candidate, lake: Location | None, settings: IngestSettings, ingest_id: str | None = None) -> Look:
    """Read a section and judge it. Raises `SourceError` where it is refused.

    With an `ingest_id` the overview of its image is written to the lake, also of one that is refused if it opens.
    """
    return look_and_keep(candidate, lake, settings, ingest_id)[0]


def look_and_keep(
    candidate: Candidate, lake: Location | None, settings: IngestSettings, ingest_id: str | None = None
) -> tuple[Look, Slide]:
    """The same, with the slide of the spots that are kept."""
    keep = None
    if lake is not None and ingest_id is not None:
        keep = partial(keep_overview, lake=lake, ingest_id=ingest_id, settings=settings.images)
    try:
        slide, tag = _read(candidate)
    except SourceError:
        if keep is not None:
            _keep_any(_images_of(candidate), keep)
        raise
    hashed, wants_pyramid = None, False
    if keep is not None and slide.image is not None:
        with _as_refusal(candidate):
            hashed, wants_pyramid = keep(slide.image, xy_px_N2=slide.xy_px)
    try:
        read, kept, refused = _judge(candidate, slide, tag, settings)
    except SourceError as problem:
        told_by_then = replace(slide, scales=statements(slide, tag))
        problem.known = told_by_then.provenance() | {"image_hash": hashed}
        raise
    species = kept.metadata.species or DEFAULT_SPECIES
    unknown: tuple[tuple[str, str | None], ...] = ()
    if lake is not None:
        genes = resolve(Lake.open(lake), kept.symbols, kept.ensembl_ids, species=species, allocate=False)
        ensembl = kept.ensembl_ids or [None] * len(kept.symbols)
        unknown = tuple((kept.symbols[g], ensembl[g]) for g in np.flatnonzero(genes.gene_ids_G < 0))
    content = {"profile_sketch": profile_sketch(kept.counts, kept.symbols), "image_hash": hashed}
    told = Look(
        record=_record(candidate, read, settings) | content,
        n_kept=len(kept),
        refused=tuple(refused),
        species=species,
        unknown_genes=unknown,
        wants_pyramid=wants_pyramid,
    )
    return told, kept


def add_pyramid(candidate: Candidate, image: str, lake: Location, ingest_id: str) -> None:
    """Turn a section's image into the pyramid that its patches are cut from. Raises `SourceError`."""
    with _as_refusal(candidate):
        keep_pyramid(image, lake, ingest_id)


def _keep_any(images: list[str], keep: Callable[[str], object]) -> None:
    """Keep the first of some images that can be seen. Their section is refused already, for another reason."""
    for uri in images:
        with suppress(SourceError, *_DATA_ERRORS):
            keep(uri)
            return


def _images_of(candidate: Candidate) -> list[str]:
    """Files that may be a section's image: the one that the curator names, then those of the source."""
    files = candidate.source.files if candidate.source else {}
    named = candidate.metadata.get("image")
    return [*([str(named)] if named else []), *(uri for role, uri in sorted(files.items()) if "image" in role)]


def _read(candidate: Candidate) -> tuple[Slide, float | None]:
    """The section as its reader gives it, and the scale that the image's file tells."""
    if candidate.source is None:
        assert candidate.problem is not None
        raise candidate.problem
    with _as_refusal(candidate):
        return _with_image(_by_its_reader(candidate, candidate.source))


def _by_its_reader(candidate: Candidate, source: Source) -> Slide:
    """The section as its reader gives it. A reader that fails in another way than by refusing has a defect, which is
    told as one: among thousands of sections it must not stop the others."""
    try:
        return reader(source.reader).read(source, candidate.metadata)
    except (SourceError, *_DATA_ERRORS):
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(str(error).split())[:200]
        raise SourceError(
            f"The reader {source.reader} failed on {candidate.uri}: {type(error).__name__}: {said} (line "
            f"{place.lineno} of {Path(place.filename).name}). That is a defect of the reader; please report it with "
            "this sentence.",
            rule="reader_failed",
            file=candidate.uri,
        ) from error


def _judge(
    candidate: Candidate, slide: Slide, tag: float | None, settings: IngestSettings
) -> tuple[Slide, Slide, list[Spot]]:
    """The section as read (with its flags), as kept, and the spots refused."""
    check_section(slide)
    slide = settle(slide, tag, settings.scale)
    slide = _with_meaning(slide, settings)
    slide = replace(slide, flags=quality_flags(slide, settings.quality))

    def patches(spots: Slide) -> tuple[np.ndarray, np.ndarray]:
        return _measured(candidate, spots, settings.patches)

    kept, refused = judge_spots(slide, settings.quality, measure=patches, spot_genes=settings.duplicates.spot_genes)
    return slide, kept, refused


def _with_meaning(slide: Slide, settings: IngestSettings) -> Slide:
    """The slide with its species recognised, its unit named and its genes called by their symbols."""
    species = check_species(
        slide.metadata.species,
        slide.symbols,
        slide.ensembl_ids,
        min_fit=settings.quality.min_species_fit,
        file=slide.matrix_file,
    )
    slide = replace(slide, metadata=replace(slide.metadata, species=species))
    return with_symbols(with_unit(slide), settings.genes)


def _measured(candidate: Candidate, spots: Slide, patches: PatchSettings) -> tuple[np.ndarray, np.ndarray]:
    """Tissue fraction and focus of the spots' patches."""
    assert spots.image is not None and spots.metadata.um_per_px is not None
    width_um, _ = widths_um(spots, patches)
    with _as_refusal(candidate):
        image = open_image(spots.image)
        try:
            return measure(image, spots.xy_px, width_um=width_um, um_per_px=spots.metadata.um_per_px)
        finally:
            image.close()


def _with_image(slide: Slide) -> tuple[Slide, float | None]:
    """The slide with the size of its image, and the scale that the image's file tells."""
    if slide.image is None:
        return slide, None
    image = open_image(slide.image)
    try:
        return replace(slide, image_size_px=image.size_px), image.um_per_px
    finally:
        image.close()


@contextmanager
def _as_refusal(candidate: Candidate) -> Iterator[None]:
    """Turn what libraries raise on damaged files into a refusal of the section."""
    try:
        yield
    except _DATA_ERRORS as error:
        said = " ".join(str(error).split())[:200]
        raise SourceError(
            f"{candidate.uri} cannot be read: {type(error).__name__}: {said}", rule="unreadable", file=candidate.uri
        ) from error


def _record(candidate: Candidate, slide: Slide, settings: IngestSettings) -> dict[str, Any]:
    assert candidate.source is not None
    spot_um, niche_um = widths_um(slide, settings.patches)
    return {
        **slide.provenance(),
        "cohort": candidate.cohort,
        "section": candidate.section,
        "source": candidate.uri,
        "reader": candidate.source.reader,
        "given": given(candidate.metadata),
        "spot_um": spot_um,
        "niche_um": niche_um,
        "n_spots": slide.n_read,
    }


def widths_um(slide: Slide, patches: PatchSettings) -> tuple[float, float]:
    """The physical widths of the spot patch and of the niche patch, micrometres."""
    diameter, pitch = slide.metadata.spot_diameter_um, slide.metadata.pitch_um
    assert diameter is not None, "a reader gives the spots' diameter"
    assert pitch is not None, "a reader gives the pitch"
    return patches.widths_um(diameter, pitch)


class SlideWorker:
    """Writes runs of spots. Keeps the slide that it worked on last open, for the next run is most likely of the
    same."""

    def __init__(self, lake: Location, settings: IngestSettings) -> None:
        self._lake = Lake.open(lake)
        self._settings = settings
        self._open: _OpenSlide | None = None

    def write(self, work: Work) -> Written:
        """Write one fragment. What is wrong with the section's data comes back as `problem`; other errors are
        raised."""
        slide_id, start = work.candidate.slide_id, work.start
        try:
            slide = self._slide(work)
            table, padded = slide.rows(work.start, work.stop)
        except SourceError as problem:
            return Written(slide_id=slide_id, start=start, problem=problem)
        fragment = work.writer.write(table)
        return Written(slide_id=slide_id, start=start, fragment=fragment, padded_patches=padded)

    def _slide(self, work: Work) -> _OpenSlide:
        if self._open is None or self._open.candidate.slide_id != work.candidate.slide_id:
            if self._open is not None:
                self._open.close()
            self._open = None
            self._open = _OpenSlide(work, self._lake, self._settings)
        return self._open


class _OpenSlide:
    """A section ready to be written: counts by gene of the lake, niches, sentences, and its image open."""

    def __init__(self, work: Work, lake: Lake, settings: IngestSettings) -> None:
        candidate = self.candidate = work.candidate
        slide, tag = _read(candidate)
        with work.pyramid.borrowed() if work.pyramid else nullcontext() as pyramid:
            if pyramid is not None:
                slide = replace(slide, image=str(pyramid))
            _, self._slide, _ = _judge(candidate, slide, tag, settings)
            self._image: SlideImage | None = None if slide.image is None else open_image(slide.image)
        self._patches = settings.patches
        species = self._slide.metadata.species or DEFAULT_SPECIES
        genes = resolve(lake, self._slide.symbols, self._slide.ensembl_ids, species=species, allocate=False)
        assert (genes.gene_ids_G >= 0).all(), "unknown genes are allocated before tiling"
        self._counts_NU, self._gene_ids_U, symbols = as_lake_genes(self._slide.counts, genes)
        assert self._slide.metadata.um_per_px is not None, "the scale is settled"
        self._niches = find_niches(self._slide.xy_px, self._slide.metadata.um_per_px, settings.patches)
        common = left_out(settings.housekeeping, species)
        self._sentences = partial(gene_sentences, symbols=symbols, settings=settings.sentences, leave_out=common)
        self._pair_ids = pair_ids(candidate.slide_id, self._slide.barcodes)

    def close(self) -> None:
        """Close the image."""
        if self._image is not None:
            self._image.close()

    def rows(self, start: int, stop: int) -> tuple[pa.Table, int]:
        """The rows of `schemas.PAIRS` of some spots, and how many of their patches leave the image."""
        slide, run = self._slide, slice(start, stop)
        um_per_px = slide.metadata.um_per_px
        assert um_per_px is not None, "the scale is settled"
        spot_um, niche_um = widths_um(slide, self._patches)
        spots, niches = (self._tiles(run, width_um, um_per_px) for width_um in (spot_um, niche_um))
        counts = self._counts_NU[run]
        around = niche_sums(self._counts_NU, self._niches, include_self=self._patches.niche_include_self, run=run)
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
                "niche_sentence": pa.array(self._sentences(around), pa.string()),
                "gene_ids": pa.ListArray.from_arrays(offsets, pa.array(self._gene_ids_U[counts.indices])),
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

    def _tiles(self, run: slice, width_um: float, um_per_px: float) -> Tiles | None:
        if self._image is None:
            return None
        with _as_refusal(self.candidate):
            return tile(
                self._image, self._slide.xy_px[run], width_um=width_um, um_per_px=um_per_px, settings=self._patches
            )
