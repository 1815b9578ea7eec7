"""Evaluation where the split cuts slides into blocks: pairs of the side alone, marked, and never one that trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from histolake.platform.errors import SplitError
from histolake.platform.lake import Snapshot
from histolake.platform.splits import SIDES, Selection, Split
from histolake.serving.evaluation import Evaluator
from histolake.serving.evaluation.protocol import Subject
from histolake.serving.evaluation.sections import read_section
from histolake.serving.tasks import load_reference
from histolake.training.models import build_encoder, load_model, save_model
from histolake.training.reference import write_reference

TEST = SIDES.index("test")
# Spots lie 200 um apart and 40 of them make a section: blocks of 800 um leave at least nine spots of each in.
SPLIT = Split.spatial_blocks({"train": 0.6, "test": 0.4}, seed=2, block_um=800, gap_um=100)


@pytest.fixture(scope="module")
def codes(planted: Snapshot) -> dict[str, dict[bytes, int]]:
    """slide_id -> pair_id -> the code of its side."""
    known = {row["slide_id"]: row for row in planted.slides().to_pylist()}
    found: dict[str, dict[bytes, int]] = {slide_id: {} for slide_id in known}
    for batch in planted.pairs(["slide_id", "pair_id", "x_um", "y_um"]):
        for row in batch.to_pylist():
            place = np.array([row["x_um"]]), np.array([row["y_um"]])
            found[row["slide_id"]][row["pair_id"]] = int(SPLIT.rows(known[row["slide_id"]], *place)[0])
    return found


@pytest.fixture(scope="module")
def subject(planted: Snapshot, small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    card = {**small_model.model.card, "split": SPLIT.to_dict()}
    folder = save_model(tmp_path_factory.mktemp("blocks") / "model", build_encoder(card["config"]), card)
    model = load_model(folder)
    write_reference(folder, model, planted, SPLIT.assign(planted.slides()), split=SPLIT)
    reference = load_reference(folder)
    return Subject(uri="models:/cut/1", name="cut", version="1", card=card, encoder=model, reference=reference)


def test_figures_are_of_the_side_s_pairs_and_marked(
    planted: Snapshot, subject: Subject, codes: dict[str, dict[bytes, int]]
) -> None:
    on = {side: {s: sum(c == n for c in by.values()) for s, by in codes.items()} for n, side in enumerate(SIDES)}
    tested = {slide_id: count for slide_id, count in on["test"].items() if count}
    assert tested and any(on["train"][slide_id] for slide_id in tested), "the seed cuts a section in two"
    found = Evaluator(planted).run(subject, "test")
    assert {row["slide_id"]: row["n_spots"] for row in found.rows[:-1]} == tested
    assert {row["mark"] for row in found.rows} == {"same section"}
    assert sum(on["train"].values()) == len(subject.reference)
    assert set(subject.reference.training_slides) == set(codes), "known to whoever serves it"


def test_a_trained_pair_is_never_evaluated(
    planted: Snapshot, subject: Subject, codes: dict[str, dict[bytes, int]]
) -> None:
    leaked = next(pair for by in codes.values() for pair, code in by.items() if code == TEST)
    pairs = [leaked, *subject.reference.pair_ids[1:]]
    leaky = replace(subject, reference=replace(subject.reference, pair_ids=pairs))
    with pytest.raises(SplitError, match=r"was trained on .*cannot be used for its test"):
        Evaluator(planted).run(leaky, "test")


def test_a_model_of_whole_slides_is_not_asked_about_their_blocks(planted: Snapshot, small_model: Any) -> None:
    subject = Subject(
        uri="models:/small/1",
        name="small",
        version="1",
        card={**small_model.model.card, "split": SPLIT.to_dict()},
        encoder=small_model.model,
        reference=load_reference(small_model.folder),
    )
    with pytest.raises(SplitError, match="was trained on"):
        Evaluator(planted).run(subject, "test")


def test_a_part_of_a_section_is_read_as_a_part(planted: Snapshot, codes: dict[str, dict[bytes, int]]) -> None:
    tests = Selection.of(planted, SPLIT, SPLIT.assign(planted.slides()), "test")
    slide_id = tests.slide_ids[0]
    whole, part = read_section(planted, slide_id), read_section(tests, slide_id, part="test")
    mine = [code == TEST for code in codes[slide_id].values()]
    assert part.sentences == [sentence for sentence, its in zip(whole.sentences, mine, strict=True) if its]
    assert (whole.part, part.part) == ("", "test")
    few = read_section(tests, slide_id, most=4)
    assert len(few) == 4 and set(few.sentences) <= set(part.sentences)
