"""Quality rules: which spots and sections are kept, and why the others are not.

A rule has a name, a figure that was measured and a limit. What breaks one is never dropped in silence: a spot becomes a
`Spot` among the refused, a section a `SourceError`, and both end as rows of the rejections.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histolake.ingestion.slide import Slide, Spot
from histolake.platform.errors import SourceError

__all__ = ["QualitySettings", "check_section", "judge_spots", "quality_flags"]


@dataclass(frozen=True, kw_only=True)
class QualitySettings:
    """Thresholds of the quality rules."""

    min_spots: int = 50  # spots a section must have (ST-Align curation)
    min_genes: int = 200  # a spot is kept with MORE expressed genes than this (ST-bank curation)
    min_matched: float = 0.5  # fraction of the counts' barcodes that must have a position
    min_covered: float = 0.9  # fraction of the spots' centres that must lie in the image
    max_um_per_px: float = 2.0  # a coarser image flags the slide low_resolution
    min_image_px: int = 2000  # an image with a smaller side flags the slide low_resolution (ST-bank curation)


def judge_spots(slide: Slide, settings: QualitySettings) -> tuple[Slide, list[Spot]]:
    """The slide with the spots that are kept, and the others with their reasons.

    Rules on spots: `min_genes` (expressed genes), `spot_in_image` (its centre lies in the image). What the source
    itself ruled out comes first. Raises `SourceError` by the rules on sections: `barcodes_match`,
    `image_covers_spots` and `min_spots`.
    """
    _check_matched(slide, settings)
    inside = _inside(slide)
    covered = float(inside.mean()) if len(slide) else 1.0
    if covered < settings.min_covered:
        raise SourceError(
            f"Only {covered:.0%} of the {len(slide)} spots lie in the image of {_size(slide)} px; at least "
            f"{settings.min_covered:.0%} must. Give the image that the positions were measured on.",
            rule="image_covers_spots",
            figure=covered,
            limit=settings.min_covered,
            file=slide.image,
        )
    n_genes = np.diff(slide.counts.indptr)
    rich = n_genes > settings.min_genes
    failed = np.flatnonzero(~(rich & inside)).tolist()
    refused = [*slide.refused, *(_refusal(slide, i, n_genes, rich, settings) for i in failed)]
    kept = slide.take(rich & inside)
    if len(kept) < settings.min_spots:
        raise SourceError(
            f"{len(kept)} of {slide.n_read} spots pass the quality rules; "
            f"a section needs at least {settings.min_spots}.",
            rule="min_spots",
            figure=float(len(kept)),
            limit=float(settings.min_spots),
            file=slide.matrix_file,
        )
    return kept, refused


def _check_matched(slide: Slide, settings: QualitySettings) -> None:
    lost = sum(spot.rule == "spot_position" for spot in slide.refused)
    matched = 1 - lost / max(slide.n_read, 1)
    if matched < settings.min_matched:
        raise SourceError(
            f"Only {matched:.0%} of the {slide.n_read} barcodes of the counts have a position; at least "
            f"{settings.min_matched:.0%} must. Give the positions that belong to these counts.",
            rule="barcodes_match",
            figure=matched,
            limit=settings.min_matched,
            file=next(spot.file for spot in slide.refused if spot.rule == "spot_position"),
        )


def _refusal(slide: Slide, i: int, n_genes: np.ndarray, rich: np.ndarray, settings: QualitySettings) -> Spot:
    x_px, y_px = (float(v) for v in slide.xy_px[i])
    barcode = str(slide.barcodes[i])
    if not rich[i]:
        return Spot(
            barcode=barcode,
            rule="min_genes",
            reason=f"{n_genes[i]} expressed genes; a spot is kept with more than {settings.min_genes}.",
            x_px=x_px,
            y_px=y_px,
            figure=float(n_genes[i]),
            limit=float(settings.min_genes),
            file=slide.matrix_file,
        )
    return Spot(
        barcode=barcode,
        rule="spot_in_image",
        reason=f"The spot's centre ({x_px:.0f}, {y_px:.0f}) lies outside the image of {_size(slide)} px.",
        x_px=x_px,
        y_px=y_px,
        file=slide.image,
    )


def _inside(slide: Slide) -> np.ndarray:
    if slide.image_size_px is None:
        return np.ones(len(slide), dtype=bool)
    return np.all((slide.xy_px >= 0) & (slide.xy_px < np.array(slide.image_size_px)), axis=1)


def _size(slide: Slide) -> str:
    return "×".join(map(str, slide.image_size_px or ()))


def quality_flags(slide: Slide, settings: QualitySettings) -> tuple[str, ...]:
    """The slide's flags with `low_resolution` and `image: none` where they apply. A flag is not a refusal."""
    flags = list(slide.flags)
    if slide.image_size_px is None:
        flags.append("image: none")
    elif (slide.metadata.um_per_px or 0) > settings.max_um_per_px or min(slide.image_size_px) < settings.min_image_px:
        flags.append("low_resolution")
    return tuple(sorted(set(flags)))


def check_section(slide: Slide) -> None:
    """Refuse a section that cannot be judged at all: no spots, counts that are no counts, a barcode twice."""
    if not slide.n_read:
        raise SourceError(
            "The section holds no spots.", rule="empty_section", figure=0.0, limit=1.0, file=slide.matrix_file
        )
    values = slide.counts.data
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        row = int(np.searchsorted(slide.counts.indptr, np.flatnonzero(bad)[0], side="right")) - 1
        gene = slide.symbols[int(slide.counts.indices[np.flatnonzero(bad)[0]])]
        raise SourceError(
            f"{int(bad.sum())} counts are negative or not finite, the first {values[bad][0]:g} for {gene} of spot "
            f"{slide.barcodes[row]}; counts must be 0 or more.",
            rule="counts_valid",
            figure=float(bad.sum()),
            limit=0.0,
            file=slide.matrix_file,
        )
