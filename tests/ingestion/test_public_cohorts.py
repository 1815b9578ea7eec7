"""Public cohorts by name, against a real HTTP server on this machine that serves the same layout."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from histolake.ingestion.discover import find_sections
from histolake.ingestion.public.blocks import GAP_UM, cut_in_blocks
from histolake.ingestion.public.catalogue import PublicSettings, find_cohort, load_catalogue
from histolake.ingestion.public.cohort import offered
from histolake.ingestion.public.fetching import CHECKSUMS_FILE, fetch
from histolake.ingestion.public.probe import demo_cohorts, smallest_within
from histolake.ingestion.readers import reader
from histolake.ingestion.sample import Public, choose
from histolake.ingestion.simulate.cohort import GENERATOR, PATIENTS
from histolake.platform.errors import DownloadError, SettingsError, UsageError

spec = spec_from_file_location("public_server", Path(__file__).parent / "public_server.py")
assert spec and spec.loader
public_server = module_from_spec(spec)
sys.modules["public_server"] = public_server
spec.loader.exec_module(public_server)

NAME = "Small_Section"
IMAGE = f"1.1.0/{NAME}/{NAME}_image.tif"
MATRIX = f"1.1.0/{NAME}/{NAME}_filtered_feature_bc_matrix.h5"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies on the server; tests do not change it."""
    root = tmp_path_factory.mktemp("served")
    public_server.write_set(root, NAME)
    return root


@pytest.fixture
def server(served: Path) -> Iterator[Any]:
    with public_server.serving(served) as running:
        yield running


@pytest.fixture
def settings(server: Any, served: Path, tmp_path: Path) -> PublicSettings:
    listed = public_server.write_list(tmp_path / "cohorts.toml", served, [NAME])
    return PublicSettings(base_url=server.url, catalogue=str(listed), retry_wait_s=0.01, retries=2)


def cohort(settings: PublicSettings, name: str = NAME) -> Any:
    return find_cohort(load_catalogue(settings.catalogue), name)


def whole(folder: Path, served: Path) -> None:
    """Every file is there, byte for byte, and nothing half-done beside."""
    for place in (served / "1.1.0" / NAME).iterdir():
        assert (folder / NAME / place.name.removeprefix(f"{NAME}_")).read_bytes() == place.read_bytes()
    left = [p.name for p in folder.rglob("*") if ".part" in p.name or p.name.startswith(".")]
    assert left == []


def histolake(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "histolake.platform", *words],
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HISTOLAKE_")}
    return kept | {"COLUMNS": "200"} | more


def variables(settings: PublicSettings) -> dict[str, str]:
    return {
        "HISTOLAKE_PUBLIC__BASE_URL": settings.base_url,
        "HISTOLAKE_PUBLIC__CATALOGUE": settings.catalogue,
        "HISTOLAKE_PUBLIC__RETRY_WAIT_S": "0.01",
    }


# -- the list ------------------------------------------------------------------------------------------------------


def test_the_installed_list_has_what_a_person_asks_for() -> None:
    catalogue = load_catalogue()
    rows = catalogue.rows()
    assert len({row["name"] for row in rows}) == len(rows) > 20
    assert {row["licence"] for row in rows} == {"CC BY 4.0"}
    for row in rows:
        assert row["page"].startswith("https://") and row["organ"] and row["species"] in ("human", "mouse")
        assert {"filtered_feature_bc_matrix.h5", "spatial.tar.gz"} < set(row["files"].split(", "))
        assert all(not isinstance(value, (list, dict)) for value in row.values())
    lymph = find_cohort(catalogue, "V1_Human_Lymph_Node")
    base = PublicSettings().base_url
    assert lymph.files[2][1].url(base) == (
        "https://cf.10xgenomics.com/samples/spatial-exp/1.1.0/V1_Human_Lymph_Node/V1_Human_Lymph_Node_image.tif"
    )
    assert len(find_cohort(catalogue, "breast-cancer-block-a").sections) == 2
    assert demo_cohorts(catalogue) and all(c.sections[0].species == "human" for c in demo_cohorts(catalogue))


