"""What workers do: look at a source, read it, and turn a run of its spots into one fragment of the lake.

Nothing here talks to Ray, and nothing holds a slide's image: positions and sparse counts are in memory, regions of
the image come and go. Errors of the data become `SourceError`; any other error is a defect and is raised.

Axes: N spots, G genes.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import profile_sketch
from histolake.ingestion.expression_unit import with_unit
from histolake.ingestion.genes import resolve, with_symbols
from histolake.ingestion.handover import PackedSlide
from histolake.ingestion.images import open_image
from histolake.ingestion.images.keeping import keep_overview, keep_pyramid
from histolake.ingestion.quality import check_section, judge_spots, quality_flags
from histolake.ingestion.readers import Source, digest, reader
from histolake.ingestion.recorded import given
from histolake.ingestion.refusing import DATA_ERRORS, as_refusal
from histolake.ingestion.rows import DEFAULT_SPECIES, IngestSettings, SectionRows, widths_um
from histolake.ingestion.scale import settle, statements
from histolake.ingestion.slide import Slide, Spot
from histolake.ingestion.species import check_species
from histolake.ingestion.tiling import PatchSettings, measure
from histolake.platform.errors import SourceError
from histolake.platform.lake import Fragment, Lake, PairsWriter
from histolake.platform.storage import Location

__all__ = ["Look", "SlideWorker", "Work", "Written", "add_pyramid", "look", "look_and_keep", "source_digest"]

BATCH_SPOTS = 512  # rows that a worker holds at a time


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
    spots: int  # that it was asked for
    fragment: Fragment | None = None
    padded_patches: int = 0
    problem: SourceError | None = None


def source_digest(candidate: Candidate) -> str:
    """A hash of all that the section is made from; of its place and problem where no reader knows it."""
    if candidate.source is None:
        return hashlib.sha256(f"{candidate.uri}\0{candidate.problem}".encode()).hexdigest()
    with as_refusal(candidate):
        return digest(candidate.source, candidate.metadata, rehash=candidate.rehash)


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
        with as_refusal(candidate):
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
    with as_refusal(candidate):
        keep_pyramid(image, lake, ingest_id)


def _keep_any(images: list[str], keep: Callable[[str], object]) -> None:
    """Keep the first of some images that can be seen. Their section is refused already, for another reason."""
    for uri in images:
        with suppress(SourceError, *DATA_ERRORS):
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
    with as_refusal(candidate):
        return _with_image(_by_its_reader(candidate, candidate.source))


def _by_its_reader(candidate: Candidate, source: Source) -> Slide:
    """The section as its reader gives it. A reader that fails in another way than by refusing has a defect, which is
    told as one: among thousands of sections it must not stop the others."""
    try:
        return reader(source.reader).read(source, candidate.metadata)
    except (SourceError, *DATA_ERRORS):
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
    with as_refusal(candidate):
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


class SlideWorker:
    """Writes runs of spots. Keeps the section that it worked on last open, for the next run is most likely of the
    same."""

    def __init__(self, lake: Location, settings: IngestSettings) -> None:
        self._root = lake
        self._settings = settings
        self._open: SectionRows | None = None

    def write(self, work: Work, judged: Callable[[], PackedSlide | None] = lambda: None) -> Written:
        """Write one fragment. `judged` gives the slide where it was handed over; else it is read again. What is wrong
        with the section's data comes back as `problem`; other errors are raised."""
        asked: dict[str, Any] = {"slide_id": work.candidate.slide_id, "start": work.start}
        asked["spots"] = work.stop - work.start
        try:
            rows = _Rows(self._section(work, judged), work.start, work.stop)
        except SourceError as problem:
            return Written(**asked, problem=problem)
        try:
            fragment = work.writer.write(rows)
        except Exception:
            if rows.problem is None:
                raise
            return Written(**asked, problem=rows.problem)
        return Written(**asked, fragment=fragment, padded_patches=rows.padded)

    def _section(self, work: Work, judged: Callable[[], PackedSlide | None]) -> SectionRows:
        if self._open is None or self._open.candidate.slide_id != work.candidate.slide_id:
            if self._open is not None:
                self._open.close()
            self._open = None
            self._open = _opened(work, judged(), Lake.open(self._root), self._settings)
        return self._open


class _Rows:
    """The rows of a run, batch by batch. Remembers how many patches leave the image, and a problem of the data: through
    the writer, which asks for the batches, it comes back as an error of the writer's."""

    def __init__(self, section: SectionRows, start: int, stop: int) -> None:
        self._section, self._start, self._stop = section, start, stop
        self.problem: SourceError | None = None
        self.padded = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        if self.problem is not None:
            raise self.problem  # the writer asks once more; the data are what they were
        self.padded = 0
        try:
            for start in range(self._start, self._stop, BATCH_SPOTS):
                table, padded = self._section.rows(start, min(start + BATCH_SPOTS, self._stop))
                self.padded += padded
                yield from table.to_batches()
        except SourceError as problem:
            self.problem = problem
            raise


def _opened(work: Work, judged: PackedSlide | None, lake: Lake, settings: IngestSettings) -> SectionRows:
    """A section ready to be written: the slide that was handed over, or, where none was, read and judged again."""
    candidate = work.candidate
    with work.pyramid.borrowed() if work.pyramid else nullcontext() as pyramid:
        if judged is None:
            slide, tag = _read(candidate)
            slide = slide if pyramid is None else replace(slide, image=str(pyramid))
            _, kept, _ = _judge(candidate, slide, tag, settings)
            judged = PackedSlide.of(kept)
        elif pyramid is not None:
            judged = replace(judged, slide=replace(judged.slide, image=str(pyramid)))
        with as_refusal(candidate):
            image = None if judged.slide.image is None else open_image(judged.slide.image)
    return SectionRows(candidate, judged, image, lake, settings)
