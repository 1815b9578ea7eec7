"""The report: well formed, self-contained, labelled and stamped everywhere, and its words follow its figures."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from histolake.serving.demo.reading import read_figures
from histolake.serving.demo.report import render

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


def load_generator() -> ModuleType:
    """The evidence generator beside this file (tests are no packages, so it is loaded by its path)."""
    spec = spec_from_file_location("demo_evidence", Path(__file__).parent / "demo_evidence.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generator = load_generator()


class Reader(HTMLParser):
    """Follows the nesting of tags and keeps what the tests ask about."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.sections: list[str] = []
        self.captions: list[str] = []
        self.headings: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.links += [value for key, value in attrs if key in ("href", "src", "srcset", "action") and value]
        self.ids += [values["id"]] if values.get("id") else []
        self.figures += tag == "figure"
        for name, kept in (("section", self.sections), ("figcaption", self.captions), ("h2", self.headings)):
            if tag == name:
                kept.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for name, kept in (("section", self.sections), ("figcaption", self.captions), ("h2", self.headings)):
            if name in self.open:
                kept[-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


@pytest.fixture(scope="module")
def real() -> str:
    return render(generator.make())


@pytest.fixture(scope="module")
def simulated() -> str:
    return render(generator.make(simulated=True))


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(real: str) -> None:
    reader = read(real)
    assert not reader.faults and not reader.open
    assert not [link for link in reader.links if not link.startswith(("data:image/", "#"))]
    assert not re.search(r"https?://|@import|url\(", real)
    assert {link[1:] for link in reader.links if link.startswith("#")} <= set(reader.ids)


def test_every_section_of_a_simulated_page_says_so(simulated: str) -> None:
    reader = read(simulated)
    assert len(reader.headings) == 8
    assert all("simulated" in heading for heading in reader.headings)
    assert all("simulated" in caption for caption in reader.captions)


def test_a_page_of_real_tissue_never_says_simulated(real: str) -> None:
    assert "simulated" not in " ".join(read(real).sections)


def test_every_figure_names_the_lake_version_and_the_model(real: str) -> None:
    reader = read(real)
    assert len(reader.captions) == reader.figures > 10
    assert all("lake version 5" in caption for caption in reader.captions)
    # A section's card shows the lake alone; every other figure came from a model as well.
    sections = len(generator.make().sections)
    assert (
        sum(bool(re.search(r"omiclip version \d", caption)) for caption in reader.captions) == reader.figures - sections
    )


def test_refused_sections_and_held_out_marks_are_shown(real: str) -> None:
    text = " ".join(read(real).sections)
    assert "counts.tsv.gz ends in the middle of a row" in text
    assert "same patient, used to choose" in text and "another patient" in text
    assert "3 min genes; 1 outside image" in text


def test_markup_in_names_is_text() -> None:
    evidence = generator.make()
    named = replace(evidence, source="<script>alert(1)</script>")
    page = render(named)
    assert "<script" not in page and "&lt;script&gt;" in page


def test_a_run_without_held_out_sections_still_gives_a_page() -> None:
    evidence = generator.make()
    bare = [replace(recipe, figures={}, loss=()) for recipe in evidence.recipes]
    page = render(replace(evidence, recipes=tuple(bare), maps=(), queries=(), classes=()))
    assert not read(page).faults
    assert "No section could be held out" in page
    assert "no figure of quality could be had" in page


def test_the_reading_says_what_the_figures_say() -> None:
    evidence = generator.make()
    served = evidence.served
    test = served.figures["test"]

    def reading(**changes: object) -> str:
        figures = {**served.figures, "test": replace(test, **changes)}
        recipes = tuple(replace(r, figures=figures) if r.served else r for r in evidence.recipes)
        return " ".join(read_figures(replace(evidence, recipes=recipes)))

    assert "better than chance" in reading(recall_at_10pct=0.4)
    assert "not distinguishable from chance" in reading(recall_at_10pct=0.11)
    assert "worse than chance" in reading(recall_at_10pct=0.01)
    assert "worse than ridge" in reading(pcc_mean=0.02, pcc_ridge=0.2)
    assert "level with ridge" in reading(pcc_mean=0.19, pcc_ridge=0.2)
    assert "better than ridge" in reading(pcc_mean=0.3, pcc_ridge=0.2)


def test_a_loss_that_rose_is_not_said_to_have_fallen() -> None:
    evidence = generator.make()
    recipes = tuple(replace(recipe, loss_first=1.0, loss_last=1.5) for recipe in evidence.recipes)
    words = " ".join(read_figures(replace(evidence, recipes=recipes)))
    assert "did not fall" in words and " fell:" not in words
