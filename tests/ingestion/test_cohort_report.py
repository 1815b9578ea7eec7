"""The cohort report, read back from its HTML: what is in the lake is in the page, with the lake's own figures."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from histolake.ingestion.report import advice
from histolake.ingestion.report.charts import histogram, number
from histolake.ingestion.report.collect import DRAWN_SPOTS
from histolake.ingestion.report.commands import write_report
from histolake.ingestion.report.distributions import MEASURES, Distribution, measured
from histolake.ingestion.report.facts import Cohort, Refusal, Section
from histolake.ingestion.report.projection import Map, mixing
from histolake.ingestion.report.render import render
from histolake.ingestion.report.similar import find_alike, hamming
from histolake.platform.cli import app
from histolake.platform.errors import UsageError
from histolake.platform.lake import Lake
from histolake.platform.schemas import PAIRS

PAGE_BYTES = 15_000_000
IMAGE_PX = 4000


class Page(HTMLParser):
    """The parts of the page that tests ask about."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.by_id: dict[str, dict[str, str]] = {}
        self.rows: dict[tuple[str, str], list[str]] = {}  # (slide_id, status) -> cells of the table of all sections
        self.figures: list[str] = []  # slide_ids of cards
        self.refused: list[str] = []
        self.rules: list[str] = []
        self.alike: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.policy = ""
        self._row: list[str] | None = None
        self._silent = False
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        got = {name: value or "" for name, value in attrs}
        if "id" in got:
            assert got["id"] not in self.by_id, f"the id {got['id']} is there twice"
            self.by_id[got["id"]] = got
        self.links += [got[name] for name in ("href", "src", "data", "action") if name in got]
        if got.get("http-equiv") == "Content-Security-Policy":
            self.policy = got["content"]
        if tag == "tr":
            self._row = None
            if "data-slide" in got:
                self._row = self.rows.setdefault((got["data-slide"], got["data-status"]), [])
        if tag == "td" and self._row is not None:
            self._row.append("")
        if tag == "figure" and "data-slide" in got:
            self.figures.append(got["data-slide"])
        if tag == "div" and "refusal" in got.get("class", ""):
            self.refused.append(got["data-slide"])
        if "data-rule" in got:
            self.rules.append(got["data-rule"])
        if "data-alike" in got:
            self.alike.append(got["data-alike"])
        self._silent = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        self._silent = False

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.words.append(data)
            if self._row:
                self._row[-1] += data.strip()


