"""An affine map between two images: read from a file, judged, and applied the way it is needed.

A 3 x 3 matrix M takes a column (x, y, 1) of one image's pixels to the other's. Xenium Explorer exports the one that
takes pixels of an added image (H&E) to pixels of the morphology image, so M applied to H&E pixels and multiplied by the
morphology's pixel size gives micrometres. (Seen in published bundles: an H&E image of 20,515 x 43,995 px lands on a
morphology image of 53,994 x 27,420 px, turned by 90 degrees and enlarged 1.29 times.) It may turn, mirror and scale.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

__all__ = ["Affine", "read_matrix_csv"]

MAX_STRETCH = 1.1  # of one direction against the other; tissue is not stretched more between two images of one section


@dataclass(frozen=True, eq=False)
class Affine:
    """Points of one image as points of another. `matrix` is (3, 3) float64 with the last row 0 0 1."""

    matrix: np.ndarray

    @classmethod
    def identity(cls) -> Affine:
        """Both images are one."""
        return cls(np.eye(3))

    def __call__(self, xy_N2: np.ndarray) -> np.ndarray:
        """(N, 2) points mapped."""
        return np.asarray(xy_N2, dtype=np.float64) @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def inverse(self) -> Affine:
        """The way back."""
        return Affine(np.linalg.inv(self.matrix))

    def then(self, other: Affine) -> Affine:
        """First this, then the other."""
        return Affine(other.matrix @ self.matrix)

    @property
    def scale(self) -> float:
        """Length after by length before: the square root of how much an area grows."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:2, :2]))))

    @property
    def stretch(self) -> float:
        """The longer side of a mapped square by the shorter; infinite where the map is none that can be undone."""
        longer, shorter = np.linalg.svd(self.matrix[:2, :2], compute_uv=False)
        return float(longer / shorter) if shorter > 1e-12 * longer else float("inf")


def read_matrix_csv(uri: str) -> Affine:
    """The matrix in a CSV file of three rows with three numbers. Raises `SourceError` (`image_alignment`)."""
    data = Location.parse(uri).read_bytes()
    try:
        text = data.decode("utf-8-sig")
        rows = [[float(cell) for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise _not_a_matrix(uri, f"it is not made of numbers ({str(error)[:100]})", None) from error
    widths = [len(row) for row in rows]
    if widths != [3, 3, 3]:
        raise _not_a_matrix(uri, f"it has rows of {widths} numbers", float(len(rows)))
    matrix = np.array(rows)
    if not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
        raise _not_a_matrix(uri, f"its last row is {rows[2]} and not 0, 0, 1, or a number is not finite", None)
    affine = Affine(matrix)
    if affine.stretch > MAX_STRETCH:
        raise SourceError(
            f"The alignment {uri} stretches one direction {affine.stretch:.3g} times as much as the other; at most "
            f"{MAX_STRETCH:g} is taken for two images of one section. Export it again.",
            rule="image_alignment",
            figure=affine.stretch,
            limit=MAX_STRETCH,
            file=uri,
        )
    return affine


def _not_a_matrix(uri: str, what: str, figure: float | None) -> SourceError:
    return SourceError(
        f"The alignment {uri} is no 3 x 3 matrix: {what}. It needs three lines of three numbers, as Xenium Explorer "
        "exports them.",
        rule="image_alignment",
        figure=figure,
        limit=3.0,
        file=uri,
    )
