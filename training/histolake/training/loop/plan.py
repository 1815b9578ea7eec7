"""What is to be trained, as every worker is told it, and the pairs and the parts that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histolake.platform.splits import BLOCKS, Selection, Split
from histolake.training.recipes import Recipe

if TYPE_CHECKING:
    from histolake.platform.lake import Snapshot
    from histolake.training.tokenizers import Tokenizer

__all__ = ["TrainPlan", "model_config"]


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """All that a worker needs to know; sent to each. What is drawn or counted from the lake was so once, on the driver,
    so that workers that start later, or again, agree."""

    recipe: Recipe
    lake_uri: str
    lake_version: int
    slide_ids: tuple[str, ...]  # that are trained on
    steps: int  # optimiser steps; the recipe's, or its epochs
    workers: int
    run_name: str
    storage: str  # folder or URI of checkpoints
    validation_ids: tuple[str, ...] = ()  # slides that are looked at on the way
    blocks: Split | None = None  # where the split cuts through slides: the pairs of its training blocks are read
    gene_ids: tuple[int, ...] = ()  # of the lake, of which a model reads profiles
    symbols: tuple[str, ...] = ()  # the lake's, the vocabulary of one token a gene
    kin: Mapping[str, int] = field(default_factory=dict)  # slide_id -> a number that look-alikes share
    weights: str = ""  # a folder on this machine, or a URI, that training starts from
    max_failures: int = 1  # how often the group may be restarted from its last checkpoint

    def pairs(self, snapshot: Snapshot, side: str = "train") -> Selection:
        """The pairs that are trained on, or looked at on the way."""
        named = self.slide_ids if side == "train" else self.validation_ids
        return Selection.of(snapshot, self.blocks, dict.fromkeys(named, BLOCKS if self.blocks else side), side)

    def tokenizer(self) -> Tokenizer:
        """What sentences are read with."""
        from histolake.training.tokenizers import make_tokenizer

        return make_tokenizer(self.recipe.tokenizer, self.recipe.context, self.symbols or None)

    def model_config(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """The model's whole configuration: the recipe's, and what the tokenizer and the lake decide."""
        return model_config(self.recipe, tokenizer.vocab_size, self.gene_ids)


def model_config(recipe: Recipe, vocab_size: int, gene_ids: Sequence[int]) -> dict[str, Any]:
    """A recipe's model with what is decided elsewhere: the vocabulary's size, and the lake's ids of the genes that
    profiles are read over."""
    from histolake.training.models.files import config_defaults

    known = config_defaults(recipe.model["architecture"])
    decided = {
        "image_column": recipe.image_column,
        "tokenizer": recipe.tokenizer,
        "vocab_size": vocab_size,
        "gene_ids": list(gene_ids),
    }
    return {**recipe.model, **{key: value for key, value in decided.items() if key in known}}
