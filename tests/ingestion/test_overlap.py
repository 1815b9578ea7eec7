"""Whether two sets of slides share anything: planted leaks are found, within a lake and between two that never met."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from histolake.ingestion.discover import find_sections
from histolake.ingestion.duplicates import SKETCH
from histolake.ingestion.overlap.sets import SlideSet, Source, read_set
from histolake.ingestion.overlap.shared import KINDS, find_shared, verdict
from histolake.ingestion.pipeline import ingest_settings
from histolake.ingestion.worker import look
from histolake.platform.cli import app
from histolake.platform.errors import ModelError, SlideNotFoundError, UsageError
from histolake.platform.lake import Lake
from histolake.platform.lake.correct import corrections
from histolake.platform.settings import load_settings
from histolake.platform.splits import Split
from histolake.platform.tracking import (
    LINEAGE_FILE,
    TAG_LAKE_URI,
    TAG_LAKE_VERSION,
    TrackingSettings,
    connect,
    ensure_experiment,
)

NOTHING = pa.table({"rule": pa.array([], pa.string())})


def spots(name: str, count: int = 600) -> np.ndarray:
    """Profile hashes of a section's spots."""
    return np.random.default_rng(list(name.encode())).integers(-(2**62), 2**62, size=count)


def sketch(*hashes: np.ndarray) -> list[int]:
    found: list[int] = np.unique(np.concatenate(hashes))[:SKETCH].tolist()
    return found


def row(slide_id: str, lake: str = "/one", **known: Any) -> dict[str, Any]:
    cohort = slide_id.partition("/")[0]
    bare = dict.fromkeys(("accession", "patient", "look_alikes"))
    return {
        **bare,
        "slide_id": slide_id,
        "ingest_id": f"ingest of {lake} {slide_id}",
        "lake": lake,
        "cohort": cohort,
        "study": f"study {cohort}",
        "source_digest": f"files of {lake} {slide_id}",
        "profile_sketch": sketch(spots(f"{lake} {slide_id}")),
        "image_hash": f"{int.from_bytes(np.random.default_rng(list(f'{lake} {slide_id}'.encode())).bytes(32)):064x}",
        **known,
    }