def test_no_two_different_files_share_a_checksum() -> None:
    sums = [file.sha256 for c in load_catalogue().cohorts.values() if len(c.sections) == 1 for _, file in c.files]
    known = [one for one in sums if one]
    assert len(known) == len(set(known)) > 60


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('sha256 = "', 'sha256 = "zz'), "which is none"),
        (('name = "Small_Section"', ""), "no list of public cohorts"),
        (("[section.files]", "[section.files"), "no list of public cohorts"),
        (("[[section]]", '[[cohort]]\nname = "Small_Section"\ntitle = ""\nsections = []\n[[section]]'), "twice"),
    ],
)
def test_a_list_of_ones_own_that_is_faulty_is_refused(
    served: Path, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    listed = public_server.write_list(tmp_path / "list.toml", served, [NAME])
    assert len(load_catalogue(str(listed)).rows()) == 1
    faulty = tmp_path / "faulty.toml"
    faulty.write_text(listed.read_text().replace(*change))
    with pytest.raises(UsageError, match=said):
        load_catalogue(str(faulty))
    with pytest.raises(UsageError, match="not a file"):
        load_catalogue(str(tmp_path / "gone.toml"))


def test_a_name_that_is_not_there_is_told_with_one_like_it() -> None:
    with pytest.raises(UsageError, match="Did you mean V1_Human_Lymph_Node"):
        find_cohort(load_catalogue(), "v1_human_lymphnode")
    with pytest.raises(UsageError, match="sample --list"):
        find_cohort(load_catalogue(), "zzz")


@pytest.mark.parametrize(("change", "said"), [({"base_url": "ftp://x"}, "base_url"), ({"parallel": 40}, "parallel")])
def test_settings_that_cannot_be_are_told(change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        PublicSettings(**change)


# -- one download --------------------------------------------------------------------------------------------------


def test_a_cohort_is_fetched_whole_and_not_again(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    to = tmp_path / "to"
    fetch(cohort(settings), to, settings)
    whole(to, served)
    assert (to / NAME / "spatial/scalefactors_json.json").is_file()
    assert server.most_at_once <= settings.parallel
    asked, sent = len(server.asked), server.sent
    fetch(cohort(settings), to, settings)
    assert (len(server.asked), server.sent) == (asked, sent), "what is there and right is not fetched again"
    (to / NAME / "image.tif").write_bytes(b"damaged")
    fetch(cohort(settings), to, settings)
    whole(to, served)


def test_a_connection_that_breaks_is_taken_up_where_it_broke(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    size = (served / IMAGE).stat().st_size
    server.break_at = {IMAGE: [size // 3, size // 3]}
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)
    ranges = [wanted for method, path, wanted in server.asked if path == IMAGE]
    assert ranges == [None, f"bytes={size // 3}-", f"bytes={2 * (size // 3)}-"]
    assert server.sent == sum(p.stat().st_size for p in (served / "1.1.0" / NAME).iterdir()), "no byte came twice"


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    size = (served / IMAGE).stat().st_size
    server.break_at = {IMAGE: [size // 2, 0, 0, 0, 0]}
    with pytest.raises(DownloadError, match=rf"{IMAGE} cannot be fetched.*{size // 2} bytes\) is kept"):
        fetch(cohort(settings), tmp_path / "to", settings)
    assert not (tmp_path / "to" / NAME / "image.tif").exists()
    server.break_at, server.asked = {}, []
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)
    assert ("GET", IMAGE, f"bytes={size // 2}-") in server.asked


def test_a_server_without_ranges_is_asked_for_everything_again(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    server.ranges = False
    server.break_at = {IMAGE: [(served / IMAGE).stat().st_size // 2]}
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)


def test_a_moment_of_trouble_at_the_server_is_waited_out(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    server.busy = {MATRIX: 2}
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)
    server.busy = {MATRIX: 9}
    with pytest.raises(DownloadError, match="503"):
        fetch(cohort(settings), tmp_path / "other", settings)


def test_a_part_that_had_come_whole_is_not_fetched_again(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    part = tmp_path / "to" / NAME / "image.tif.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((served / IMAGE).read_bytes())
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)
    assert server.sent < (served / IMAGE).stat().st_size, "the server answered 416 and sent nothing of it"


def test_a_wrong_byte_is_refused_and_nothing_of_it_is_kept(
    settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(served, tmp_path / "other")
    content = bytearray((served / IMAGE).read_bytes())
    content[1000] ^= 1
    (tmp_path / "other" / IMAGE).write_bytes(content)
    with public_server.serving(tmp_path / "other") as other:
        elsewhere = PublicSettings(base_url=other.url, catalogue=settings.catalogue)
        with pytest.raises(DownloadError, match=r"has the sha256 .* was expected; it was not kept"):
            fetch(cohort(settings), tmp_path / "to", elsewhere)
    assert not list((tmp_path / "to").rglob("image.tif*"))
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)


def test_a_part_of_another_version_is_thrown_away_and_fetched_anew(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    server.tagged = False  # so that nothing but the checksum can tell
    part = tmp_path / "to" / NAME / "image.tif.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 5000)
    fetch(cohort(settings), tmp_path / "to", settings)
    whole(tmp_path / "to", served)


def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    size = (served / IMAGE).stat().st_size
    text = Path(settings.catalogue).read_text().replace(f'"bytes" = {size}', "").replace(f"bytes = {size}", "bytes = 7")
    (tmp_path / "other.toml").write_text(text)
    wrong = PublicSettings(base_url=server.url, catalogue=str(tmp_path / "other.toml"), parallel=1)
    with pytest.raises(DownloadError, match=f"has {size} bytes, but 7 were expected"):
        fetch(cohort(wrong), tmp_path / "to", wrong)
    assert not list((tmp_path / "to").rglob("*.part"))


def test_what_has_no_published_checksum_is_pinned_on_first_use(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    listed = public_server.write_list(tmp_path / "pinned.toml", served, [NAME], pinned="image.tif")
    first = PublicSettings(base_url=server.url, catalogue=str(listed))
    row = next(row for row in load_catalogue(str(listed)).rows() if row["name"] == NAME)
    assert row["checksums"] == "not published for 1 of 3: pinned on first use" and row["size_bytes"] is None
    to = tmp_path / "to"
    fetch(cohort(first), to, first)
    pins = json.loads((to / CHECKSUMS_FILE).read_text())["files"]
    assert pins[f"{NAME}/image.tif"]["checksum_from"] == "first use"
    assert pins[f"{NAME}/spatial.tar.gz"]["checksum_from"] == "catalogue"
    import shutil

    shutil.copytree(served, tmp_path / "changed")
    (tmp_path / "changed" / IMAGE).write_bytes(b"another picture")
    (to / NAME / "image.tif").unlink()
    with public_server.serving(tmp_path / "changed") as other:
        elsewhere = PublicSettings(base_url=other.url, catalogue=str(listed))
        with pytest.raises(DownloadError, match="was expected; it was not kept"):
            fetch(cohort(elsewhere), to, elsewhere)
    fetch(cohort(first), to, first)
    whole_but_pins = (to / NAME / "image.tif").read_bytes()
    assert whole_but_pins == (served / IMAGE).read_bytes()


def test_an_archive_cannot_write_outside_its_section(tmp_path: Path) -> None:
    root = tmp_path / "served"
    folder = public_server.write_set(root, NAME)
    with tarfile.open(folder / f"{NAME}_spatial.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("spatial/../../../escaped.txt")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"out"))
    with public_server.serving(root) as running:
        listed = public_server.write_list(tmp_path / "list.toml", root, [NAME])
        settings = PublicSettings(base_url=running.url, catalogue=str(listed))
        with pytest.raises(DownloadError, match="cannot be unpacked"):
            fetch(cohort(settings), tmp_path / "to", settings)
    assert not list(tmp_path.rglob("escaped.txt"))
    assert not (tmp_path / "to" / NAME / "spatial").exists()


# -- the command ---------------------------------------------------------------------------------------------------


def test_from_a_name_to_sections_that_ingest_takes(settings: PublicSettings, served: Path, tmp_path: Path) -> None:
    to = tmp_path / "to"
    done = histolake("sample", NAME, "--to", str(to), "--json", **variables(settings))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [(row["section"], row["licence"], row["organ"]) for row in rows] == [(NAME, "CC BY 4.0", "breast")]
    assert rows[0]["accession"] == "http://localhost/page" and rows[0]["data"] == "real"
    said = done.stderr
    assert said.index("licence: CC BY 4.0") < said.index(f"{NAME}/image.tif"), "the terms come before the download"
    whole(to / "public", served)
    table = list(csv.DictReader((to / "metadata.csv").open()))
    assert table[0]["species"] == "human" and table[0]["licence"] == "CC BY 4.0"
    (found,) = find_sections([str(to / "cohort.json")], "public")
    assert found.source is not None and found.source.reader == "space-ranger"
    slide = reader("space-ranger").read(found.source, found.metadata)
    assert slide.metadata.licence == "CC BY 4.0" and slide.metadata.organ == "breast"
    assert str(slide.image).endswith("image.tif") and "image_reduced" not in slide.flags
    assert slide.scales[0].um_per_px == pytest.approx(public_server.UM_PER_PX, rel=0.01)
    few = {"HISTOLAKE_CLUSTER__CPUS": "1", "HISTOLAKE_CLUSTER__OBJECT_STORE_MB": "128"}
    words = ["ingest", str(to / "cohort.json"), "--lake", str(tmp_path / "lake"), "--cohort", "public", "--plan"]
    plan = histolake(*words, "--json", **few)
    assert plan.returncode == 0, plan.stderr
    (row,) = json.loads(plan.stdout)
    assert row["slide_id"] == f"public/{NAME}" and row["status"] == "planned" and row["spots_kept"] > 50


def test_the_list_is_a_table_or_one_json_array() -> None:
    shown = histolake("sample", "--list")
    assert shown.returncode == 0
    assert "V1_Human_Lymph_Node" in shown.stdout and "breast-cancer-block-a" in shown.stdout
    assert "CC BY 4.0" in shown.stderr
    rows = json.loads(histolake("sample", "--list", "--json").stdout)
    assert {"name", "organ", "species", "technology", "space_ranger", "files", "licence", "page"} <= set(rows[0])


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_mistakes_and_failures_are_one_sentence_with_their_exit_code(settings: PublicSettings, tmp_path: Path) -> None:
    to = ["--to", str(tmp_path / "to")]
    unknown = histolake("sample", "V1_Human_Hart", *to)
    assert unknown.returncode == 2 and "Did you mean V1_Human_Heart" in unknown.stderr
    both = histolake("sample", NAME, "--from", str(tmp_path), *to, **variables(settings))
    assert both.returncode == 2 and "name one" in both.stderr
    uncut = histolake("sample", "--blocks", "3", *to)
    assert uncut.returncode == 2 and "--blocks" in uncut.stderr
    nowhere = variables(settings) | {"HISTOLAKE_PUBLIC__BASE_URL": f"http://127.0.0.1:{closed_port()}"}
    started = time.monotonic()
    offline = histolake("sample", NAME, *to, **nowhere)
    assert offline.returncode == 1 and "cannot be fetched" in offline.stderr
    assert time.monotonic() - started < 5
    gone = variables(settings) | {"HISTOLAKE_PUBLIC__BASE_URL": f"{settings.base_url}/other"}
    missing = histolake("sample", NAME, *to, **gone)
    assert missing.returncode == 1 and "404" in missing.stderr
    for done in (unknown, both, offline, missing):
        assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "to/cohort.json").exists()


def test_ctrl_c_keeps_what_has_come_and_the_next_call_goes_on(
    server: Any, settings: PublicSettings, served: Path, tmp_path: Path
) -> None:
    server.slow_s = 0.3
    to = tmp_path / "to"
    words = [sys.executable, "-m", "histolake.platform", "sample", NAME, "--to", str(to)]
    with subprocess.Popen(words, env=environment(**variables(settings)), stderr=subprocess.PIPE, text=True) as running:
        part = to / "public" / NAME / "image.tif.part"
        until = time.monotonic() + 30
        while not (part.is_file() and part.stat().st_size) and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=20)[1]
    assert running.returncode == 130, said
    assert "Traceback" not in said
    kept = part.stat().st_size
    assert 0 < kept < (served / IMAGE).stat().st_size
    assert not (to / "cohort.json").exists()
    server.slow_s, server.asked = 0.0, []
    done = histolake("sample", NAME, "--to", str(to), **variables(settings))
    assert done.returncode == 0, done.stderr
    whole(to / "public", served)
    assert ("GET", IMAGE, f"bytes={kept}-") in server.asked


# -- the demo's choice ---------------------------------------------------------------------------------------------


def silent(_what: str, _done: int, _of: int) -> None:
    """Progress that nobody watches."""


def chosen(settings: PublicSettings, to: Path, real: str | None = None) -> Any:
    return choose(real, str(to), seed=0, tell=silent, public=Public(settings=settings))


def test_the_demo_takes_the_smallest_cohort_in_blocks(server: Any, settings: PublicSettings, tmp_path: Path) -> None:
    to = tmp_path / "to"
    found = chosen(settings, to)
    assert (found.name, found.data) == (NAME, "real")
    assert list(found.sections) == [f"{NAME}-{number}of3" for number in (1, 2, 3)]
    assert "smallest public cohort" in found.why and "same tissue" in found.why and "CC BY 4.0" in found.why
    candidates = list(find_sections([str(to / "cohort.json")], "demo"))
    slides = [reader("space-ranger").read(c.source, c.metadata) for c in candidates if c.source]
    assert len(slides) == 3 and all(len(slide.barcodes) > 50 for slide in slides)
    assert not set(slides[0].barcodes) & set(slides[1].barcodes)
    assert {slide.metadata.licence for slide in slides} == {"CC BY 4.0"}
    server.asked = []
    server.root = tmp_path / "nothing"
    assert list(chosen(settings, to).sections) == list(found.sections)
    assert server.asked == [], "what an earlier run fetched needs no network"


def test_a_folder_of_the_users_comes_before_a_public_cohort(
    server: Any, settings: PublicSettings, tmp_path: Path, make_section: Any
) -> None:
    make_section(tmp_path / "mine/one")
    assert chosen(settings, tmp_path / "to", real=str(tmp_path / "mine")).name == "mine"
    assert server.asked == []


def test_the_demo_is_told_why_there_is_no_public_cohort(server: Any, settings: PublicSettings, tmp_path: Path) -> None:
    to = tmp_path / "to"

    def why(**change: Any) -> str:
        about = {"base_url": settings.base_url, "catalogue": settings.catalogue, "retries": 0, **change}
        found = offered(to, "cohort.json", PublicSettings(**about), tell=lambda *_: None, say=lambda _: None)
        assert isinstance(found, str)
        return found

    assert "public.probe is false" in why(probe=False)
    assert server.asked == []
    assert "the network has no" in why(base_url=f"http://127.0.0.1:{closed_port()}")
    assert "more than public.demo_mb allows (1)" in why(demo_mb=1)
    assert not to.exists(), "nothing is fetched that is too large"
    server.break_at = {IMAGE: [1000]}
    assert "could not be had" in why()
    server.slow_s = 0.5
    assert "took longer than 0.5 s" in why(demo_s=0.5)


def test_without_a_network_sections_are_simulated_and_the_reason_is_told(
    settings: PublicSettings, tmp_path: Path
) -> None:
    for patient in PATIENTS:
        for number in (1, 2):  # sections of an earlier run are left as they are, so that nothing has to be drawn here
            there = tmp_path / f"to/simulated/{patient}-{number}/truth.json"
            there.parent.mkdir(parents=True)
            there.write_text(json.dumps({"seed": 0, "generator": GENERATOR, "um_per_px": 1.0}))
    nowhere = variables(settings) | {"HISTOLAKE_PUBLIC__BASE_URL": f"http://127.0.0.1:{closed_port()}"}
    done = histolake("sample", "--public", "--to", str(tmp_path / "to"), "--json", **nowhere)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert rows[0]["data"] == "simulated" and "the network has no 127.0.0.1" in rows[0]["why"]


def test_a_network_that_never_answers_costs_the_probe_no_more_than_its_seconds(served: Path, tmp_path: Path) -> None:
    listed = public_server.write_list(tmp_path / "list.toml", served, [NAME])
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)  # connections come up; nothing is ever said on them
        settings = PublicSettings(
            base_url=f"http://127.0.0.1:{deaf.getsockname()[1]}", catalogue=str(listed), probe_s=0.8
        )
        started = time.monotonic()
        offer = smallest_within(demo_cohorts(load_catalogue(str(listed))), settings)
    assert offer.cohort is None and "the network has no" in offer.why_none
    assert time.monotonic() - started < 1.5


def test_the_smallest_of_several_is_offered(tmp_path: Path) -> None:
    root = tmp_path / "served"
    for seed, name in enumerate(("Large", "Little")):
        public_server.write_set(root, name, seed=seed)
    (root / "1.1.0/Large/Large_image.tif").write_bytes(b"0" * 9_000_000)
    listed = public_server.write_list(tmp_path / "list.toml", root, ["Large", "Little"], cohort="both")
    with public_server.serving(root) as running:
        settings = PublicSettings(base_url=running.url, catalogue=str(listed))
        offer = smallest_within(demo_cohorts(load_catalogue(str(listed))), settings)
        assert offer.cohort is not None and offer.cohort.name == "Little"
        assert {method for method, _, _ in running.asked} == {"HEAD"}
        found = choose(None, str(tmp_path / "to"), seed=0, tell=silent, public=Public(settings=settings, name="both"))
    assert list(found.sections) == ["Large", "Little"]
    assert len({row["study"] for row in found.metadata.values()}) == 1, "no split may divide them unawares"


# -- blocks --------------------------------------------------------------------------------------------------------


def test_blocks_share_no_spot_keep_every_count_and_stay_apart(
    settings: PublicSettings, server: Any, tmp_path: Path
) -> None:
    section = fetch(cohort(settings), tmp_path / "to", settings)[NAME]
    cut = cut_in_blocks(section, tmp_path / "blocks", 3)
    assert max(cut.spots) - min(cut.spots) < 0.5 * max(cut.spots)
    original = counts(section)
    assert sum(cut.spots) + cut.left_out == len(original)
    places = {name: np.array(xy) for name, xy in positions(section).items()}
    blocks = [counts(folder) for folder in cut.folders]
    for folder, block in zip(cut.folders, blocks, strict=True):
        assert all((original[name] == column).all() for name, column in block.items())
        assert (folder / "image.tif").stat().st_ino == (section / "image.tif").stat().st_ino, "no second copy"
    for one, other in ((0, 1), (1, 2), (0, 2)):
        gaps = [np.linalg.norm(places[a] - places[b]) for a in blocks[one] for b in blocks[other]]
        assert min(gaps) * public_server.UM_PER_PX >= GAP_UM - 2 * public_server.UM_PER_PX
    stamps = [folder.stat().st_mtime_ns for folder in cut.folders]
    assert cut_in_blocks(section, tmp_path / "blocks", 3) == cut
    assert [folder.stat().st_mtime_ns for folder in cut.folders] == stamps


def counts(section: Path) -> dict[str, np.ndarray]:
    """barcode -> its column of the matrix."""
    with h5py.File(section / "filtered_feature_bc_matrix.h5") as file:
        matrix = file["matrix"]
        starts, indices, data = matrix["indptr"][:], matrix["indices"][:], matrix["data"][:]
        found = {}
        for number, barcode in enumerate(matrix["barcodes"][:]):
            column = np.zeros(matrix["shape"][0], dtype=int)
            column[indices[starts[number] : starts[number + 1]]] = data[starts[number] : starts[number + 1]]
            found[barcode.decode()] = column
    return found


def positions(section: Path) -> dict[str, tuple[float, float]]:
    with (section / "spatial/tissue_positions_list.csv").open() as file:
        return {row[0]: (float(row[5]), float(row[4])) for row in csv.reader(file)}