def jpeg(seed: int, size: tuple[int, int] = (1024, 1024)) -> bytes:
    """A picture with about the detail of a stained section."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(90, 255, (size[1] // 16, size[0] // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    grain = smooth + rng.normal(0, 12, (size[1], size[0], 1)).astype(np.int16)
    stream = io.BytesIO()
    Image.fromarray(np.clip(grain, 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def pairs(slide_id: str, n: int, shift: float = 0.0) -> pa.Table:
    """Pairs with positions, quality and a profile of forty genes; `shift` makes another batch of them."""
    rng = np.random.default_rng(list(hashlib.sha256(slide_id.encode()).digest()))
    side = int(np.ceil(np.sqrt(n)))
    places = [(100 + 3800 * (i % side) / side, 100 + 3800 * (i // side) / side) for i in range(n)]
    genes = np.arange(40, dtype=np.int32)
    rows = []
    for i, (x, y) in enumerate(places):
        counts = rng.poisson(3 + shift * (genes % 2), 40) + 1.0
        rows.append(
            {
                **dict.fromkeys(PAIRS.names),
                "pair_id": hashlib.sha256(f"{slide_id}\0{i}".encode()).digest()[:16],
                "ingest_id": "",
                "slide_id": slide_id,
                "barcode": f"b{i}",
                "x_px": x,
                "y_px": y,
                "gene_ids": genes.tolist(),
                "counts": counts.tolist(),
                "n_counts": float(counts.sum()),
                "n_genes": float(rng.integers(250, 3000)),
                "tissue_fraction": float(rng.uniform(0.2, 1)),
                "focus": float(rng.uniform(0.1, 2)),
            }
        )
    return pa.Table.from_pylist(rows, schema=PAIRS)


KNOWN: dict[str, Any] = {
    "species": "human", "organ": "breast", "technology": "Visium", "licence": "CC-BY-4.0", "study": "study",
    "patient": "P1", "um_per_px": 0.5, "scale_from": "pitch", "spot_diameter_um": 55.0, "pitch_um": 100.0,
    "image_width_px": IMAGE_PX, "image_height_px": IMAGE_PX, "flags": [], "reader": "space-ranger",
    "scales": [{"origin": "pitch", "um_per_px": 0.5}, {"origin": "image_tag", "um_per_px": 0.51}],
}  # fmt: skip


def add(lake: Lake, slide_id: str, n: int, *, shift: float = 0.0, picture: int | None = 0, **known: Any) -> str:
    """Publish a section; returns its ingest_id. Three of its spots are refused, one of them by the source."""
    attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="d", source=f"/in/{slide_id}")
    fragment = attempt.pairs.write(pairs(slide_id, n, shift))
    spot = {"rule": "min_genes", "limit": 200.0, "reason": "few genes"}
    refused = [
        {**spot, "barcode": "r0", "x_px": 500.0, "y_px": 600.0, "figure": 20.0},
        {**spot, "barcode": "r1", "x_px": 900.0, "y_px": 700.0, "figure": 150.0},
        {"barcode": "r2", "rule": "spot_selected", "reason": "off the tissue", "x_px": 1.0, "y_px": 1.0},
    ]
    cohort, section = slide_id.split("/")
    record = {**KNOWN, "cohort": cohort, "section": section, "source": f"/in/{slide_id}", "n_spots": n + 3, **known}
    attempt.stage(record, [fragment], pa.Table.from_pylist(refused))
    lake.publish([attempt])
    if picture is not None:
        lake.images.picture(attempt.ingest_id).write_bytes(jpeg(picture))
    return attempt.ingest_id


def refuse(lake: Lake, slide_id: str, **why: Any) -> None:
    """Refuse a section as a whole."""
    attempt = lake.begin(slide_id, source_digest=slide_id, settings_digest="d", source=f"/in/{slide_id}")
    cohort, section = slide_id.split("/")
    record = {"cohort": cohort, "section": section, "source": f"/in/{slide_id}", "n_spots": 0}
    attempt.refuse(record, pa.Table.from_pylist([why]))
    lake.publish([attempt])


@pytest.fixture(scope="module")
def known_lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """Two cohorts; one has a section with blanks, a low-resolution one without a picture, a copy, and two refused."""
    lake = Lake.open(tmp_path_factory.mktemp("report") / "lake", create=True)
    add(lake, "breast/one", 70, picture=1, image_hash="00ff00ff00ff00ff")
    add(lake, "breast/bare", 60, picture=None, patient=None, licence="", flags=["low_resolution"])
    add(lake, "breast/copy", 65, picture=2, look_alikes=["breast/one"], image_hash="00ff00ff00ff00fe")
    refuse(
        lake, "breast/cut", rule="file_complete", figure=10.0, limit=20.0, file="/in/counts.h5",
        reason="counts.h5 ends at byte 10 of 20.",
    )  # fmt: skip
    refuse(
        lake, "breast/apart", rule="scale_agrees", figure=0.21, limit=0.05, file="/in/i.tif",
        reason="The scale is 0.5 and 0.6.",
    )  # fmt: skip
    add(lake, "brain/far", 80, shift=4.0, picture=3, patient="P9", image_hash="ffff0000ffff0000")
    return lake


def written(lake: Lake, to: Path, **more: Any) -> Page:
    write_report(lake, to=str(to), **{"map_pairs": 0, **more})
    return Page(to.read_text(encoding="utf-8"))


def test_every_section_is_there_with_the_lakes_figures(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "r.html", cohorts=["breast"])
    slides = known_lake.at().slides(include_refused=True).to_pylist()
    mine = {(r["slide_id"], r["status"]): r for r in slides if r["cohort"] == "breast"}
    assert set(page.rows) == set(mine)
    assert sorted(page.figures) == sorted(slide_id for slide_id, _ in mine)
    for slide_id in ("breast/one", "breast/bare", "breast/copy"):
        cells, row = page.rows[slide_id, "published"], mine[slide_id, "published"]
        table = pa.Table.from_batches(list(known_lake.at().pairs(["n_genes", "n_counts"], [slide_id])))
        assert cells[3:5] == [number(row["n_spots"]), number(row["n_pairs"])]
        assert cells[5] == f"{100 * 2 / (row['n_pairs'] + 2):.0f}%", "what the source ruled out is not lost"
        assert cells[6] == number(float(np.median(table["n_genes"].to_numpy())))
        assert cells[7] == number(float(np.median(table["n_counts"].to_numpy())))
    assert page.rows["breast/bare", "published"][9] == "blank"
    assert "195 pairs" in page.text and "3 of 5 sections were published" in page.text
    assert "/in/breast/one" in page.text and known_lake.uri in page.text


def test_verdicts_say_what_to_do(known_lake: Lake, tmp_path: Path) -> None:
    text = written(known_lake, tmp_path / "r.html", cohorts=["breast"]).text
    assert "1 section has no patient: it splits by study, all of one study on one side (bare)." in text
    assert "Licence is blank in 1 of 3 (bare)." in text
    assert "2 sections were refused (apart: micrometres per pixel disagree; cut: a file is cut off)." in text
    assert "1 section is of low resolution (bare): it is published" in text
    assert "1 pair of sections looks alike" in text


def test_refusals_have_reason_figure_limit_and_next_step(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "r.html", cohorts=["breast"])
    assert sorted(page.refused) == ["breast/apart", "breast/cut"]
    assert "counts.h5 ends at byte 10 of 20." in page.text and "10 against a limit of 20" in page.text
    assert "Copy or download the file again" in page.text
    assert page.rules == ["min_genes", "spot_selected"]
    assert "6 spots of 3 sections" in page.text and "3 spots of 3 sections" in page.text
    assert "refused: 21% apart" in page.text


def test_spots_are_drawn_where_they_are(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "r.html", cohorts=["breast"])
    ids = {r["slide_id"]: f"s-{r['ingest_id']}" for r in known_lake.at().slides().to_pylist()}
    one = ids["breast/one"]
    assert page.by_id[f"k-{one}"]["d"].count("M") == 70
    crosses = page.by_id[f"x-{one}-min_genes"]["d"]
    starts = [tuple(map(float, m)) for m in re.findall(r"M(-?[\d.]+) (-?[\d.]+)", crosses)]
    half = 55 / 0.5 / IMAGE_PX * 1000 / 2
    wanted = np.array([(500, 600), (900, 700)]) * 1000 / IMAGE_PX - half
    assert np.allclose(np.array(starts), wanted, atol=1.5)
    assert page.by_id[f"o-{one}"]["d"].count("z") == 1
    picture = page.by_id[f"p-{one}"]["href"]
    with Image.open(io.BytesIO(base64.b64decode(picture.split(",", 1)[1]))) as image:
        assert max(image.size) == 720
    assert f"p-{ids['breast/bare']}" not in page.by_id, "there is no overview of it"
    assert page.by_id[f"k-{ids['breast/bare']}"]["d"].count("M") == 60, "its spots are drawn all the same"


def test_look_alikes_stand_side_by_side(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "r.html", cohorts=["breast"])
    assert page.alike == ["breast/copy | breast/one"]
    assert "The ingest noted that their content is likely the same. Their image hashes differ in 1 bit." in page.text


def test_hashes_are_compared_with_the_whole_lake() -> None:
    rng = np.random.default_rng(0)
    hashes = [f"{int(v):016x}" for v in rng.integers(0, 1 << 62, 300)]
    slides = pa.table(
        {
            "slide_id": [f"lake/{i}" for i in range(300)],
            "image_hash": hashes,
            "profile_sketch": pa.nulls(300, pa.list_(pa.int64())),
        }
    )
    near = f"{int(hashes[17], 16) ^ 0b1011:016x}"
    mine = [section("new/near", image_hash=near), section("new/none", image_hash=None)]
    found = find_alike(mine, slides)
    assert [(like.one, like.other, like.bits) for like in found] == [("new/near", "lake/17", 3)]
    assert hamming(near, hashes[17]) == 3


def test_a_duplicate_that_was_refused_names_the_other() -> None:
    slides = pa.table(
        {
            "slide_id": ["a/1", "a/10"],
            "image_hash": pa.nulls(2, pa.string()),
            "profile_sketch": pa.nulls(2, pa.list_(pa.int64())),
        }
    )
    said = "About 97% of the spots are those of a/10, which the lake holds; at most 90% may be."
    why = Refusal(rule="duplicate_slide", figure=0.97, limit=0.9, file=None, reason=said)
    (found,) = find_alike([section("b/x", status="refused", refusal=why)], slides)
    assert (found.one, found.other, found.refused) == ("b/x", "a/10", True)


def test_shared_spots_are_told_from_the_sketches() -> None:
    sketches = [list(range(64)), [*range(32, 64), *range(100, 132)], list(range(1000, 1064))]
    slides = pa.table(
        {"slide_id": ["c/a", "c/b", "c/z"], "image_hash": pa.nulls(3, pa.string()), "profile_sketch": sketches}
    )
    (found,) = find_alike([section("c/a", look_alikes=["c/b"])], slides)
    assert (found.one, found.other, found.bits) == ("c/a", "c/b", None)
    assert found.shared is not None and 0.4 < found.shared <= 1.0
    (apart,) = find_alike([section("c/a", look_alikes=["c/z"])], slides)
    assert apart.shared == 0.0


def test_every_rule_that_the_readers_and_the_core_name_has_words_and_a_next_step() -> None:
    code = "".join(p.read_text() for p in Path(advice.__file__).parents[1].rglob("*.py"))
    rules = set(re.findall(r'\brule="([a-z_]+)"', code))
    assert {"scale_agrees", "min_spots", "spot_selected"} <= rules
    assert {rule for rule in rules if advice.next_step(rule) == advice.DEFAULT[1]} == set()


def test_the_page_asks_no_machine_and_runs_no_name(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path / "lake", create=True)
    name = "c/<script>alert(1)<&script>"
    add(lake, name, 50, study="\"><img src=x onerror='alert(2)'>", source="https://example.org/x")
    page = written(lake, tmp_path / "r.html")
    assert all(link.startswith(("#", "data:image/")) for link in page.links), page.links
    assert "url(" not in page.html and "@import" not in page.html
    assert page.html.count("<script") == 1 and "<img src=x" not in page.html
    assert (name, "published") in page.rows
    assert page.policy.startswith("default-src 'none'; img-src data:;")


def test_limits_are_drawn_and_refused_spots_stand_beside_kept_ones() -> None:
    measure = MEASURES["n_genes"]
    kept, lost = measured(measure, np.array([300.0, 320.0, 4000.0, np.nan])), Distribution(measure)
    lost.add(np.array([12.0, 190.0]))
    assert kept is not None and kept.n == 3 and kept.median == 320.0
    drawn = str(histogram(kept, lost, [200.0]))
    assert drawn.count('class="kept"') == 3 and drawn.count('class="lost"') == 2
    assert "limit 200" in drawn
    at = float(re.findall(r'class="limit" d="M([\d.]+)', drawn)[0])
    lefts = {kind: [float(x) for x in re.findall(rf'class="{kind}" x="([\d.]+)"', drawn)] for kind in ("kept", "lost")}
    assert max(lefts["lost"]) < at < min(lefts["kept"])


def test_a_cohorts_quantiles_come_from_its_sections_bins() -> None:
    rng = np.random.default_rng(1)
    parts = [np.exp(rng.normal(7, 0.6, 500)) for _ in range(4)]
    measure = MEASURES["n_counts"]
    whole = Distribution.total(measure, [m for p in parts if (m := measured(measure, p)) is not None])
    assert whole is not None and whole.n == 2000
    assert np.allclose(whole.quantiles, np.quantile(np.concatenate(parts), [0.05, 0.25, 0.5, 0.75, 0.95]), rtol=0.1)
    assert measured(measure, np.array([np.nan])) is None
    focus = measured(MEASURES["focus"], np.array([0.0, 0.5, 0.7, 0.9]))
    assert focus is not None and (focus.n, focus.median) == (3, 0.7), "a focus of 0 could not be told"


def section(slide_id: str, *, refusal: Refusal | None = None, **known: Any) -> Section:
    """A section's facts without a lake."""
    row = {
        **KNOWN, "slide_id": slide_id, "ingest_id": hashlib.sha256(slide_id.encode()).hexdigest()[:32],
        "cohort": slide_id.split("/")[0], "status": "published", "n_pairs": 2000, "n_spots": 2100, "simulated": False,
        "when": None, "software": "histolake", "settings_digest": "d", "look_alikes": None, **known,
    }  # fmt: skip
    return Section(row=row, refusal=refusal)