def shared(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    found = find_shared(SlideSet(name="A", slides=a), SlideSet(name="B", slides=b))
    return [(each.kind, each.a, each.b) for each in found]


# -- each kind -----------------------------------------------------------------------------------------------------


def test_sets_that_share_nothing() -> None:
    a, b = [row("one/A1", patient="P1")], [row("two/B7", patient="P1")]
    assert shared(a, b) == [], "a bare patient name joins nothing"
    said = verdict([], SlideSet(name="A", slides=a), SlideSet(name="B", slides=b))
    assert said == "Disjoint: A and B share no slide, patient, study or look-alike (1 and 1 slides)."


def test_the_same_slide_is_told_once_and_first() -> None:
    both = row("one/A1", patient="P1", look_alikes=["one/B7"])
    a, b = [both, row("one/C3", patient="P2")], [both, row("one/B7", patient="P3")]
    assert shared(a, b) == [
        ("slide", "one/A1", "one/A1"),
        ("look_alike", "one/A1", "one/B7"),
        ("patient", "one/A1", "one/A1"),
        ("study", "one/A1, one/C3", "one/A1, one/B7"),
    ]


def test_one_content_under_two_names() -> None:
    a = [row("one/A1", source_digest="files")]
    assert shared(a, [row("two/copy", source_digest="files")]) == [("content", "one/A1", "two/copy")]
    assert shared(a, [row("two/copy", "/other", ingest_id=a[0]["ingest_id"])])[0][0] == "content"


def test_a_name_in_two_lakes_counts_unless_the_contents_tell_them_apart() -> None:
    here, there = row("one/A1", study=None), row("one/A1", "/other", study=None, image_hash=None)
    assert shared([here], [there]) == []
    assert shared([here], [{**there, "profile_sketch": None}]) == [("slide", "one/A1", "one/A1")]
    again = {**there, "profile_sketch": here["profile_sketch"]}
    (found,) = find_shared(SlideSet(name="A", slides=[here]), SlideSet(name="B", slides=[again]))
    assert (found.kind, found.what) == ("slide", "the same name in /one and /other")


@pytest.mark.parametrize(("held", "percent"), [(600, 100), (300, 50), (180, 30)])
def test_look_alikes_by_their_spots_between_lakes_that_never_met(held: int, percent: int) -> None:
    mine, others = spots("mine"), spots("others")
    a = [row("one/A1", profile_sketch=sketch(mine)), row("one/A2")]
    b = [row("eval/X", "/other", profile_sketch=sketch(mine[:held], others[held:])), row("eval/Y", "/other")]
    (found,) = find_shared(SlideSet(name="A", slides=a), SlideSet(name="B", slides=b))
    assert (found.kind, found.a, found.b) == ("look_alike", "one/A1", "eval/X")
    told = int(found.what.split("about ")[1].split("%")[0])
    assert told == pytest.approx(percent, abs=25 if percent < 100 else 0)


def test_look_alikes_by_their_pictures_and_by_the_catalogue() -> None:
    a = [row("one/A1", image_hash="ff" * 32), row("one/A2", look_alikes=["one/old"])]
    b = [row("two/near", image_hash="fe" * 8 + "ff" * 24), row("one/old"), row("one/named", look_alikes=["one/A1"])]
    found = {each.b: each for each in find_shared(SlideSet(name="A", slides=a), SlideSet(name="B", slides=b))}
    assert found["two/near"].what == "their pictures differ in 8 of 256 bits"
    assert found["one/old"].what == found["one/named"].what == "noted at the ingest"
    elsewhere = [{**each, "lake": "/other"} for each in b[1:]]
    assert shared(a, elsewhere) == [("unit", "one/A1, one/A2", "one/named, one/old")], "a name is of its lake"


def test_patients_and_studies() -> None:
    a = [row("c/1", study="GSE1", patient="P1"), row("c/2", study="GSE1", patient="P2"), row("c/3", study="S3")]
    b = [row("d/1", study="gse1 ", patient="P2"), row("d/2", study="other", accession="GSE1", patient="P9")]
    found = find_shared(SlideSet(name="A", slides=a), SlideSet(name="B", slides=b))
    assert [(each.kind, each.what, each.a, each.b) for each in found] == [
        ("patient", "GSE1/P2", "c/2", "d/1"),
        ("study", "GSE1", "c/1, c/2", "d/1, d/2"),
    ]
    unknown = find_shared(
        SlideSet(name="A", slides=a), SlideSet(name="B", slides=[row("d/1", study="GSE1", patient=None)])
    )
    assert [(each.kind, each.what) for each in unknown] == [("unit", "GSE1, patient not known of d/1")]
    # Without a study a slide is of its cohort, and a cohort is of its lake.
    bare = [row("c/1", study=None, patient="P1")]
    assert shared(bare, [row("c/2", study=None, patient="P1")])[0] == ("patient", "c/1", "c/2")
    assert shared(bare, [row("c/2", "/other", study=None, patient="P1")]) == []


def test_verdicts() -> None:
    a = SlideSet(name="A", slides=[row("c/1", study="S", patient="P1")])
    kin = SlideSet(name="B", slides=[row("d/1", study="S", patient="P2")])
    leak = SlideSet(name="B", slides=[row("d/1", study="S", patient="P1")])
    assert verdict(find_shared(a, kin), a, kin).startswith("No leak, but kin: A and B share 1 study, of other")
    assert verdict(find_shared(a, leak), a, leak) == "They leak: A and B share 1 patient, 1 study (1 and 1 slides)."
    assert [each.kind for each in find_shared(a, leak)] == sorted(["patient", "study"], key=KINDS.index)


# -- sets of real lakes, and the command ---------------------------------------------------------------------------


def publish(lake: Lake, writer: ModuleType, slides: dict[str, dict[str, Any]]) -> None:
    attempts = []
    for slide_id, known in slides.items():
        attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="s", source=f"generated:{slide_id}")
        cohort, _, section = slide_id.partition("/")
        record = {"cohort": cohort, "section": section, "study": "GSE1", "profile_sketch": sketch(spots(slide_id))}
        attempt.stage({**record, **known}, [attempt.pairs.write(writer.rows(slide_id, "d", 3))], NOTHING)
        attempts.append(attempt)
    lake.publish(attempts)


