"""How often pairs come: each once an epoch, or each slide, organ, technology or study alike often."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from histolake.platform.errors import UsageError

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot

__all__ = ["SAMPLINGS", "groups_of"]

# name of a sampling -> the column of the catalogue whose values are to come alike often
SAMPLINGS = {"pairs": None, "slides": "slide_id", "organs": "organ", "technologies": "technology", "studies": "study"}


def groups_of(snapshot: Snapshot, slide_ids: Sequence[str], sampling: str) -> np.ndarray | None:
    """The group of each of some slides, as a number; None where every pair comes once an epoch.

    Slides of which the catalogue does not say the organ (or technology, or study) are a group together.
    """
    if sampling not in SAMPLINGS:
        raise UsageError(f"There is no sampling {sampling!r}; there are {', '.join(SAMPLINGS)}.")
    column = SAMPLINGS[sampling]
    if column is None:
        return None
    rows = snapshot.slides().select(sorted({"slide_id", column}))
    value = dict(zip(rows["slide_id"].to_pylist(), rows[column].to_pylist(), strict=True))
    return np.unique([value[slide_id] or "" for slide_id in slide_ids], return_inverse=True)[1]
