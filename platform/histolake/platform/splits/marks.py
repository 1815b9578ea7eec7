"""What has to be said beside a figure: how the slides that it is of are related to those that were trained on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa

from histolake.platform.splits.placing import Row, ties
from histolake.platform.splits.split import BLOCKS, read_slides

__all__ = ["SAME_SECTION", "mark_of", "marks"]

SAME_SECTION = "same section"
_WORDS = {
    "is of one patient with": "same patient",
    "may be of one patient with": "same study, patient not known",
    "looks like": "look-alike of a training slide",
}


def marks(slides: Iterable[Row], trained: Iterable[Row]) -> dict[str, list[str]]:
    """slide_id -> its marks, the worst first; an empty list where nothing is to be said.

    Rows hold slide_id, cohort, study, patient and look_alikes. A slide that is itself among those trained on (of which
    other blocks train) is of the same section, which says all.
    """
    there = list(trained)
    seen = {row["slide_id"] for row in there}
    return {
        slide_id: [SAME_SECTION] if slide_id in seen else [_WORDS[tie] for tie in found]
        for slide_id, found in ties(slides, there).items()
    }


def mark_of(side: str, slides: pa.Table, sides: Mapping[str, str]) -> str:
    """All that is to be said beside a figure of a side, in a line; empty where nothing is.

    `slides` are the rows of the catalogue, `sides` where each slide is (see `Split.assign`).
    """
    known = {row["slide_id"]: row for row in read_slides(slides)}
    asked, trained = ([known[k] for k, its in sides.items() if its in (name, BLOCKS)] for name in (side, "train"))
    return ", ".join(dict.fromkeys(mark for found in marks(asked, trained).values() for mark in found))
