"""Pairs as batches: of a pinned lake version, in an order that is known beforehand, or of the shards of an export."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.training.reading.augmentation import Augmentation, augment
    from histolake.training.reading.batch import Batch
    from histolake.training.reading.feed import Feed
    from histolake.training.reading.order import Order
    from histolake.training.reading.ray_feed import FeedOptions, RayFeed
    from histolake.training.reading.reader import PairReader, ReadOptions
    from histolake.training.reading.shards import ShardReader

__all__ = [
    "Augmentation",
    "Batch",
    "Feed",
    "FeedOptions",
    "Order",
    "PairReader",
    "RayFeed",
    "ReadOptions",
    "ShardReader",
    "augment",
]

_HOME = {
    "Augmentation": "augmentation",
    "Batch": "batch",
    "Feed": "feed",
    "FeedOptions": "ray_feed",
    "Order": "order",
    "PairReader": "reader",
    "RayFeed": "ray_feed",
    "ReadOptions": "reader",
    "ShardReader": "shards",
    "augment": "augmentation",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.training.reading.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