def test_two_hundred_sections_make_a_page_that_opens() -> None:
    rng = np.random.default_rng(0)
    overview = [jpeg(seed) for seed in range(8)]
    sections = []
    for i in range(200):
        one = section(f"large/section-{i:03d}")
        one.shown, one.overview = True, overview[i % 8]
        one.kept_xy = rng.uniform(0, IMAGE_PX, (DRAWN_SPOTS, 2))
        one.refused_xy = {"min_genes": rng.uniform(0, IMAGE_PX, (60, 2))}
        one.refused_spots = {"min_genes": 60}
        one.measures = {
            name: found
            for name, m in MEASURES.items()
            if (found := measured(m, rng.uniform(m.low, min(m.high, 5000), 500))) is not None
        }
        sections.append(one)
    totals = {
        name: whole
        for name, m in MEASURES.items()
        if (whole := Distribution.total(m, [s.measures[name] for s in sections])) is not None
    }
    cohort = Cohort(
        lake="/lake", version=1, chosen="the cohort large", sections=sections, rules=[], quality=totals,
        lost={name: Distribution(m) for name, m in MEASURES.items()}, limits={name: [] for name in MEASURES},
        tolerance=0.05, current_settings=True, why_no_map="none",
    )  # fmt: skip
    html = render(cohort, command="histolake lake report")
    assert len(Page(html).figures) == 200
    assert len(html.encode()) < PAGE_BYTES


