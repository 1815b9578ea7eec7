"""Splits that never leak: which slides, or which pairs, train, choose and test.

Start with `split.py`, the class that is one; `placing.py` says who is kin to whom and why nothing ever moves.
"""

from histolake.platform.splits.marks import mark_of, marks
from histolake.platform.splits.selection import Selection
from histolake.platform.splits.split import BLOCKS, GROUPS, LEFT_OUT, SIDES, Split, group_of, read_slides, unit_of

__all__ = [
    "BLOCKS",
    "GROUPS",
    "LEFT_OUT",
    "SIDES",
    "Selection",
    "Split",
    "group_of",
    "mark_of",
    "marks",
    "read_slides",
    "unit_of",
]
