"""Annotate: which of the named classes a patch looks like, zero shot (Loki Annotate; METHODS 1.3.2 b).

Each class is a sentence of marker genes, embedded by the model's text tower; a patch takes the class of highest cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from histolake.platform.errors import UsageError
from histolake.serving.tasks.scoring import unit_rows

__all__ = ["Annotation", "annotate"]


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """Scores of every class and the winner."""

    scores_NC: np.ndarray  # float32, cosine, -1 to 1
    best_N: np.ndarray  # int64, column of the winning class; the earlier one of equals
    margin_N: np.ndarray  # float32, best score minus second best; 0 is a tie


def annotate(image_ND: np.ndarray, class_CD: np.ndarray) -> Annotation:
    """Cosine of each patch with each class, and the class that wins.

    `image_ND`: image vectors of the patches. `class_CD`: text vectors of the classes' marker sentences, same model.
    The scores compare classes for one patch; they are no probabilities, and across models they cannot be compared.

    Raises `UsageError` for fewer than two classes (the only one would always win), for widths that differ and for
    vectors that are zero or not finite. Source: Loki Annotate (b), class = argmax cosine (METHODS 1.3.2).
    """
    class_CD = unit_rows("classes", class_CD)
    if len(class_CD) < 2:
        raise UsageError("There is one class to annotate with; give at least two, since a single one would always win.")
    image_ND = unit_rows("images", image_ND, class_CD.shape[1])
    # Summed in float64, one product at a time, so that a patch's scores do not depend on its batch.
    scores_NC = np.einsum("nd,cd->nc", image_ND.astype(np.float64), class_CD.astype(np.float64), optimize=False)
    two_N2 = np.partition(scores_NC, len(class_CD) - 2, axis=1)[:, -2:]
    return Annotation(
        scores_NC=scores_NC.astype(np.float32),
        best_N=np.argmax(scores_NC, axis=1),
        margin_N=(two_N2[:, 1] - two_N2[:, 0]).astype(np.float32),
    )