def test_a_limit_shows_first_what_asks_for_a_look(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "r.html", limit=3)
    assert sorted(page.figures) == ["breast/apart", "breast/bare", "breast/cut"]
    assert len(page.rows) == 6
    assert "3 of 6 sections are shown here" in page.text and "--limit 6" in page.text


def embed(lake: Lake, name: str, vectors: Callable[[str, int], np.ndarray]) -> None:
    """A table of embeddings of all pairs, as the lake keeps them."""
    import lance

    rows = []
    for batch in lake.at().pairs(["pair_id", "ingest_id", "slide_id"]):
        for row in batch.to_pylist():
            rows.append({**row, "vector": vectors(row["slide_id"], len(rows)).astype(np.float32).tolist()})
    schema = pa.schema(
        [
            pa.field("pair_id", pa.binary(16)),
            pa.field("ingest_id", pa.string()),
            pa.field("slide_id", pa.string()),
            pa.field("vector", pa.list_(pa.float32(), 8)),
        ]
    )
    lance.write_dataset(pa.Table.from_pylist(rows, schema=schema), lake.root.join("embeddings", f"{name}.lance").uri)


def test_the_map_is_of_expression_until_there_are_embeddings(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "a.html", cohorts=["breast"], map_pairs=400)
    assert "Made from expression" in page.text and "Of 2 cohorts:" in page.text
    assert sum(map(int, re.findall(r'data-points="(\d+)"', page.html))) == 70 + 60 + 65 + 80

    def vectors(slide_id: str, i: int) -> np.ndarray:
        return np.random.default_rng(i).normal(0, 1, 8) + (9.0 if slide_id.startswith("brain") else 0.0)

    embed(known_lake, "net-v1", lambda _slide, i: np.random.default_rng(i).normal(0, 1, 8))
    embed(known_lake, "net-v2", vectors)
    again = written(known_lake, tmp_path / "b.html", cohorts=["breast"], map_pairs=400)
    assert "Made from embeddings of net-v2" in again.text
    assert "100% of a pair's nearest neighbours are of its own cohort" in again.text
    old = written(known_lake, tmp_path / "c.html", map_pairs=120, embeddings="net-v1")
    assert "Made from embeddings of net-v1" in old.text and "they mix well" in old.text
    with pytest.raises(UsageError, match="no embeddings 'net-v3'; there are: net-v1, net-v2"):
        written(known_lake, tmp_path / "d.html", map_pairs=120, embeddings="net-v3")


