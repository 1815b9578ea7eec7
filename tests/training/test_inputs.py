"""What a model reads, as data: keys of a batch, checks that teach, and the way to a card and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from histolake.platform.errors import ModelError
from histolake.training.inputs import Picture, Profile, Sentence, Vector, inputs_from_card, inputs_to_card
from histolake.training.models.base import present_vectors

ALL = (
    Picture(column="spot_image", px=28),
    Picture(column="niche_image", px=224),
    Sentence(column="sentence", tokenizer="gene", context=52),
    Profile(of="niche", gene_ids=(3, 1, 2)),
    Vector(table="scgpt-v1", width=512),
)


def test_inputs_come_back_from_a_card() -> None:
    assert [one.key for one in ALL] == ["spot_image", "niche_image", "sentence", "niche_profile", "vector"]
    assert Profile(of="spot", gene_ids=(1,)).key == "profile"
    assert inputs_from_card(json.loads(json.dumps(inputs_to_card(ALL)))) == ALL


@pytest.mark.parametrize(
    ("make", "values", "words"),
    [
        (Picture, {"column": "he", "px": 28}, "column is 'he'; it must be spot_image or niche_image"),
        (Picture, {"column": "spot_image", "px": 0}, "px is 0; it must be a whole number of at least 1"),
        (Sentence, {"column": "text", "tokenizer": "bpe", "context": 76}, "must be sentence or niche_sentence"),
        (Sentence, {"column": "sentence", "tokenizer": "", "context": 76}, "no tokenizer; name one"),
        (Sentence, {"column": "sentence", "tokenizer": "bpe", "context": 2}, "at least 3 .start, one token and end"),
        (Profile, {"of": "slide", "gene_ids": (1,)}, "'slide'; it must be spot or niche"),
        (Profile, {"of": "spot", "gene_ids": ()}, "lists no genes"),
        (Profile, {"of": "spot", "gene_ids": (1, -4)}, "smallest gene id is -4"),
        (Profile, {"of": "spot", "gene_ids": (1, 2, 1)}, "lists 1 of its 3 gene ids again"),
        (Vector, {"table": "", "width": 8}, "no table"),
        (Vector, {"table": "t", "width": True}, "width is True"),
    ],
)
def test_what_cannot_be_is_said(make: Any, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        make(**values)


def test_a_card_that_cannot_be_read_is_refused() -> None:
    for listed, words in (
        ([{"kind": "sound"}], "kind 'sound'; there are picture, sentence, profile, vector"),
        ([{"kind": "picture", "px": 3}], "a picture with px; it must have column, px"),
        (inputs_to_card(ALL[:1]) * 2, "reads spot_image twice"),
    ):
        with pytest.raises(ModelError, match=words):
            inputs_from_card(listed)
    with pytest.raises(ModelError, match="twice"):
        inputs_to_card((ALL[3], Profile(of="niche", gene_ids=(9,))))


def test_a_vector_is_there_where_all_its_inputs_are() -> None:
    needs = {"image": ("spot_image",), "text": ("sentence",), "spot": ("spot_image", "sentence")}
    seen, said = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    rows = present_vectors(needs, {"spot_image": seen, "sentence": said})
    assert {name: row.tolist() for name, row in rows.items()} == {
        "image": [True, True, False],
        "text": [True, False, True],
        "spot": [True, False, False],
    }
    assert set(present_vectors(needs, {"sentence": said})) == {"text", "spot"}
    assert present_vectors(needs, {}) == {}
