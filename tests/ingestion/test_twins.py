"""Two sections of one content in one ingest, and what becomes of the second."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from histolake.ingestion import Outcome, find_sections, ingest_settings
from histolake.ingestion import ingest as ingest_sections
from histolake.ingestion.discover import Candidate
from histolake.ingestion.duplicates import DuplicateSettings, KnownSlides
from histolake.ingestion.pipeline import plan
from histolake.ingestion.twins import Live, Twin, tell_apart, twin_digest
from histolake.ingestion.worker import Look
from histolake.platform.errors import SourceError
from histolake.platform.lake import Lake
from histolake.platform.lake.forgetting import forget
from histolake.platform.settings import load_settings

RULES = DuplicateSettings()


def candidate(slide_id: str) -> Candidate:
    cohort, section = slide_id.split("/")
    return Candidate(slide_id=slide_id, cohort=cohort, section=section, uri=f"/{slide_id}", source=None)


def look_of(seed: int) -> Look:
    hashes = np.sort(np.random.default_rng(seed).integers(-(2**63), 2**63, 64)).tolist()
    record = {"profile_sketch": hashes, "image_hash": None, "flags": ["low_resolution"]}
    return Look(record=record, n_kept=64, refused=(), species="human", unknown_genes=())


def test_the_first_by_name_stays_whichever_was_read_first() -> None:
    names = ["c/2", "c/3", "c/1"]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        wave = [candidate(names[i]) for i in order]
        told = dict(
            zip([names[i] for i in order], tell_apart(wave, [look_of(7)] * 3, KnownSlides(), RULES), strict=True)
        )
        assert isinstance(told["c/1"], Look)
        for name in ("c/2", "c/3"):
            twin = told[name]
            assert isinstance(twin, Twin)
            assert (twin.of, twin.problem.rule, twin.problem.figure, twin.problem.limit) == (
                "c/1",
                "duplicate_slide",
                1.0,
                0.9,
            )
            assert "c/1" in str(twin.problem)
            assert twin.record["look_alikes"] == ["c/1"]


def test_flagged_twins_name_each_other() -> None:
    wave = [candidate("c/1"), candidate("c/2")]
    one, two = tell_apart(wave, [look_of(7)] * 2, KnownSlides(), DuplicateSettings(slides="flag"))
    assert isinstance(one, Look) and isinstance(two, Look)
    assert (one.record["look_alikes"], one.record["flags"]) == ([], ["low_resolution"])
    assert (two.record["look_alikes"], two.record["flags"]) == (["c/1"], ["look_alike", "low_resolution"])


def test_sections_read_again_are_not_compared_with_what_they_were() -> None:
    known = KnownSlides([{"slide_id": name, **look_of(7).record} for name in ("c/1", "c/2")])
    one, two = tell_apart([candidate("c/1"), candidate("c/2")], [look_of(7), look_of(8)], known, RULES)
    assert isinstance(one, Look) and isinstance(two, Look)
    broken = SourceError("cut", rule="unreadable")
    known = KnownSlides([{"slide_id": "c/2", **look_of(7).record}])
    one, _ = tell_apart([candidate("c/1"), candidate("c/2")], [look_of(7), broken], known, RULES)
    assert isinstance(one, Twin)  # c/2 could not be read again, so what the lake holds of it stands


def test_a_refused_twin_stands_while_the_other_does() -> None:
    def row(slide_id: str, status: str, **more: Any) -> dict[str, Any]:
        return {"slide_id": slide_id, "status": status, "settings_digest": "s", "look_alikes": None, **more}

    other = row("c/1", "published", source_digest="a", ingest_id="one")
    twin = row("c/2", "refused", source_digest=twin_digest("b", "one"), ingest_id="two", look_alikes=["c/1"])
    assert Live([other, twin]).row("c/2", "b", "s") == twin
    assert Live([other, twin]).row("c/2", "changed", "s") is None
    assert Live([other, twin]).row("c/2", "b", "other settings") is None
    assert Live([{**other, "ingest_id": "again"}, twin]).row("c/2", "b", "s") is None
    assert Live([twin]).row("c/2", "b", "s") is None


SETTINGS = ingest_settings(load_settings({"quality.min_spots": 40}))


def silent(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


def ingest(source: Path, lake: Lake) -> dict[str, Outcome]:
    found = ingest_sections(find_sections([str(source)], "c"), lake, SETTINGS, silent)
    return {outcome.section: outcome for outcome in found}


def test_a_copied_section_is_refused_until_the_other_is_forgotten(
    tmp_path: Path, ray_here: None, make_section: Callable[..., Path]
) -> None:
    sections, lake = tmp_path / "sections", Lake.open(tmp_path / "lake", create=True)
    make_section(sections / "first", seed=1)
    shutil.copytree(sections / "first", sections / "second")
    make_section(sections / "unlike", seed=2)
    told = ingest(sections, lake)
    assert {name: outcome.status for name, outcome in told.items()} == {
        "first": "published",
        "second": "refused",
        "unlike": "published",
    }
    assert told["second"].rule == "duplicate_slide"
    (row,) = lake.at().rejections().to_pylist()
    assert (row["slide_id"], row["rule"], row["figure"], row["limit"]) == ("c/second", "duplicate_slide", 1.0, 0.9)
    assert "c/first" in row["reason"]
    before = lake.version
    planned = {o.section: o for o in plan(find_sections([str(sections)], "c"), lake, SETTINGS, silent)}
    again = ingest(sections, lake)
    assert lake.version == before
    assert {o.section: o.status for o in again.values()} == {
        "first": "unchanged",
        "second": "refused",
        "unlike": "unchanged",
    }
    assert planned["second"].rule == again["second"].rule == "duplicate_slide"
    forget(lake, slide_id="c/first")
    shutil.rmtree(sections / "first")
    assert ingest(sections, lake)["second"].status == "published"
