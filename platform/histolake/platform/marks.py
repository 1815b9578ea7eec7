"""What has to be said beside a figure: how the slides that it is of are related to those that were trained on."""

from __future__ import annotations

from collections.abc import Iterable

from histolake.platform.placing import Row, ties

__all__ = ["SAME_SECTION", "marks"]

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
