"""What a model reads of a pair, as data: which picture, which sentence, which profile, which vector.

A model lists its inputs (`model.inputs`). Whoever reads pairs fills a batch by them, `Mapping[str, Tensor]`, under each
input's `key`; the list goes into the model's card, so that a stranger can feed the model years later.

    key                           tensor
    spot_image, niche_image       uint8 (B, px, px, 3)
    sentence, niche_sentence      int64 (B, L), token ids
    profile, niche_profile        float32 (B, G), log1p of counts per ten thousand
    vector                        float32 (B, W), of a frozen gene encoder

A row of a pair that lacks the modality holds zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from histolake.platform.errors import ModelError

__all__ = ["Input", "Picture", "Profile", "Sentence", "Vector", "inputs_from_card", "inputs_to_card"]

PICTURES = ("spot_image", "niche_image")
SENTENCES = ("sentence", "niche_sentence")
PROFILES = {"spot": "profile", "niche": "niche_profile"}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A square picture of the pair."""

    column: str  # spot_image | niche_image
    px: int  # pixels, width

    def __post_init__(self) -> None:
        _one_of("A picture's column", self.column, PICTURES)
        _at_least("A picture's px", self.px, 1)

    @property
    def key(self) -> str:
        """Where it stands in a batch."""
        return self.column


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A gene sentence of the pair, as token ids."""

    column: str  # sentence | niche_sentence
    tokenizer: str  # its name
    context: int  # tokens, start and end among them

    def __post_init__(self) -> None:
        _one_of("A sentence's column", self.column, SENTENCES)
        if not self.tokenizer:
            raise ModelError("A sentence has no tokenizer; name one, such as 'bpe' or 'gene'.")
        _at_least("A sentence's context", self.context, 3, "start, one token and end")

    @property
    def key(self) -> str:
        """Where it stands in a batch."""
        return self.column


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The expression of some genes: log1p of counts per ten thousand (over all genes that were measured)."""

    of: str  # spot | niche
    gene_ids: tuple[int, ...]  # of the lake, in the model's own order

    def __post_init__(self) -> None:
        _one_of("A profile is of", self.of, tuple(PROFILES))
        object.__setattr__(self, "gene_ids", tuple(int(gene) for gene in self.gene_ids))
        if not self.gene_ids:
            raise ModelError("A profile lists no genes; give the lake's gene ids that the model reads, in its order.")
        _at_least("A profile's smallest gene id", min(self.gene_ids), 0)
        if twice := len(self.gene_ids) - len(set(self.gene_ids)):
            raise ModelError(f"A profile lists {twice} of its {len(self.gene_ids)} gene ids again; list each once.")

    @property
    def key(self) -> str:
        """Where it stands in a batch."""
        return PROFILES[self.of]


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A frozen gene encoder's vector of the pair, from a table of embeddings."""

    table: str  # name of the lake's table of embeddings
    width: int  # numbers

    def __post_init__(self) -> None:
        if not self.table:
            raise ModelError("A vector has no table; name the table of embeddings that holds it.")
        _at_least("A vector's width", self.width, 1)

    @property
    def key(self) -> str:
        """Where it stands in a batch."""
        return "vector"


Input = Picture | Sentence | Profile | Vector

_KINDS: dict[str, type[Picture] | type[Sentence] | type[Profile] | type[Vector]] = {
    "picture": Picture,
    "sentence": Sentence,
    "profile": Profile,
    "vector": Vector,
}


def inputs_to_card(inputs: Iterable[Input]) -> list[dict[str, Any]]:
    """The inputs as plain JSON, for a model's card."""
    listed = _each_key_once(tuple(inputs))
    kinds = {made: name for name, made in _KINDS.items()}
    return [
        {"kind": kinds[type(one)], **{field.name: _plain(one, field.name) for field in fields(one)}} for one in listed
    ]


def inputs_from_card(listed: Sequence[Mapping[str, Any]]) -> tuple[Input, ...]:
    """The inputs of a card, as `inputs_to_card` wrote them. Raises `ModelError` that names what cannot be read."""
    made: list[Input] = []
    for row in listed:
        given = dict(row)
        kind = given.pop("kind", None)
        if kind not in _KINDS:
            raise ModelError(f"A model's card lists an input of the kind {kind!r}; there are {', '.join(_KINDS)}.")
        wanted = {field.name for field in fields(_KINDS[kind])}
        if wanted != set(given):
            raise ModelError(
                f"A model's card lists a {kind} with {', '.join(sorted(given)) or 'nothing'}; "
                f"it must have {', '.join(sorted(wanted))}."
            )
        made.append(_KINDS[kind](**given))
    return _each_key_once(tuple(made))


def _plain(one: Input, name: str) -> Any:
    value = getattr(one, name)
    return list(value) if isinstance(value, tuple) else value


def _each_key_once(inputs: tuple[Input, ...]) -> tuple[Input, ...]:
    keys = [one.key for one in inputs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ModelError(f"A model reads {' and '.join(twice)} twice; a batch holds each key once, so list it once.")
    return inputs


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ModelError(f"{what} is {value!r}; it must be {' or '.join(known)}.")


def _at_least(what: str, value: int, least: int, why: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ModelError(f"{what} is {value!r}; it must be a whole number of at least {least}{why and f' ({why})'}.")
