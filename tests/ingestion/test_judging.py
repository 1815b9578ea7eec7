"""The judge of a wave: order, twins, genes and runs, whatever was read first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from histolake.ingestion import pipeline
from histolake.ingestion.discover import find_sections
from histolake.ingestion.duplicates import KnownSlides
from histolake.ingestion.judging import Begun, Judge, Judged, in_order
from histolake.ingestion.runs import RunSizes
from histolake.ingestion.twins import Twin
from histolake.ingestion.worker import Look, Work, look
from histolake.platform.errors import SourceError
from histolake.platform.lake import Lake
from histolake.platform.settings import load_settings

SETTINGS = pipeline.ingest_settings(load_settings({"quality.min_spots": 40}))
SIZES = RunSizes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_section: Callable[..., Path]) -> Path:
    """Two sections, and one of them again under a name that comes before it."""
    root = tmp_path_factory.mktemp("sections")
    for name, seed in (("b", 1), ("c", 2), ("a-again", 2)):
        make_section(root / name, seed=seed)
    return root


@pytest.fixture
def begun(folder: Path, lake: Lake) -> dict[str, Begun]:
    """The sections by name, as new ones."""
    found = list(find_sections([str(folder)], "k"))
    attempts = {c.slide_id: lake.begin(c.slide_id, source_digest="s", settings_digest="t", source=c.uri) for c in found}
    return {c.section: Begun(candidate=c, writer=attempts[c.slide_id].pairs, is_known=False) for c in found}


def read(section: Begun, lake: Lake) -> Look | SourceError:
    return look(section.candidate, lake.root, SETTINGS, section.writer.ingest_id)


def judged(lake: Lake, sections: list[Begun], known: KnownSlides | None = None, workers: int = 2) -> Iterator[list]:
    """What comes of each section, one by one in order."""
    judge = Judge(
        lake.root, known or KnownSlides(), SETTINGS.duplicates, sections=sections, workers=workers, sizes=SIZES
    )
    for section in sections:
        yield list(judge.judge(section, read(section, lake)))


def test_known_sections_come_first_and_each_group_by_name(begun: dict[str, Begun]) -> None:
    some = [begun["c"], replace(begun["b"], is_known=True), begun["a-again"]]
    ordered = in_order(some)
    assert [section.candidate.section for section in ordered] == ["b", "a-again", "c"]
    assert [section.place for section in ordered] == [0, 1, 2]


def test_the_first_of_two_twins_stays_and_runs_follow_the_verdict(begun: dict[str, Begun], lake: Lake) -> None:
    sections = in_order(list(begun.values()))
    first, second, third = judged(lake, sections)
    for items, name in ((first, "k/a-again"), (second, "k/b")):
        verdict, *runs = items
        assert isinstance(verdict, Judged) and isinstance(verdict.told, Look) and verdict.slide_id == name
        assert verdict.runs == len(runs) == 1 and all(isinstance(run, Work) for run in runs)
        assert (runs[0].start, runs[0].stop) == (0, 72) and runs[0].pyramid is None
    (verdict,) = third
    assert isinstance(verdict.told, Twin) and verdict.told.of == "k/a-again" and verdict.runs == 0


def test_the_order_of_reading_decides_nothing(begun: dict[str, Begun], lake: Lake) -> None:
    sections = in_order(list(begun.values()))
    told = [read(section, lake) for section in sections]
    judge = Judge(lake.root, KnownSlides(), SETTINGS.duplicates, sections=sections, workers=2, sizes=SIZES)
    came = [
        [item.slide_id for item in judge.judge(sections[i], told[i]) if isinstance(item, Judged)] for i in (2, 1, 0)
    ]
    assert came == [[], [], ["k/a-again", "k/b", "k/c"]]


def test_genes_have_numbers_before_a_run_is_given_out(begun: dict[str, Begun], lake: Lake) -> None:
    section = in_order([begun["b"]])[0]
    told = read(section, lake)
    assert isinstance(told, Look) and len(told.unknown_genes) == 258
    judge = Judge(lake.root, KnownSlides(), SETTINGS.duplicates, sections=[section], workers=1, sizes=SIZES)
    list(judge.judge(section, told))
    symbols = [symbol for symbol, _ in told.unknown_genes]
    assert (lake.resolve_genes(symbols) >= 0).all()
    # Those of the next section are known by then, though they were not when it was read.
    other = in_order([begun["b"], begun["c"]])[1]
    before = lake.catalog.table("genes").version()
    assert list(judge.judge(other, told))
    assert lake.catalog.table("genes").version() == before


def test_nothing_is_judged_before_all_that_replaces_a_slide_is_read(begun: dict[str, Begun], lake: Lake) -> None:
    told = read(begun["c"], lake)
    assert isinstance(told, Look)
    # The lake holds this content under the names of b and c, and c is what it is about to be again.
    known = KnownSlides([{**told.record, "slide_id": "k/c"}, {**told.record, "slide_id": "k/b"}])
    sections = in_order([replace(begun[name], is_known=True) for name in ("b", "c")] + [begun["a-again"]])
    first, second, third = judged(lake, sections, known)
    assert first == []
    verdicts = {item.slide_id: item.told for item in second if isinstance(item, Judged)}
    assert list(verdicts) == ["k/b", "k/c"]
    assert all(isinstance(told, Look) for told in verdicts.values()), "their old content no longer counts"
    (verdict,) = third
    assert isinstance(verdict.told, Twin) and verdict.told.of == "k/c", "a new section gives way to one that was there"


def test_a_refused_section_leaves_what_the_lake_holds(begun: dict[str, Begun], lake: Lake) -> None:
    told = read(begun["c"], lake)
    assert isinstance(told, Look)
    known = KnownSlides([{**told.record, "slide_id": "k/b"}])
    sections = in_order([replace(begun["b"], is_known=True), begun["c"]])
    judge = Judge(lake.root, known, SETTINGS.duplicates, sections=sections, workers=2, sizes=SIZES)
    problem = SourceError("It is cut off.", rule="file_complete", file="f")
    (verdict,) = judge.judge(sections[0], problem)
    assert isinstance(verdict, Judged) and verdict.told is problem
    (verdict,) = judge.judge(sections[1], told)
    assert isinstance(verdict, Judged) and isinstance(verdict.told, Twin) and verdict.told.of == "k/b"