def test_mixing_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    labels = [{"cohort": c, "section": s, "patient": "p", "technology": "t"} for c, s in (("a", "1"), ("b", "2"))]
    section_S = np.repeat([0, 1], [300, 100])
    apart = rng.normal(0, 1, (400, 5)) + 20 * section_S[:, None]
    one = {m.kind: m for m in mixing(apart, section_S, labels)}
    assert set(one) == {"cohort", "section"}, "one patient and one technology cannot mix"
    assert one["cohort"].share == 1.0
    assert one["cohort"].chance == pytest.approx((300 * 299 + 100 * 99) / (400 * 399))
    mixed = mixing(rng.normal(0, 1, (400, 5)), section_S, labels)[0]
    assert mixed.share == pytest.approx(mixed.chance, abs=0.05)


def test_a_map_is_drawn_once_a_pair_in_every_colouring() -> None:
    from histolake.ingestion.report.legend import map_picture

    labels = tuple(
        {"slide_id": f"c/{i}", "cohort": "c", "section": f"c/{i}", "patient": f"p{i % 3}", "technology": "Visium"}
        for i in range(20)
    )
    rng = np.random.default_rng(0)
    drawn = map_picture(
        Map(
            of="expression", embedded=False, xy_S2=rng.normal(0, 1, (500, 2)), section_S=rng.integers(0, 20, 500),
            sections=labels, mixing=(),
        )
    )  # fmt: skip
    assert str(drawn.svg).count("h0") == 500
    by_kind = {legend.kind: legend for legend in drawn.legends}
    assert len(by_kind["section"].entries) + by_kind["section"].more == 20
    assert sum(n for _, _, n in by_kind["patient"].entries) == 500
    assert all(f"--{kind}:#" in drawn.svg for kind in by_kind)


