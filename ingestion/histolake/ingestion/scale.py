"""The scale audit: how many micrometres a pixel is, by everything that says so.

A slide's patches are squares of a physical width, so a wrong scale makes every one of them wrong, and public catalogues
carry pixel sizes that disagree (HEST-1k: more than 5% apart in half the samples that state two). Here every statement
is written down, the most direct one is used, and a slide on which two disagree is refused until a person says which to
trust.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from histolake.ingestion.slide import Origin, ScaleEvidence, Slide
from histolake.platform.errors import SourceError

__all__ = ["ScaleSettings", "settle", "statements"]

# Which statement is used where all agree. A person's word first; then the lattice of the spots, which is fitted over
# thousands of them and is what relates the image to the array; then the fiducial marks, the file's tag, and the rest.
ORDER: tuple[Origin, ...] = ("stated", "pitch", "fiducial", "image_tag", "source")
WORDS = {
    "stated": "the metadata",
    "pitch": "the spots' pitch",
    "fiducial": "the fiducial marks",
    "image_tag": "the image's own tag",
    "source": "the source",
}


@dataclass(frozen=True, kw_only=True)
class ScaleSettings:
    """How the scale is judged."""

    tolerance: float = 0.05  # two statements of micrometres a pixel agree when they differ by at most this fraction
    trust: str = ""  # an origin (stated, pitch, fiducial, image_tag, source) to believe where they disagree; "" refuses


def settle(slide: Slide, tag: float | None, settings: ScaleSettings) -> Slide:
    """The slide with its scale decided (`metadata.um_per_px`, `metadata.scale_from`) and all statements in `scales`.

    `tag` is what the image's own file says, None where it says nothing. Raises `SourceError` by the rules `scale_known`
    (nobody tells the scale) and `scale_agrees` (two tell different ones, and nobody says which to trust).
    """
    evidence = statements(slide, tag)
    if not evidence:
        raise SourceError(
            "Nothing tells how many micrometres a pixel is; say um_per_px, or pitch_um for spots on an array, in the "
            "metadata.",
            rule="scale_known",
            figure=0.0,
            limit=1.0,
            file=slide.image or slide.matrix_file,
        )
    trusted = slide.metadata.scale_from or settings.trust
    if trusted:
        chosen = [e for e in evidence if e.origin == trusted]
        if not chosen and slide.metadata.scale_from:
            raise SourceError(
                f"The scale is to be taken from {trusted!r}, which says nothing here; there is {_listed(evidence)}.",
                rule="scale_known",
                figure=0.0,
                limit=1.0,
                file=slide.image or slide.matrix_file,
            )
        if chosen:
            return _with(slide, evidence, chosen[0])
    _check_agree(evidence, settings, slide)
    return _with(slide, evidence, min(evidence, key=lambda e: ORDER.index(e.origin)))


def statements(slide: Slide, tag: float | None) -> tuple[ScaleEvidence, ...]:
    """Everything that says what the scale is: the metadata, the reader's findings, the tag of the image's file."""
    found = list(slide.scales)
    if slide.metadata.um_per_px is not None:
        found.insert(0, ScaleEvidence(origin="stated", um_per_px=slide.metadata.um_per_px))
    if tag is not None:
        found.append(ScaleEvidence(origin="image_tag", um_per_px=tag, file=slide.image))
    return tuple(found)


def _check_agree(evidence: Sequence[ScaleEvidence], settings: ScaleSettings, slide: Slide) -> None:
    fine, coarse = (pick(evidence, key=lambda e: e.um_per_px) for pick in (min, max))
    apart = coarse.um_per_px / fine.um_per_px - 1
    if apart > settings.tolerance:
        raise SourceError(
            f"The scale is {_listed(evidence)}: {apart:.0%} apart, and at most {settings.tolerance:.0%} is allowed. "
            f"Say which to trust (scale_from = {' or '.join(sorted({e.origin for e in evidence}))}) in the metadata.",
            rule="scale_agrees",
            figure=apart,
            limit=settings.tolerance,
            file=fine.file or coarse.file or slide.image or slide.matrix_file,
        )


def _listed(evidence: Sequence[ScaleEvidence]) -> str:
    return ", ".join(f"{e.um_per_px:.4g} um/px by {WORDS[e.origin]}" for e in evidence)


def _with(slide: Slide, evidence: Sequence[ScaleEvidence], chosen: ScaleEvidence) -> Slide:
    known = replace(slide.metadata, um_per_px=chosen.um_per_px, scale_from=chosen.origin)
    return replace(slide, metadata=known, scales=tuple(evidence))
