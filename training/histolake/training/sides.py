"""Which slides are on which side of a run, and whether the request can be met at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from histolake.platform.errors import UsageError
from histolake.platform.splits import BLOCKS, LEFT_OUT, SIDES, Selection, Split
from histolake.training.recipes import Recipe

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot

__all__ = ["check_request", "choose_sides"]

LOW_RESOLUTION = "low_resolution"
NO_IMAGE = "image: none"
NAMED = 10  # slides named in a message


def choose_sides(
    snapshot: Snapshot,
    split: Split,
    *,
    include_low_resolution: bool,
    where: str | None = None,
    say: Callable[[str], None],
) -> dict[str, str]:
    """slide_id -> side of every slide on a side for which the filter is true. A slide of low resolution doesn't train
    unless asked for; it may validate or test. One without an image is on no side. In a split by blocks the side is
    `BLOCKS`, and a slide of low resolution is on none.

    The sides are drawn before the filter, which moves no slide to another side: it only leaves slides out.
    """
    table = snapshot.slides()
    flags = dict(zip(table["slide_id"].to_pylist(), table["flags"].to_pylist(), strict=True))
    placings = split.placings(table)
    for slide_id, placing in sorted(placings.items()):
        if placing.side == LEFT_OUT and placing.rule != "unlisted":
            say(f"left out by the split: {slide_id} {placing.why}")
    sides = {slide_id: placing.side for slide_id, placing in placings.items() if placing.side in (*SIDES, BLOCKS)}
    if where is not None:
        meant = set(snapshot.slides(where=where)["slide_id"].to_pylist())
        others = sorted(set(sides) - meant)
        if others:
            say(f"{len(others)} of {len(sides)} slides left out by the filter {where!r}: {_some(others)}")
        sides = {slide_id: side for slide_id, side in sides.items() if slide_id in meant}
    blind = sorted(slide_id for slide_id in sides if NO_IMAGE in (flags[slide_id] or []))
    if blind:
        say(f"left out, for they have no image: {_some(blind)}")
        sides = {slide_id: side for slide_id, side in sides.items() if slide_id not in blind}
    if not include_low_resolution:
        trains = ("train", BLOCKS)
        coarse = sorted(s for s, side in sides.items() if side in trains and LOW_RESOLUTION in (flags[s] or []))
        if coarse:
            say(f"kept out of training for low resolution: {_some(coarse)} (--include-low-resolution takes them in)")
        sides = {slide_id: side for slide_id, side in sides.items() if slide_id not in coarse}
    return dict(sorted(sides.items()))


def _some(slide_ids: Sequence[str]) -> str:
    more = f" and {len(slide_ids) - NAMED} more" if len(slide_ids) > NAMED else ""
    return ", ".join(slide_ids[:NAMED]) + more


def check_request(recipe: Recipe, pairs: Selection, workers: int) -> None:
    """Raise `UsageError` for what could only fail later."""
    if workers < 1:
        raise UsageError(f"{workers} workers cannot train; give at least 1.")
    if not pairs.slide_ids:
        raise UsageError("The training side of the split has no slides; name some, or widen the split or the filter.")
    if (count := pairs.n_pairs) < recipe.global_batch:
        raise UsageError(
            f"There are {count} pairs to train on, fewer than one global batch of {recipe.global_batch}; "
            "name more slides or set a smaller global_batch."
        )
    if recipe.global_batch % workers:
        raise UsageError(
            f"A global batch of {recipe.global_batch} cannot be divided among {workers} workers; "
            "choose another number of workers or set global_batch."
        )