@pytest.fixture(scope="module")
def lakes(tmp_path_factory: pytest.TempPathFactory, writer: ModuleType) -> tuple[Lake, Lake]:
    """A lake to train on, and one to evaluate on, of which a section is half of one of the first under another name."""
    home = tmp_path_factory.mktemp("overlap")
    trained, evaluated = (Lake.open(home / name, create=True) for name in ("trained", "evaluated"))
    publish(trained, writer, {"c/A1": {"patient": "A"}, "c/B1": {"patient": "B"}})
    publish(trained, writer, {"c/B2": {"patient": "B"}, "c/C1": {"patient": "C", "organ": "brain"}})
    half = sketch(spots("c/C1")[:300], spots("new")[:300])
    publish(
        evaluated,
        writer,
        {
            "d/copy": {"study": "GSE9", "patient": "X", "profile_sketch": half},
            "d/kin": {"study": "GSE1", "patient": "Z"},
            "d/far": {"study": "GSE8", "patient": "A"},
        },
    )
    return trained, evaluated


def ask(*words: object) -> tuple[int, list[dict[str, Any]], str]:
    done = CliRunner().invoke(app, ["lake", "overlap", *map(str, words), "--json"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, json.loads(done.stdout), done.stderr


def test_the_command_answers_for_every_kind_of_set(lakes: tuple[Lake, Lake], tmp_path: Path) -> None:
    trained, evaluated = lakes
    here = ("--lake", trained.uri)
    code, rows, said = ask("all", f"lake:{evaluated.uri}", *here)
    assert code == 1 and [(r["kind"], r["a"], r["b"]) for r in rows] == [
        ("look_alike", "c/C1", "d/copy"),
        ("study", "c/A1, c/B1, c/B2, c/C1", "d/kin"),
    ]
    assert "They leak: all and lake:" in said and "1 look-alike, 1 study (4 and 3 slides)" in said
    code, rows, said = ask("where:organ is null", f"lake:{evaluated.uri}", *here)
    assert code == 0 and [r["kind"] for r in rows] == ["study"] and "No leak, but kin" in said
    assert ask("where:organ is null", f"lake:{evaluated.uri}", "--strict", *here)[0] == 1
    assert ask("all", f"lake:{evaluated.uri}#where:study = 'GSE8'", *here)[:2] == (0, [])
    code, rows, _ = ask("slides:c/A1,c/B1", "slides:c/B2", *here)
    assert code == 1 and rows[0] == {"kind": "patient", "what": "GSE1/B", "a": "c/B1", "b": "c/B2"}
    listed = tmp_path / "slides.txt"
    listed.write_text("c/A1\n\nc/B1 \n")
    assert ask(f"slides:@{listed}", "version:1", *here)[1][0]["kind"] == "slide"
    made = Split.by_unit({"train": 0.5, "test": 0.5}, seed=3)
    sides = made.assign(trained.at().slides())
    assert set(sides.values()) == {"train", "test"}
    file = tmp_path / "split.json"
    file.write_text(json.dumps(made.to_dict()))
    code, rows, _ = ask(f"split:{file}", f"split:{file}#test", *here)
    assert (code, {row["kind"] for row in rows}) == (0, {"study"})


def test_a_model_s_training_slides_as_the_lake_knows_them_now(
    lakes: tuple[Lake, Lake], writer: ModuleType, tmp_path: Path
) -> None:
    lake = Lake.open(tmp_path / "lake", create=True)
    publish(lake, writer, {"c/A1": {"patient": "A"}, "c/B1": {"patient": "B"}, "c/C1": {"patient": "C"}})
    tracking = TrackingSettings(uri=f"sqlite:///{tmp_path}/runs.db")
    client = connect(tracking)
    run = client.create_run(ensure_experiment(tracking, client)).info.run_id
    known = lake.at().slides().select(["slide_id", "ingest_id", "study", "patient"]).to_pylist()
    sides = {"c/A1": "train", "c/B1": "train", "c/C1": "test"}
    gone = {"slide_id": "c/gone", "ingest_id": "gone", "study": "GSE7", "patient": "G", "side": "train"}
    content = [*({**each, "side": sides[each["slide_id"]]} for each in known), gone]
    (tmp_path / LINEAGE_FILE).write_text(json.dumps(content))
    client.log_artifact(run, str(tmp_path / LINEAGE_FILE))
    client.create_registered_model("m")
    tags = {TAG_LAKE_URI: lake.uri, TAG_LAKE_VERSION: str(lake.version)}
    client.create_model_version("m", source=f"runs:/{run}/model", run_id=run, tags=tags)
    client.set_registered_model_alias("m", "champion", "1")
    # Since then, one of its patients was set right.
    lake.correct(corrections(lake.at(), {"c/B1": {"patient": "C"}}))

    asked = ("--lake", lake.uri, "--tracking", tracking.uri)
    code, rows, said = ask("model:m@champion", "slides:c/C1", *asked)
    assert code == 1 and rows[0] == {"kind": "patient", "what": "GSE1/C", "a": "c/B1", "b": "c/C1"}
    assert "1 slides of m@champion are no longer in its lake" in said
    assert ask("model:m/1#test", "slides:c/C1", *asked)[1][0]["kind"] == "slide"
    lost = SlideSet(name="B", slides=[row("x/1", study="GSE7", patient="G")])
    source = Source(open_lake=lambda: lake, version=None, tracking=tracking)
    (found, _) = find_shared(read_set("model:m/1", source), lost)
    assert (found.kind, found.a) == ("patient", "c/gone"), "what the lineage says is left"
    with pytest.raises(ModelError, match="no model"):
        read_set("model:m@nobody", source)
    with pytest.raises(UsageError, match="saw no slide on the side validation"):
        read_set("model:m/1#validation", source)


def test_words_that_name_no_set(lakes: tuple[Lake, Lake], tmp_path: Path) -> None:
    source = Source(open_lake=lambda: lakes[0], version=None, tracking=TrackingSettings())
    for word, error, said in (
        ("c/A1", UsageError, "names no set of slides"),
        ("where:", UsageError, "names no set of slides"),
        ("where:organ = 'moon'", UsageError, "names no slide"),
        ("slides:c/A1,c/Z9", SlideNotFoundError, "no slide c/Z9"),
        ("slides:@nowhere.txt", UsageError, "cannot be read"),
        ("split:nowhere.json#train", UsageError, "no split file"),
        ("split:nowhere.json#tset", UsageError, "asks for the side 'tset'"),
        (f"lake:{lakes[1].uri}#model:m/1", UsageError, "write 'model:m/1' alone"),
    ):
        with pytest.raises(error, match=said):
            read_set(word, source)


def test_a_real_section_is_known_again_in_another_format(real_sections: Path) -> None:
    """As one cohort arrives from its laboratory in one lake, and by a catalogue in another."""
    rules = ingest_settings(load_settings())

    def read(cohort: str, *places: Path) -> list[dict[str, Any]]:
        found = [c for c in find_sections([str(place) for place in places], cohort) if c.source is not None]
        sketches = {c.slide_id: look(c, None, rules).record["profile_sketch"] for c in found}
        return [row(name, f"/{cohort}", profile_sketch=held, patient="C") for name, held in sketches.items()]

    home = real_sections / "her2st"
    laboratory = read("laboratory", home / "C2" / "C2.h5ad")
    catalogue = read("catalogue", home / "C2", home / "C4")
    assert [each["slide_id"] for each in catalogue] == ["catalogue/C2", "catalogue/C4"]
    (found,) = find_shared(SlideSet(name="A", slides=laboratory), SlideSet(name="B", slides=catalogue))
    assert (found.kind, found.a, found.b) == ("look_alike", "laboratory/C2", "catalogue/C2")
    assert found.what.startswith("about 100% of the spots of one are in the other")
