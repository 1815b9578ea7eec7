"""The demo calls real commands, reads what they print, and ends clearly when one fails."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from histolake.serving.demo.markers import marker_sentences
from histolake.serving.demo.runs import better, evaluation_of, train_words
from histolake.serving.demo.splits import choose_split
from histolake.serving.demo.steps import StepError, Steps, free_port

spec = spec_from_file_location("demo_evidence", Path(__file__).parent / "demo_evidence.py")
assert spec and spec.loader
generator = module_from_spec(spec)
spec.loader.exec_module(generator)


def test_a_command_is_called_timed_and_its_rows_are_read() -> None:
    steps = Steps({"HISTOLAKE_QUALITY__MIN_GENES": "321"})
    with steps.timed("settings", "a command that lists"):
        code, rows = steps.ask("settings")
    assert code == 0
    assert {row["name"]: row["value"] for row in rows}["quality.min_genes"] == "321"
    assert steps.commands == ["histolake settings --json"]
    assert steps.seconds["settings"] > 0


def test_a_usage_mistake_of_a_step_ends_the_demo_with_2(tmp_path: Path) -> None:
    steps = Steps({})
    with pytest.raises(StepError, match=r"lake slides --lake .*nowhere.* ended with 2") as caught:
        steps.ask("lake", "slides", "--lake", str(tmp_path / "nowhere"))
    assert caught.value.exit_code == 2


def test_an_exit_code_that_is_expected_is_no_error(tmp_path: Path) -> None:
    assert Steps({}).call("lake", "slides", "--lake", str(tmp_path / "nowhere"), accept=(0, 2)) == 2


def test_a_server_that_is_left_is_ended() -> None:
    steps = Steps({})
    with steps.serving("--help") as process:
        pass
    assert process.poll() is not None


def test_a_free_port_is_one_that_can_be_listened_on() -> None:
    import socket

    with socket.socket() as server:
        server.bind(("127.0.0.1", free_port()))


def test_the_better_recipe_on_validation_is_served() -> None:
    evidence = generator.make()
    chosen, why = better(evidence.recipes)
    assert [recipe.name for recipe in chosen if recipe.served] == ["clip-lite0"]
    assert "clip-lite0 is served" in why and "coca-tiny" in why


def test_the_test_side_has_no_say_in_the_choice() -> None:
    evidence = generator.make()
    worst = [
        replace(r, figures={**r.figures, "test": replace(r.figures["test"], recall_at_10pct=1.0 - r.served)})
        for r in evidence.recipes
    ]
    assert [recipe.name for recipe in better(worst)[0] if recipe.served] == ["clip-lite0"]


def test_without_a_validation_side_the_choice_is_said_to_be_none() -> None:
    evidence = generator.make()
    chosen, why = better([replace(recipe, figures={}) for recipe in evidence.recipes])
    assert sum(recipe.served for recipe in chosen) == 1
    assert "no section was left to choose on" in why


def test_the_split_reaches_the_command_line_whole() -> None:
    rows = [
        {"slide_id": f"her2st/{name}", "cohort": "her2st", "study": "s", "patient": name[0]}
        for name in ("A1", "C2", "C3", "C4", "C5")
    ]
    words = train_words("coca-tiny", "/lake", 3, choose_split(rows))
    assert words[words.index("--train-slides") + 1] == "her2st/C2,her2st/C3,her2st/C4"
    assert words[words.index("--validation-slides") + 1] == "her2st/C5"
    assert words[words.index("--test-slides") + 1] == "her2st/A1"
    assert "--cuts-units" in words and words[words.index("--version") + 1] == "3"


def test_evaluations_are_found_by_model_and_side() -> None:
    from histolake.serving.demo.runs import Run

    documents = [
        {"rows": [{"model_name": "omiclip", "model_version": version, "side": side}], "tag": version + side}
        for version in ("1", "2")
        for side in ("validation", "test")
    ]
    run = Run(recipe="clip-lite0", name="omiclip", version="2", run_id="r", reused=False)
    found = evaluation_of(documents, run, "test")
    assert found is not None and found["tag"] == "2test"
    assert evaluation_of(documents[:2], run, "test") is None


def test_simulated_classes_are_the_domains_and_breast_has_its_own() -> None:
    from histolake.ingestion.simulate.anatomy import DOMAINS

    assert set(marker_sentences("breast", simulated=True)) == set(DOMAINS)
    assert "ERBB2" in marker_sentences("breast", simulated=False)["tumour epithelium"]
    assert "tumour epithelium" not in marker_sentences("brain", simulated=False)
