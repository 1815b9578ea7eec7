"""Quality rules: which spots and sections are kept, and why the others are not.

A rule has a name, a figure that was measured and a limit. What breaks one is never dropped in silence: a spot becomes a
`Spot` among the refused, a section a `SourceError`, and both end as rows of the rejections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from histolake.ingestion.duplicates import expressed_genes, first_of_each
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
    min_tissue: float = 0.0  # fraction of the spot's patch that must be tissue; 0 keeps every spot (HEST-1k: 0.15)
    min_focus: float = 0.0  # focus that the spot's patch must have; 0 keeps every spot
    min_species_fit: float = 0.9  # fraction of the genes that tell a species that must tell the section's


Measure = Callable[[Slide], tuple[np.ndarray, np.ndarray]]  # tissue fraction and focus of each spot's patch


def judge_spots(
    slide: Slide, settings: QualitySettings, *, measure: Measure | None = None, spot_genes: int = 50
) -> tuple[Slide, list[Spot]]:
    """The slide with the spots that are kept, and the others with their reasons.

    Rules on spots, of which the first that a spot breaks is told: `min_genes` (expressed genes), `spot_in_image` (its
    centre lies in the image), `min_tissue` and `min_focus` (its patch; `measure` is asked only where a threshold is
    above 0), and `duplicate_spot` (an earlier kept spot has the same profile, of `spot_genes` genes or more). What the
    source itself ruled out comes first. Raises `SourceError` by the rules on sections: `barcodes_match`,
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
    judged = _Judged(slide, settings)
    judged.by_genes_and_place(inside)
    if measure is not None:
        judged.by_patch(measure)
    judged.by_profile(spot_genes)
    kept = slide.take(judged.kept)
    if len(kept) < settings.min_spots:
        raise SourceError(
            f"{len(kept)} of {slide.n_read} spots pass the quality rules; "
            f"a section needs at least {settings.min_spots}.{judged.advice()}",
            rule="min_spots",
            figure=float(len(kept)),
            limit=float(settings.min_spots),
            file=slide.matrix_file,
        )
    return kept, [*slide.refused, *(judged.refused[i] for i in sorted(judged.refused))]


@dataclass(eq=False)
class _Judged:
    """The spots of a slide while the rules go over them, one rule after the other."""

    slide: Slide
    settings: QualitySettings
    refused: dict[int, Spot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.kept = np.ones(len(self.slide), dtype=bool)
        self.n_genes = expressed_genes(self.slide.counts)

    def refuse(self, i: int, rule: str, reason: str, **told: float | str | None) -> None:
        x_px, y_px = (float(v) for v in self.slide.xy_px[i])
        barcode = str(self.slide.barcodes[i])
        self.refused[i] = Spot(barcode=barcode, rule=rule, reason=reason, x_px=x_px, y_px=y_px, **told)  # type: ignore[arg-type]  # the three of Spot
        self.kept[i] = False

    def by_genes_and_place(self, inside: np.ndarray) -> None:
        slide, least = self.slide, self.settings.min_genes
        for i in np.flatnonzero((self.n_genes <= least) | ~inside).tolist():
            if self.n_genes[i] <= least:
                reason = f"{self.n_genes[i]} expressed genes; a spot is kept with more than {least}."
                figures = {"figure": float(self.n_genes[i]), "limit": float(least)}
                self.refuse(i, "min_genes", reason, file=slide.matrix_file, **figures)
            else:
                x_px, y_px = slide.xy_px[i]
                reason = f"The spot's centre ({x_px:.0f}, {y_px:.0f}) lies outside the image of {_size(slide)} px."
                self.refuse(i, "spot_in_image", reason, file=slide.image)

    def by_patch(self, measure: Measure) -> None:
        least = {"min_tissue": self.settings.min_tissue, "min_focus": self.settings.min_focus}
        if not any(least.values()) or self.slide.image is None:
            return
        of_kept = np.flatnonzero(self.kept)
        for (rule, limit), figures in zip(least.items(), measure(self.slide.take(self.kept)), strict=True):
            what = "tissue covers" if rule == "min_tissue" else "the focus is"
            for i, figure in zip(of_kept.tolist(), figures.tolist(), strict=True):
                if figure < limit and self.kept[i]:
                    reason = f"In the spot's patch {what} {figure:.3g}; at least {limit:g} is needed (quality.{rule})."
                    self.refuse(i, rule, reason, figure=figure, limit=limit, file=self.slide.image)

    def by_profile(self, spot_genes: int) -> None:
        rich = np.flatnonzero(self.kept & (self.n_genes >= spot_genes))
        counts = self.slide.counts
        first = rich[first_of_each(counts if len(rich) == len(self.slide) else counts[rich])]
        for i, same in zip(rich.tolist(), first.tolist(), strict=True):
            if same != i:
                reason = f"All {self.n_genes[i]} genes have the counts that spot {self.slide.barcodes[same]} has."
                self.refuse(i, "duplicate_spot", reason, file=self.slide.matrix_file)

    def advice(self) -> str:
        """What to change where it is `min_genes` that leaves too few spots."""
        poor = sum(spot.rule == "min_genes" for spot in self.refused.values())
        if 2 * poor <= len(self.slide):
            return ""
        return (
            f" {poor} have no more than {self.settings.min_genes} expressed genes (the median is "
            f"{np.median(self.n_genes):.0f}, and the source measures {self.slide.counts.shape[1]}); for a small panel "
            "or single cells lower quality.min_genes, for example HISTOLAKE_QUALITY__MIN_GENES=10."
        )


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
    lowest, highest = values.min(initial=0), values.max(initial=0)  # NaN where there is one
    if not (lowest >= 0 and highest < np.inf):
        bad = ~np.isfinite(values) | (values < 0)
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
