"""Which image a Space Ranger section is read with, and how its positions are scaled to it.

Positions are pixels of the image that Space Ranger was given; `tissue_hires_image.png` and `tissue_lowres_image.png`
are reduced copies of it, and `scalefactors_json.json` says by how much. So the size of the full image is known without
it, and an image beside the section is recognised by its size rather than by its name. In the order of preference: the
image that the curator names, one found beside that fits, the hires copy, the lowres copy, none.

`cytassist_image.tiff` is never taken by itself: it is the instrument's own picture, stained with eosin alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.readers import Listing
from histolake.ingestion.readers.matrices import unpacked
from histolake.ingestion.readers.refusals import truncated
from histolake.ingestion.slide import ScaleEvidence
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["FIDUCIAL_UM", "ImageChoice", "choose_image", "image_roles", "read_scalefactors"]

SUFFIXES = (".tif", ".tiff", ".btf", ".jpg", ".jpeg", ".png", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".qptiff")
# What Space Ranger writes for a person to look at.
NOT_THE_SLIDE = (
    "tissue_hires_image",
    "tissue_lowres_image",
    "aligned_fiducials",
    "aligned_tissue_image",
    "detected_tissue_image",
    "cytassist",
)
HINTS = ("tissue_image", "fullres", "full_res", "image")
REDUCED = ("hires", "lowres")  # their roles are "hires image" and "lowres image"
SAME_SIZE = 0.01  # two sizes are the same when both sides differ by less than this fraction
# The span of all positions against the sides of the image that they were measured on, where no copy tells its size:
# the frame of fiducials and some glass lie around them, but not several times as much.
MAX_SIDES_PER_SPAN = 4.0
FIDUCIAL_UM = 105.0  # diameter of a Visium slide's fiducial marks; by the fitted pitch two real slides have 104.8


@dataclass(frozen=True, kw_only=True)
class ImageChoice:
    """The image, and pixels of it per pixel of the positions."""

    uri: str | None
    scale: float = 1.0
    flags: tuple[str, ...] = ()

    def evidence(
        self, lattice_um_per_px: float, files: Mapping[str, str], fiducial_px: float | None
    ) -> tuple[ScaleEvidence, ...]:
        """What pitch and fiducial marks say of the scale of this image."""
        found = [ScaleEvidence(origin="pitch", um_per_px=lattice_um_per_px / self.scale, file=files["positions"])]
        if fiducial_px:
            um_per_px = FIDUCIAL_UM / fiducial_px / self.scale
            found.append(ScaleEvidence(origin="fiducial", um_per_px=um_per_px, file=files["scalefactors"]))
        return tuple(found)


def image_roles(folders: Sequence[Listing], named: str | None, prefix: str = "") -> dict[str, str]:
    """Images that lie in these folders and may be the slide, the likeliest first, as roles of a source; the one that
    `section.json` names alone, where it is there.

    `prefix` is what the names must start with, where a folder holds several sections.
    """
    if named and Location.parse(named).is_file():
        return {"image": named}
    found: list[tuple[int, str, str]] = []
    for rank, folder in enumerate(folders):
        for name in folder.files:
            low = name.lower()
            stem = low[len(prefix) :] if low.startswith(prefix.lower()) else low
            if low.endswith(SUFFIXES) and low.startswith(prefix.lower()) and not any(n in low for n in NOT_THE_SLIDE):
                hint = next((i for i, word in enumerate(HINTS) if word in stem), len(HINTS))
                found.append((hint * 10 + rank, name, folder.location.join(name).uri))
    return {f"image {i}" if i else "image": uri for i, (_, _, uri) in enumerate(sorted(found))}


def read_scalefactors(uri: str) -> dict[str, float]:
    """`scalefactors_json.json`. Raises `SourceError` where it is not whole, or a factor is no factor."""
    try:
        values = json.loads(unpacked(uri))
        numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    except (ValueError, AttributeError) as error:
        raise truncated(uri, str(error)) from error
    bad = {name: value for name, value in numbers.items() if not (np.isfinite(value) and value > 0)}
    if bad:
        name, value = next(iter(bad.items()))
        raise SourceError(
            f"{uri} says {name} = {value:g}; it must be above 0.",
            rule="scale_known",
            figure=value,
            limit=0.0,
            file=uri,
        )
    return numbers


def choose_image(
    files: Mapping[str, str], factors: Mapping[str, float], xy_px_N2: np.ndarray, named: str | None
) -> ImageChoice:
    """The image to read with. `files` has the roles of `image_roles`, `hires image` and `lowres image`; `xy_px_N2` are
    all positions. Raises `SourceError` (`image_fits`) where the image that the curator names is another one."""
    copies = _copies(files, factors)
    expected = next((size for _, _, size in copies), None)
    if named:
        return _named(named, expected, copies)
    passed = False
    for role in sorted((role for role in files if role.split()[0] == "image"), key=lambda r: (len(r), r)):
        size = np.array(_size_px(files[role]), dtype=float)
        if _apart(size, expected) < SAME_SIZE if expected is not None else _plausible(size, xy_px_N2):
            return ImageChoice(uri=files[role])
        passed = True
    flags = ("image_passed_over",) if passed else ()
    for uri, scale, _ in copies:
        return ImageChoice(uri=uri, scale=scale, flags=("image_reduced", *flags))
    _check_scales_known(files, factors)
    return ImageChoice(uri=None, flags=flags)


def _copies(files: Mapping[str, str], factors: Mapping[str, float]) -> list[tuple[str, float, np.ndarray]]:
    """The reduced copies that are there: URI, pixels of it a pixel of the full image, and the full size it implies."""
    found = []
    for name in REDUCED:
        factor = factors.get(f"tissue_{name}_scalef")
        uri = files.get(f"{name} image")
        if uri and factor:
            found.append((uri, factor, np.array(_size_px(uri), dtype=float) / factor))
    return found


def _named(uri: str, expected: np.ndarray | None, copies: list[tuple[str, float, np.ndarray]]) -> ImageChoice:
    if not Location.parse(uri).is_file():
        raise SourceError(
            f"The metadata name the image {uri}, which is not there.",
            rule="missing_file",
            figure=1.0,
            limit=0.0,
            file=uri,
        )
    size = np.array(_size_px(uri), dtype=float)
    if expected is None or _apart(size, expected) < SAME_SIZE:
        return ImageChoice(uri=uri)
    for _, scale, _ in copies:
        if _apart(size, expected * scale) < SAME_SIZE:
            return ImageChoice(uri=uri, scale=scale, flags=("image_reduced",))
    apart = _apart(size, expected)
    raise SourceError(
        f"The metadata name the image {uri} of {_words(size)} px, but the positions were measured on one of "
        f"{_words(expected)} px (so say the reduced copies and their scale factors): {apart:.0%} apart, at most "
        f"{SAME_SIZE:.0%} is allowed. Name the image that Space Ranger was given.",
        rule="image_fits",
        figure=apart,
        limit=SAME_SIZE,
        file=uri,
    )


def _check_scales_known(files: Mapping[str, str], factors: Mapping[str, float]) -> None:
    """A reduced copy whose factor nobody tells cannot be used, and must not be passed over in silence."""
    for name in REDUCED:
        uri = files.get(f"{name} image")
        if uri and f"tissue_{name}_scalef" not in factors:
            wanted = files.get("scalefactors") or Location.parse(uri).parent().join("scalefactors_json.json").uri
            raise SourceError(
                f"{uri} is a reduced image, and {wanted} does not tell tissue_{name}_scalef, by how much. Add "
                "it, or name the full-resolution image.",
                rule="missing_file",
                figure=1.0,
                limit=0.0,
                file=wanted,
            )


def _plausible(size: np.ndarray, xy_px_N2: np.ndarray) -> bool:
    """Whether an image could be the one of the positions, where nothing tells its size."""
    span = np.ptp(xy_px_N2, axis=0)
    inside = bool((xy_px_N2 >= 0).all() and (xy_px_N2 < size).all())
    return inside and bool((size < MAX_SIDES_PER_SPAN * span).all())


def _apart(size: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(size / expected - 1)))


def _size_px(uri: str) -> tuple[int, int]:
    from histolake.ingestion.images import open_image

    image = open_image(uri)
    try:
        return image.size_px
    finally:
        image.close()


def _words(size: np.ndarray) -> str:
    return " × ".join(f"{side:.0f}" for side in size)
