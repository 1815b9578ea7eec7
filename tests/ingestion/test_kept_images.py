"""What the lake keeps of a section's image: its overview, its pyramid, and patches that are the same from either."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histolake.ingestion import pipeline
from histolake.ingestion.discover import Candidate, find_sections
from histolake.ingestion.images import image_hash, open_image
from histolake.ingestion.images.keeping import keep_overview
from histolake.ingestion.images.tiff_image import TiffImage
from histolake.ingestion.outcome import Outcome
from histolake.ingestion.worker import SlideWorker, Work, add_pyramid, look
from histolake.platform.errors import SourceError
from histolake.platform.lake import Lake, PairsWriter
from histolake.platform.settings import load_settings

LARGE = load_settings({"quality.min_spots": 40, "images.pyramid_above_mpx": 0.1, "images.overview_px": 200})
RULES = pipeline.ingest_settings(LARGE)
SIDE = 400  # pixels of the sections' images, about


def candidate_of(folder: Path) -> Candidate:
    (found,) = find_sections([str(folder)], "c")
    return found


def overview_of(lake: Lake, ingest_id: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(lake.images.picture(ingest_id).read_bytes())))


def cut(lake: Lake, work: Work) -> list[tuple[bytes, bytes]]:
    """The patches that a worker writes."""
    worker = SlideWorker(lake.root, RULES)
    rows, _ = worker._section(work, lambda: None).rows(work.start, work.stop)
    return list(zip(rows["spot_image"].to_pylist(), rows["niche_image"].to_pylist(), strict=True))


def test_patches_are_the_same_from_the_source_and_from_its_pyramid(
    lake: Lake, tmp_path: Path, make_section: Callable[..., Path]
) -> None:
    candidate = candidate_of(make_section(tmp_path / "in", image="image.jpg"))
    told = look(candidate, lake.root, RULES, "a")
    assert told.wants_pyramid and told.n_kept == 72
    assert lake.images.files().keys() == {"a"}
    add_pyramid(candidate, told.record["image"], lake.root, "a")
    pyramid = lake.images.pyramid("a")
    assert isinstance(open_image(pyramid.uri), TiffImage)
    symbols, ensembl_ids = zip(*told.unknown_genes, strict=True)
    lake.resolve_genes(list(symbols), list(ensembl_ids), species=told.species, allocate=True)
    writer = PairsWriter(location=lake.pairs.location, ingest_id="a", slide_id=candidate.slide_id)
    plain = cut(lake, Work(candidate=candidate, writer=writer, start=0, stop=72))
    (tmp_path / "in" / "image.jpg").rename(tmp_path / "in" / "moved.jpg")
    with Image.open(tmp_path / "in" / "moved.jpg") as image:  # only its size is right: nothing may be cut from it
        Image.new("RGB", image.size).save(tmp_path / "in" / "image.jpg")
    tiled = cut(lake, Work(candidate=candidate, writer=writer, start=0, stop=72, pyramid=pyramid))
    assert tiled == plain
    assert len({spot for spot, _ in tiled}) > 60


def test_the_overview_shows_the_image_and_its_hash_is_in_the_record(
    lake: Lake, tmp_path: Path, make_section: Callable[..., Path]
) -> None:
    candidate = candidate_of(make_section(tmp_path / "in"))
    told = look(candidate, lake.root, RULES, "a")
    overview = overview_of(lake, "a")
    assert max(overview.shape) == 200
    whole = Image.open(tmp_path / "in" / "image.png").convert("RGB")
    wanted = np.asarray(whole.resize(overview.shape[1::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(overview - wanted).mean() < 10
    assert told.record["image_hash"] == image_hash(open_image(str(tmp_path / "in" / "image.png")).overview(200))


def test_sections_on_one_image_are_not_copies_of_each_other(lake: Lake, tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 255, (20, 60, 3), dtype=np.uint8)
    Image.fromarray(small).resize((1200, 400), Image.Resampling.BICUBIC).save(tmp_path / "a.png")
    rules = load_settings().section("images")

    def hashed(ingest_id: str, left: float, right: float) -> int:
        corners = np.array([[left, 20.0], [right, 380.0]])
        return int(keep_overview(str(tmp_path / "a.png"), lake.root, ingest_id, rules, corners)[0], 16)

    whole, one, again, other = (
        hashed(name, *ends) for name, *ends in (("a", 10, 1190), ("b", 10, 380), ("c", 11, 379), ("d", 410, 780))
    )
    assert whole == int(image_hash(open_image(str(tmp_path / "a.png")).overview(1024)), 16)
    assert (one ^ other).bit_count() > 60 and (one ^ whole).bit_count() > 60
    assert (one ^ again).bit_count() <= 24


@pytest.mark.parametrize("fault", ["counts", "few spots"])
def test_a_refused_section_has_its_overview_too(
    lake: Lake, tmp_path: Path, make_section: Callable[..., Path], fault: str
) -> None:
    folder = make_section(tmp_path / "in")
    if fault == "counts":
        (folder / "counts.tsv.gz").write_bytes(b"no table")
    rules = RULES if fault == "counts" else pipeline.ingest_settings(load_settings({"quality.min_spots": 73}))
    with pytest.raises(SourceError) as refusal:
        look(candidate_of(folder), lake.root, rules, "a")
    assert refusal.value.rule != "image_readable"
    assert overview_of(lake, "a").std() > 20


def test_a_broken_image_is_refused_without_an_overview(
    lake: Lake, tmp_path: Path, make_section: Callable[..., Path]
) -> None:
    folder = make_section(tmp_path / "in")
    file = folder / "image.png"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SourceError) as refusal:
        look(candidate_of(folder), lake.root, RULES, "a")
    assert (refusal.value.rule, refusal.value.file) == ("image_readable", str(file))
    assert lake.images.files() == {}


def test_images_of_an_ingest(ray_here: None, lake: Lake, tmp_path: Path, make_section: Callable[..., Path]) -> None:
    """Pyramids of the large ones, overviews of all that open, and nothing at all for a plan."""
    make_section(tmp_path / "in" / "large", seed=1)
    (make_section(tmp_path / "in" / "refused", seed=2) / "counts.tsv.gz").write_bytes(b"no table")
    broken = make_section(tmp_path / "in" / "broken", seed=3) / "image.png"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])

    def silent(_what: str, _done: int, _of: int) -> None:
        """Progress that nobody watches."""

    def run(step: Callable[..., list[Outcome]]) -> dict[str, Outcome]:
        found = list(find_sections([str(tmp_path / "in")], "c"))
        return {outcome.section: outcome for outcome in step(found, lake, RULES, silent)}

    run(pipeline.plan)
    assert lake.images.files() == {}
    outcomes = run(pipeline.ingest)
    assert {name: o.status for name, o in outcomes.items()} == {
        "large": "published",
        "refused": "refused",
        "broken": "refused",
    }
    rows = {row["section"]: row for row in lake.at().slides(include_refused=True).to_pylist()}
    of = {name: row["ingest_id"] for name, row in rows.items()}
    names = {file.location.name for files in lake.images.files().values() for file in files}
    assert names == {f"{of['large']}.jpg", f"{of['large']}.tif", f"{of['refused']}.jpg"}
    assert rows["large"]["image"] == str(tmp_path / "in" / "large" / "image.png")
    assert rows["large"]["image_hash"] and rows["refused"]["image_hash"] is None
