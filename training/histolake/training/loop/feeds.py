"""Where a worker's batches come from: the feed that the recipe names, and a reader of the lake for looks beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from histolake.training.inputs import Input, Picture, Sentence
from histolake.training.loop.plan import TrainPlan
from histolake.training.reading import Augmentation, Feed, FeedOptions, PairReader, RayFeed, ReadOptions, ShardReader

if TYPE_CHECKING:
    from histolake.platform.splits import Selection
    from histolake.training.recipes import Recipe
    from histolake.training.tokenizers import Tokenizer

__all__ = ["first_pictures", "make_feed", "make_reader"]

WARM_START_PICTURES = 256


def make_feed(
    pairs: Selection, plan: TrainPlan, inputs: Sequence[Input], tokenizer: Tokenizer, rank: int, ranks: int
) -> Feed:
    """The training batches of one worker, augmented, from where the recipe says. Where shards feed, it is `shards` that
    are read and `pairs` only says which lake they came from (see `preflight`)."""
    recipe = plan.recipe
    options = _options(plan, ranks)
    rest: dict[str, Any] = {
        "tokenizers": _tokenizers(inputs, tokenizer),
        "augmentation": Augmentation(flips=recipe.flips, stain=recipe.stain, density=recipe.density),
        "rank": rank,
        "ranks": ranks,
    }
    if recipe.feed == "shards":
        return ShardReader(recipe.shards, inputs, options, **rest)
    if recipe.feed == "ray":
        return RayFeed(pairs, inputs, options, _feed_options(recipe), **rest)
    return PairReader(pairs, inputs, options, **rest)


def make_reader(
    pairs: Selection,
    plan: TrainPlan,
    inputs: Sequence[Input],
    tokenizer: Tokenizer | None,
    rank: int,
    ranks: int,
    *,
    global_batch: int,
) -> PairReader:
    """One worker's share of pairs that are looked at, not trained on: from the lake, each once, as they are."""
    options = _options(plan, ranks, global_batch=global_batch, sampling="pairs", neighbours=False)
    return PairReader(pairs, inputs, options, tokenizers=_tokenizers(inputs, tokenizer), rank=rank, ranks=ranks)


def first_pictures(pairs: Selection, plan: TrainPlan, inputs: Sequence[Input]) -> torch.Tensor:
    """Up to `WARM_START_PICTURES` training pictures, the same on every worker, uint8 (N, px, px, 3)."""
    picture = next(each for each in inputs if isinstance(each, Picture))
    size = min(WARM_START_PICTURES, pairs.n_pairs)
    return make_reader(pairs, plan, (picture,), None, 0, 1, global_batch=size).batch(0).tensors[picture.key]


def _feed_options(recipe: Recipe) -> FeedOptions:
    """Who decodes for each worker, where actors of Ray do."""
    return FeedOptions(workers=recipe.feed_workers, resources={recipe.feed_slot: 1.0} if recipe.feed_slot else {})


def _options(plan: TrainPlan, ranks: int, **changes: Any) -> ReadOptions:
    recipe = plan.recipe
    # An actor that decodes has one slot of Ray's, a worker that reads for itself the cores that its model leaves.
    spare = 1 if recipe.feed == "ray" else max(1, (os.cpu_count() or 1) // (2 * ranks))
    chosen: dict[str, Any] = {
        "seed": recipe.seed,
        "global_batch": recipe.global_batch,
        "sampling": recipe.sampling,
        "window_rows": recipe.window_rows,
        "decoders": recipe.decoders or spare,
        "neighbours": recipe.ignore_neighbours,
        "pinned": torch.cuda.is_available(),
    }
    return ReadOptions(**(chosen | changes))


def _tokenizers(inputs: Sequence[Input], tokenizer: Tokenizer | None) -> dict[str, Tokenizer | None]:
    return {each.key: tokenizer for each in inputs if isinstance(each, Sentence)}