def test_plain_rows_without_quality_or_places_make_a_page(lake: Lake, writer: ModuleType, tmp_path: Path) -> None:
    writer.ingest(lake, "s1", "d1", 10)
    page = written(lake, tmp_path / "r.html", map_pairs=100)
    assert page.rows["s1", "published"][3:5] == ["12", "10"]
    assert "No pair of these sections carries a quality measure." in page.text
    assert "There are 10 pairs to draw from; a map needs at least 60." in page.text
    assert "no picture in the lake" in page.text


def test_the_command(known_lake: Lake, tmp_path: Path) -> None:
    to = tmp_path / "r.html"
    words = ["lake", "report", "--lake", known_lake.uri, "--map-pairs", "0"]
    done = CliRunner().invoke(app, [*words, "--where", "organ = 'breast'", "--to", str(to), "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert (row["published"], row["refused"], row["pairs"]) == (4, 0, 275)
    assert row["bytes"] == to.stat().st_size
    assert "where organ = 'breast'" in Page(to.read_text()).text


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"to": "LAKE/report.html"}, "would lie in the lake"),
        ({"cohorts": ["liver"]}, "no cohort liver in version|has no cohort liver; it has brain, breast"),
        ({"where": "organ = 'liver'"}, "No section of"),
    ],
)
def test_a_mistake_is_told(known_lake: Lake, tmp_path: Path, asked: dict[str, Any], said: str) -> None:
    to = asked.pop("to", str(tmp_path / "r.html")).replace("LAKE", known_lake.uri)
    with pytest.raises(UsageError, match=said):
        write_report(known_lake, to=to, map_pairs=0, **asked)
    assert not (tmp_path / "r.html").exists()


def test_an_older_version_is_reported_as_it_was(known_lake: Lake, tmp_path: Path) -> None:
    page = written(known_lake, tmp_path / "r.html", version=2)
    assert set(page.rows) == {("breast/one", "published"), ("breast/bare", "published")}


def test_what_an_ingest_left_is_what_the_report_tells(
    tmp_path: Path, make_section: Callable[..., Path], ray_here: None
) -> None:
    from histolake.ingestion.discover import find_sections
    from histolake.ingestion.pipeline import ingest, ingest_settings
    from histolake.platform.settings import load_settings

    for number_, name in enumerate(("one", "two", "cut")):
        make_section(tmp_path / "in" / name, seed=number_, patient=f"P{number_}", study="s", licence="CC0-1.0")
    cut = tmp_path / "in/cut/counts.tsv.gz"
    cut.write_bytes(cut.read_bytes()[:2000])
    lake = Lake.open(tmp_path / "lake", create=True)
    ingest(
        find_sections([str(tmp_path / "in")], "mine"), lake, ingest_settings(load_settings()), lambda *_progress: None
    )
    page = written(lake, tmp_path / "r.html")
    assert set(page.rows) == {("mine/one", "published"), ("mine/two", "published"), ("mine/cut", "refused")}
    assert page.refused == ["mine/cut"]
    (reason,) = [r["reason"] for r in lake.at().rejections().to_pylist() if r["barcode"] is None]
    assert reason in page.text
    assert page.rows["mine/one", "published"][3:5] == ["72", "72"]
    assert "These are the settings of today" in page.text
