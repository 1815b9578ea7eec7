"""Split files from the command line: what they hold, what is shown before anyone trains, and the age of a slide."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from histolake.platform.cli import app
from histolake.platform.errors import SplitError
from histolake.platform.lake import Lake
from histolake.platform.lake.correct import corrections
from histolake.platform.splits import Split
from histolake.platform.splits.commands import read_split

NOTHING = pa.table({"rule": pa.array([], pa.string())})
SPOTS = 120


def publish(lake: Lake, writer: ModuleType, digest: str, **slides: dict[str, Any]) -> int:
    attempts = []
    for section, known in slides.items():
        slide_id = f"c/{section}"
        attempt = lake.begin(slide_id, source_digest=digest, settings_digest="s", source=f"generated:{slide_id}")
        rows = writer.rows(slide_id, digest, SPOTS)
        xy = np.random.default_rng(list(section.encode())).uniform(0, 6000, size=(2, SPOTS)).astype(np.float32)
        for name, values in zip(("x_um", "y_um"), xy, strict=True):
            rows = rows.set_column(rows.column_names.index(name), name, [pa.array(values)])
        record = {"cohort": "c", "section": section, "study": "s", "niche_um": 255.0}
        attempt.stage({**record, **known}, [attempt.pairs.write(rows)], NOTHING)
        attempts.append(attempt)
    return lake.publish(attempts)


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory, writer: ModuleType) -> Lake:
    lake = Lake.open(tmp_path_factory.mktemp("split") / "lake", create=True)
    first = {name: {"patient": name[0], "organ": "breast", "technology": "Visium"} for name in ("A1", "A2", "B1", "C1")}
    publish(lake, writer, "one", **first)
    kidney = {"organ": "Kidney", "technology": "Visium HD"}
    publish(lake, writer, "one", D1={"patient": "D"} | kidney, A3={"patient": "A"} | kidney, E1={"patient": "E"})
    return lake


def ask(*words: object, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    done = CliRunner().invoke(app, ["lake", "split", *map(str, words), "--json"])
    if code == 0:
        assert done.exit_code == 0, done.exception
        return json.loads(done.stdout), done.stderr
    assert done.exception is not None and done.stdout == ""
    return [], str(done.exception)


def test_a_split_by_organ_is_shown_and_written(curated: Lake, tmp_path: Path) -> None:
    file = tmp_path / "kidney.json"
    rows, said = ask("organ", "--test", "kidney", "--lake", curated.uri, "--to", file)
    assert [(row["side"], row["slides"], row["pairs"], row["units"], row["organs"]) for row in rows] == [
        ("train", 4, 480, 3, "breast 4"),
        ("test", 1, 120, 1, "Kidney 1"),
        ("left_out", 1, 120, 1, "Kidney 1"),
        ("left_out", 1, 120, 1, "not known 1"),
    ]
    assert {row["why"] for row in rows[2:]} == {"kin on another side", "group not known"}
    assert "left out: c/A3 is of one patient with c/A1 on train, and organ kidney is on test" in said
    assert "left out: c/E1 has no organ, and may be of any" in said
    assert f"written to {file}; lake version 2" in said
    assert read_split(file) == Split.by_group("organ", test=["kidney"])
    each, _ = ask("show", file, "--each", "--lake", curated.uri)
    assert {row["slide_id"]: row["side"] for row in each} == read_split(file).assign(curated.at().slides())


def test_every_kind_writes_a_file_that_is_read_again(curated: Lake, tmp_path: Path) -> None:
    lake = ("--lake", curated.uri)
    for number, (words, made) in enumerate(
        {
            ("units", "--fractions", "train=0.5,test=0.5", "--seed", 4): Split.by_unit(
                {"train": 0.5, "test": 0.5}, seed=4
            ),
            ("technology", "--fractions", "train=0.5,test=0.5"): Split.by_group(
                "technology", fractions={"train": 0.5, "test": 0.5}
            ),
            ("named", "--train", "c/B1, c/C1", "--test", "c/A1"): Split.named(train=["c/B1", "c/C1"], test=["c/A1"]),
            ("blocks", "--block-um", "1500", "--gap-um", "100", "--fractions", "train=1"): Split.spatial_blocks(
                {"train": 1.0}, block_um=1500, gap_um=100
            ),
        }.items()
    ):
        file = tmp_path / f"{number}.json"
        rows, _ = ask(*words, *lake, "--to", file)
        assert read_split(file) == made
        assert sum(row["pairs"] for row in rows) == 7 * SPOTS
        ask(*words, *lake, "--to", file)  # the same again is no conflict
    _, said = ask("units", *lake, "--to", tmp_path / "0.json", code=2)
    assert "holds another split" in said and read_split(tmp_path / "0.json").seed == 4


def test_blocks_are_counted_pair_by_pair_and_their_figures_marked(curated: Lake) -> None:
    rows, said = ask("blocks", "--block-um", "1500", "--fractions", "train=0.6,test=0.4", "--lake", curated.uri)
    pairs = {(row["side"], row["why"]): row["pairs"] for row in rows}
    assert set(pairs) == {("train", ""), ("test", ""), ("left_out", "pairs between blocks of two sides")}
    codes = np.concatenate(
        [
            Split.spatial_blocks({"train": 0.6, "test": 0.4}, block_um=1500).rows(
                row,
                *(
                    np.concatenate([b[name] for b in curated.at().pairs(["x_um", "y_um"], slide_ids=[row["slide_id"]])])
                    for name in ("x_um", "y_um")
                ),
            )
            for row in curated.at().slides().to_pylist()
        ]
    )
    assert list(pairs.values()) == [int((codes == code).sum()) for code in (0, 2, 3)]
    assert "Every figure from test is marked: same section (7 of 7 slides)." in said


def test_named_lists_that_cut_a_patient_are_refused_or_marked(curated: Lake) -> None:
    words = ("named", "--train", "c/A1", "--validation", "c/A2", "--test", "c/B1", "--lake", curated.uri)
    assert "slides of one patient (s / A)" in ask(*words, code=2)[1]
    _, said = ask(*words, "--cuts-units")
    assert said.strip() == "Every figure from validation is marked: same patient (1 of 1 slides)."


def test_leave_one_out_writes_one_file_a_fold(curated: Lake, tmp_path: Path) -> None:
    rows, _ = ask("leave-one-out", "--by", "patient", "--lake", curated.uri, "--to", tmp_path / "folds")
    assert [(row["name"], row["test_slides"], row["train_slides"], row["left_out"]) for row in rows] == [
        ("patient s/A", 3, 4, 0),
        *((f"patient s/{name}", 1, 6, 0) for name in "BCDE"),
    ]
    assert [Path(row["file"]).name for row in rows][:2] == ["001-patient-s-A.json", "002-patient-s-B.json"]
    made = read_split(Path(rows[0]["file"]))
    assert made.name == "patient s/A" and made.lists["test"] == ("c/A1", "c/A2", "c/A3")
    one, _ = ask("leave-one-out", "-k", "2", "--lake", curated.uri, "--to", tmp_path / "second.json")
    assert read_split(tmp_path / "second.json").name == "patient s/B" and one[0]["side"] == "train"
    organs, _ = ask("leave-one-out", "--by", "organ", "--lake", curated.uri)
    # A patient with both organs tests with the one and is kept out of training with the other.
    assert [(row["name"], row["test_slides"], row["train_slides"], row["left_out"]) for row in organs] == [
        ("organ breast", 4, 1, 2),
        ("organ kidney", 2, 2, 3),
    ]
    assert "There is no fold 9" in ask("leave-one-out", "-k", "9", "--lake", curated.uri, code=2)[1]


def test_files_that_hold_no_split(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("train")
    (tmp_path / "list.json").write_text("[]")
    for name, said in (("text.json", "holds no JSON"), ("list.json", "holds no split"), ("gone.json", "no split file")):
        with pytest.raises(SplitError, match=said):
            read_split(tmp_path / name)


# -- the age of a slide --------------------------------------------------------------------------------------------


def test_a_slide_keeps_its_age_whatever_is_done_to_it(lake: Lake, writer: ModuleType) -> None:
    def ages(version: int | None = None) -> dict[str, tuple[int, int]]:
        rows = lake.at(version).slides().to_pylist()
        return {row["slide_id"]: (row["first_published"], row["published_in"]) for row in rows}

    publish(lake, writer, "one", old={"patient": "P1"})
    publish(lake, writer, "one", new={"patient": "P2", "look_alikes": ["c/old"]})
    split = next(
        found
        for seed in range(99)
        for found in [Split.by_unit({"train": 0.5, "test": 0.5}, seed=seed)]
        if found.placings(lake.at().slides())["c/new"].why
    )
    before = split.assign(lake.at().slides())
    assert ages() == {"c/old": (1, 1), "c/new": (2, 2)}
    lake.correct(corrections(lake.at(), {"c/old": {"licence": "CC0"}}))
    assert ages() == {"c/old": (1, 3), "c/new": (2, 2)}
    publish(lake, writer, "two", old={"patient": "P1"})
    assert ages() == {"c/old": (1, 4), "c/new": (2, 2)}
    assert split.assign(lake.at().slides()) == before, "the slide that follows still follows"

    # A correction of the patient counts from its own version on, and kin follow.
    patient = next(
        name
        for name in map("Q{}".format, range(99))
        if split.assign(pa.table({"slide_id": ["x"], "cohort": ["c"], "study": ["s"], "patient": [name]}))["x"]
        != before["c/old"]
    )
    lake.correct(corrections(lake.at(), {"c/old": {"patient": patient}}))
    assert ages()["c/old"] == (1, 5)
    after = split.assign(lake.at().slides())
    assert set(after.values()) == {"train", "test"} - set(before.values())
    assert split.assign(lake.at(4).slides()) == before
