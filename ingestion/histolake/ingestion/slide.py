"""A slide: one tissue section with its spots, their counts, what is known about it, and its image.

A reader fills `Slide` from files of one format; everything after it sees only this. Positions are in full-resolution
pixels of the slide's image. The image itself is never in here: `SlideImage` hands out regions when they are asked for.

Axes: N spots, G genes of the source, H rows and W columns of an image region, C its three colours.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import numpy as np

from histolake.platform.errors import UsageError

__all__ = ["METADATA_FIELDS", "Origin", "ScaleEvidence", "Slide", "SlideImage", "SlideMetadata", "Spot"]

# Who says how large a pixel is: the curator or the metadata beside the files, the image file's own tag, the lattice
# that is fitted to the spots, the diameter of the fiducial marks, another statement of the source.
Origin = Literal["stated", "image_tag", "pitch", "fiducial", "source"]


@dataclass(frozen=True, kw_only=True)
class SlideMetadata:
    """What is known about a slide besides its spots. The names are those of the catalogue's provenance."""

    section: str | None = None
    simulated: bool = False
    accession: str | None = None
    licence: str | None = None
    study: str | None = None
    patient: str | None = None
    organ: str | None = None
    species: str | None = None
    disease: str | None = None
    technology: str | None = None
    expression_unit: str | None = None
    um_per_px: float | None = None  # micrometres a full-resolution pixel
    spot_diameter_um: float | None = None  # micrometres
    pitch_um: float | None = None  # micrometres between neighbouring spots' centres
    image: str | None = None  # URI of the image, where the curator names one; it wins over what lies beside the source
    scale_from: str | None = None  # the origin of scale to trust where several disagree

    def updated(self, values: dict[str, Any]) -> SlideMetadata:
        """A copy in which `values` win; empty values and names that are not metadata are passed over."""
        known = {f.name: f.type for f in fields(self)}
        given = {
            name: _typed(name, str(known[name]), value)
            for name, value in values.items()
            if name in known and value is not None and value != ""
        }
        return replace(self, **given)


METADATA_FIELDS = tuple(f.name for f in fields(SlideMetadata))


def _typed(name: str, kind: str, value: Any) -> Any:
    """A value as its field wants it; text from a CSV becomes a number or a truth value."""
    if kind.startswith("bool"):
        word = str(value).strip().lower()
        if word not in {"true", "false", "1", "0", "yes", "no"}:
            raise UsageError(f"The metadata say {name} = {value!r}; write true or false.")
        return word in {"true", "1", "yes"}
    if kind.startswith("float"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise UsageError(f"The metadata say {name} = {value!r}; write a number.") from None
        if not (np.isfinite(number) and number > 0):
            raise UsageError(f"The metadata say {name} = {value!r}; write a number above 0.")
        return number
    return str(value)


@dataclass(frozen=True, kw_only=True)
class ScaleEvidence:
    """One statement of how large a pixel of the slide's image is."""

    origin: Origin
    um_per_px: float  # micrometres a pixel of `Slide.image` as it is
    file: str | None = None  # URI of the file that says so


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One spot that the source names but that cannot be used, and why (becomes a row of the rejections)."""

    barcode: str
    rule: str
    reason: str
    x_px: float | None = None
    y_px: float | None = None
    figure: float | None = None
    limit: float | None = None
    file: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Slide:
    """One section as read. Spots are in raster order (by array row, then array column, then barcode) where there is an
    array, else in the source's order."""

    metadata: SlideMetadata
    barcodes: np.ndarray  # (N,) str, unique
    array_row: np.ndarray  # (N,) float32, NaN where the format has no array
    array_col: np.ndarray  # (N,) float32
    xy_px: np.ndarray  # (N, 2) float64, spot centres in pixels of the image as it is
    counts: Any  # scipy.sparse.csr_array (N, G) float32, as measured
    symbols: list[str]  # G gene symbols as the source writes them
    ensembl_ids: list[str | None] | None  # G, where the source has them
    image: str | None  # URI of the image file; None where the section has none
    image_size_px: tuple[int, int] | None = None  # width, height; the pipeline looks where a reader did not
    scales: tuple[ScaleEvidence, ...] = ()  # what the source tells of its scale; `scale.settle` decides
    flags: tuple[str, ...] = ()
    refused: tuple[Spot, ...] = field(default=())  # spots that the source itself rules out
    matrix_file: str | None = None  # URI of the file that holds the counts

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def n_read(self) -> int:
        """Spots that the source names, with those that it rules out."""
        return len(self) + len(self.refused)

    def take(self, keep: np.ndarray) -> Slide:
        """The slide with the spots that `keep` (N,) marks true, in the same order."""
        if keep.all():
            return self
        return replace(
            self,
            barcodes=self.barcodes[keep],
            array_row=self.array_row[keep],
            array_col=self.array_col[keep],
            xy_px=self.xy_px[keep],
            counts=self.counts[np.flatnonzero(keep)],
        )

    def provenance(self) -> dict[str, Any]:
        """The metadata and the image as columns of the catalogue."""
        width, height = self.image_size_px or (None, None)
        return asdict(self.metadata) | {
            "flags": list(self.flags),
            "scales": [{"origin": e.origin, "um_per_px": e.um_per_px} for e in self.scales],
            "image": self.image,
            "image_width_px": width,
            "image_height_px": height,
        }


class SlideImage(Protocol):
    """Regions of one slide image at full resolution."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""

    @property
    def um_per_px(self) -> float | None:
        """Micrometres a pixel by the file's own tag; None where it has none that can be meant."""

    @property
    def block_px(self) -> tuple[int, int]:
        """Width and height of the blocks, from the upper left corner on, in which it is read at the least cost."""

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region as uint8 (H, W, 3). It must lie inside the image. Raises `SourceError` on a damaged image."""

    def overview(self, max_px: int) -> np.ndarray:
        """The whole image as uint8 (H, W, 3), its longer side at most `max_px`, without holding the full image."""

    def close(self) -> None:
        """Release the file and any temporary copy."""
