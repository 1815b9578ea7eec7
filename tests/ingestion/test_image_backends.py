"""One contract for every kind of image file, and each backend against another decoder of the same file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from histolake.ingestion.images import open_image
from histolake.ingestion.images.bmp_image import BmpImage
from histolake.ingestion.images.files import ImageFile, companions
from histolake.ingestion.images.openslide_image import OpenSlideImage
from histolake.ingestion.images.plain import PlainImage
from histolake.ingestion.images.tiff_image import TiffImage
from histolake.ingestion.images.tiff_layout import missing_bytes
from histolake.ingestion.readers import Source, digest
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location

WIDTH, HEIGHT = 700, 500
REGIONS = [(0, 0, 50, 40), (123, 77, 300, 200), (699, 499, 1, 1), (500, 0, 200, 500), (250, 250, 13, 17)]
TILES = {"tile": (128, 128)}
TRUTH = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 28, 3), dtype=np.uint8)).resize(
        (WIDTH, HEIGHT), Image.Resampling.BICUBIC
    )
)
COLOURS = Image.fromarray(TRUTH).quantize(200)
ALPHA = np.where(np.arange(WIDTH) < 300, 0, 255)[None].repeat(HEIGHT, 0).astype(np.uint8)


def halves(pixels: np.ndarray) -> list[np.ndarray]:
    """An image (H, W, 3) or its colours (3, H, W) at a half and a quarter of its size."""
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else np.moveaxis(pixels, 0, 2))
    made = [np.asarray(picture.reduce(factor)) for factor in (2, 4)]
    return made if pixels.shape[2] == 3 else [np.moveaxis(level, 2, 0) for level in made]


def tiff(pixels: np.ndarray = TRUTH, **how: Any) -> Callable[[Path], None]:
    how = {"photometric": "rgb", "metadata": None} | how

    def write(path: Path) -> None:
        tifffile.imwrite(path, pixels, **how)

    return write


def ome(pixels: np.ndarray, axes: str, **how: Any) -> Callable[[Path], None]:
    """An OME-TIFF whose levels are sub-pages of its first ones."""
    size = {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.501, "PhysicalSizeYUnit": "µm"}

    def write(path: Path) -> None:
        levels = halves(pixels)
        options = {"photometric": "minisblack" if axes == "CYX" else "rgb", **how}
        with tifffile.TiffWriter(path, ome=True) as out:
            out.write(pixels, subifds=len(levels), metadata={"axes": axes, **size}, **options)
            for level in levels:
                out.write(level, subfiletype=1, **options)

    return write


def pyramid(path: Path) -> None:
    """Levels as further pages, and a label that is no level."""
    with tifffile.TiffWriter(path, bigtiff=True) as out:
        for level in (TRUTH, *halves(TRUTH)):
            out.write(level, photometric="rgb", compression="lzw", predictor=True, metadata=None, **TILES)
        out.write(np.zeros((90, 100, 3), np.uint8), photometric="rgb", metadata=None)


def pillow(mode: str = "RGB", **how: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        Image.fromarray(TRUTH).convert(mode).save(path, **how)

    return write


def trestle(path: Path) -> None:
    """A format that OpenSlide composes: tiles of a MedScan microscope, which may overlap."""
    with tifffile.TiffWriter(path) as out:
        for level in (TRUTH, *halves(TRUTH)):
            out.write(
                level,
                photometric="rgb",
                compression="deflate",
                software="MedScan 1.0",
                description="Objective Power=20;OverlapsXY= 0 0 0 0 0 0;",
                metadata=None,
                **TILES,
            )


WHITE_LEFT = np.where(ALPHA[..., None] == 255, TRUTH, 255).astype(np.uint8)
KINDS: dict[str, tuple[str, type, np.ndarray, Callable[[Path], None]]] = {
    "tiles": ("a.tif", TiffImage, TRUTH, tiff(**TILES)),
    "tiles-deflate": ("a.tif", TiffImage, TRUTH, tiff(compression="deflate", predictor=True, **TILES)),
    "tiles-zstd": ("a.tif", TiffImage, TRUTH, tiff(compression="zstd", **TILES)),
    "tiles-webp": ("a.tif", TiffImage, TRUTH, tiff(compression="webp", compressionargs={"lossless": True}, **TILES)),
    "tiles-jpeg2000": ("a.tif", TiffImage, TRUTH, tiff(compression="jpeg2000", **TILES)),
    "tiles-big-endian": ("a.tif", TiffImage, TRUTH, tiff(byteorder=">", **TILES)),
    "tiles-with-levels": ("a.tif", TiffImage, TRUTH, pyramid),
    "tiles-planes": ("a.tif", TiffImage, TRUTH, tiff(np.moveaxis(TRUTH, 2, 0), planarconfig="separate", **TILES)),
    "tiles-16-bit": ("a.tif", TiffImage, TRUTH, tiff(TRUTH.astype(np.uint16) * 257, **TILES)),
    "tiles-grey": (
        "a.tif",
        TiffImage,
        TRUTH[..., :1].repeat(3, 2),
        tiff(TRUTH[..., 0], photometric="minisblack", **TILES),
    ),
    "tiles-transparent": (
        "a.tif",
        TiffImage,
        WHITE_LEFT,
        tiff(np.dstack([TRUTH, ALPHA]), extrasamples=["unassalpha"], **TILES),
    ),
    "strips": ("a.tif", TiffImage, TRUTH, tiff(rowsperstrip=16)),
    "strips-lzw": ("a.tif", TiffImage, TRUTH, tiff(rowsperstrip=7, compression="lzw")),
    "strips-16-bit-planes": (
        "a.tif",
        TiffImage,
        TRUTH,
        tiff(np.moveaxis(TRUTH, 2, 0).astype(np.uint16) * 257, planarconfig="separate", rowsperstrip=16),
    ),
    "strips-palette": ("a.tif", PlainImage, np.asarray(COLOURS.convert("RGB")), lambda path: COLOURS.save(path)),
    "ome-levels": ("a.ome.tif", TiffImage, TRUTH, ome(TRUTH, "YXS", compression="deflate", **TILES)),
    "ome-colours-as-pages": ("a.ome.tif", TiffImage, TRUTH, ome(np.moveaxis(TRUTH, 2, 0), "CYX", **TILES)),
    "ome-strips": ("a.ome.tif", TiffImage, TRUTH, ome(np.moveaxis(TRUTH, 2, 0), "CYX", rowsperstrip=64)),
    "trestle": ("a.tif", OpenSlideImage, TRUTH, trestle),
    "png": ("a.png", PlainImage, TRUTH, pillow()),
    "png-named-tif": ("a.tif", PlainImage, TRUTH, pillow(format="PNG")),
    "bmp": ("a.bmp", BmpImage, TRUTH, pillow()),
    "bmp-palette": ("a.bmp", BmpImage, np.asarray(COLOURS.convert("RGB")), lambda path: COLOURS.save(path)),
    "webp": ("a.webp", PlainImage, TRUTH, pillow(lossless=True)),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, type, np.ndarray]:
    name, backend, truth, write = KINDS[request.param]
    write(tmp_path / name)
    return tmp_path / name, backend, truth


def test_every_kind_keeps_the_contract(kind: tuple[Path, type, np.ndarray]) -> None:
    path, backend, truth = kind
    image = open_image(str(path))
    assert type(image) is backend
    assert image.size_px == (WIDTH, HEIGHT)
    assert image.um_per_px is None or 0.05 <= image.um_per_px <= 50
    for x, y, width, height in [*REGIONS, (0, 0, WIDTH, HEIGHT), REGIONS[0]]:
        region = image.read_region(x, y, width, height)
        assert region.dtype == np.uint8 and region.flags.c_contiguous
        np.testing.assert_array_equal(region, truth[y : y + height, x : x + width])
    for max_px in (64, 333, 5000):
        small = image.overview(max_px)
        longest = min(max_px, WIDTH)
        assert small.dtype == np.uint8 and small.shape == (round(HEIGHT * longest / WIDTH), longest, 3)
        wanted = np.asarray(Image.fromarray(truth).resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
        assert np.abs(small - wanted).mean() < 6, "the overview shows something else"
    image.close()


def test_a_truncated_file_of_any_kind_is_refused(kind: tuple[Path, type, np.ndarray]) -> None:
    path, _, _ = kind
    data = path.read_bytes()
    for part in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(SourceError) as refusal:
            open_image(str(path)).read_region(0, 0, WIDTH, HEIGHT)
        assert (refusal.value.rule, refusal.value.file) == ("image_readable", str(path))


def direct_and_by_openslide(path: Path) -> tuple[TiffImage, OpenSlideImage]:
    image = open_image(str(path))
    assert isinstance(image, TiffImage)
    return image, OpenSlideImage(ImageFile.at(str(path)))


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_jpeg_tiles_are_equal_to_openslides_in_every_bit(tmp_path: Path, photometric: str) -> None:
    if photometric == "rgb":
        tiff(compression="jpeg", compressionargs={"level": 85}, **TILES)(tmp_path / "a.tif")
    else:  # with a quarter of the colours' pixels, and tables that all tiles share
        picture = pyvips.Image.new_from_array(TRUTH).copy(interpretation="srgb")
        picture.tiffsave(str(tmp_path / "a.tif"), tile=True, pyramid=True, compression="jpeg", Q=85)
    direct, slide = direct_and_by_openslide(tmp_path / "a.tif")
    np.testing.assert_array_equal(direct.read_region(0, 0, WIDTH, HEIGHT), slide.read_region(0, 0, WIDTH, HEIGHT))
    assert np.abs(direct.read_region(0, 0, WIDTH, HEIGHT).astype(int) - TRUTH).mean() < 3
    np.testing.assert_array_equal(direct.overview(128), slide.overview(128))


@pytest.mark.parametrize("name", ["cmu_small_region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides_are_equal_to_openslides_in_every_bit(real_sections: Path, name: str) -> None:
    direct, slide = direct_and_by_openslide(real_sections / "wsi" / name)
    width, height = direct.size_px
    assert direct.size_px == slide.size_px
    assert direct.um_per_px == slide.um_per_px == (0.499 if name.startswith("cmu") else None)
    for x, y in [(0, 0), (width // 2, height // 2), (width - 700, height - 600), (333, 1001)]:
        np.testing.assert_array_equal(direct.read_region(x, y, 700, 600), slide.read_region(x, y, 700, 600))
    assert np.abs(direct.overview(300).astype(int) - slide.overview(300)).max() <= 2


@pytest.mark.parametrize("part", [0.99, 0.7, 0.3, 0.01])
def test_a_truncated_slide_is_refused(real_sections: Path, tmp_path: Path, part: float) -> None:
    data = (real_sections / "wsi" / "cmu_small_region.svs").read_bytes()
    (tmp_path / "a.svs").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SourceError, match="truncated") as refusal:
        open_image(str(tmp_path / "a.svs"))
    assert refusal.value.rule == "image_readable"


def spoiled(path: Path, tile: int, left: float) -> None:
    """Put zeros over the last part of one tile's bytes."""
    with tifffile.TiffFile(path) as file:
        start, length = file.pages[0].dataoffsets[tile], file.pages[0].databytecounts[tile]
    kept = int(length * left)
    with path.open("r+b") as stream:
        stream.seek(start + kept)
        stream.write(bytes(length - kept))


@pytest.mark.parametrize(
    ("compression", "left"),
    # Nothing in Zstandard tells that its last blocks are zeros.
    [*((name, left) for name in ("jpeg", "deflate", "lzw", "jpeg2000") for left in (0.0, 0.6)), ("zstd", 0.0)],
)
def test_a_tile_of_zeros_is_damage_and_no_colour(tmp_path: Path, compression: str, left: float) -> None:
    """As a download leaves it that was cut off in a file of the final length."""
    tiff(compression=compression, **TILES)(tmp_path / "a.tif")
    spoiled(tmp_path / "a.tif", 7, left)
    image = open_image(str(tmp_path / "a.tif"))
    image.read_region(0, 0, 128, 128)
    with pytest.raises(SourceError, match="segment 7") as refusal:
        image.read_region(128, 128, 128, 128)
    assert refusal.value.rule == "image_readable"


def test_a_tile_that_was_never_scanned_is_white(tmp_path: Path) -> None:
    tiff(compression="deflate", **TILES)(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        counts = list(file.pages[0].databytecounts)
        file.pages[0].tags["TileByteCounts"].overwrite([*counts[:7], 0, *counts[8:]])
    image = open_image(str(tmp_path / "a.tif"))
    assert (image.read_region(128, 128, 128, 128) == 255).all()
    np.testing.assert_array_equal(image.read_region(0, 0, 128, 500), TRUTH[:500, :128])


def test_a_stack_is_refused_with_a_word_on_it(tmp_path: Path) -> None:
    pixels = np.zeros((5, 300, 400), np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "CYX"}, photometric="minisblack", **TILES)
    with pytest.raises(SourceError, match="5 planes along C") as refusal:
        open_image(str(tmp_path / "a.ome.tif"))
    assert refusal.value.rule == "image_readable"


@pytest.mark.parametrize(
    ("resolution", "unit", "um_per_px"),
    [
        ((20_000, 20_000), "centimeter", 0.5),
        ((25_400 / 0.25, 25_400 / 0.25), "inch", 0.25),
        ((20_000, 20_050), "centimeter", pytest.approx(0.5, rel=0.01)),
        ((72, 72), "inch", None),
        ((96, 96), "inch", None),
        ((300, 300), "inch", None),
        ((1200, 1200), "inch", None),
        ((1, 1), "none", None),
        ((1, 1), "centimeter", None),
        ((20_000, 20_000), "none", None),
        ((10_000_000, 10_000_000), "centimeter", None),
    ],
)
@pytest.mark.parametrize("how", [TILES, {"rowsperstrip": HEIGHT}], ids=["tiles", "one strip"])
def test_resolution_tags_count_where_they_can_be_meant(
    tmp_path: Path, resolution: tuple[float, float], unit: str, um_per_px: float | None, how: dict[str, Any]
) -> None:
    tiff(resolution=resolution, resolutionunit=unit, **how)(tmp_path / "a.tif")
    assert open_image(str(tmp_path / "a.tif")).um_per_px == um_per_px


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    tiff(resolution=(20_000, 19_000), resolutionunit="centimeter", **TILES)(tmp_path / "a.tif")
    with pytest.raises(SourceError, match=r"0\.5 by 0\.526") as refusal:
        _ = open_image(str(tmp_path / "a.tif")).um_per_px
    assert refusal.value.rule == "scale_agrees"
    assert refusal.value.figure == pytest.approx(20 / 19)


@pytest.mark.parametrize(
    ("size", "unit", "um_per_px"),
    [(0.5, "µm", 0.5), (500, "nm", 0.5), (0.0005, "mm", 0.5), (1, "pixel", None), (9, "mm", None)],
)
def test_ome_units(tmp_path: Path, size: float, unit: str, um_per_px: float | None) -> None:
    metadata = {"axes": "YXS"} | {f"PhysicalSize{axis}": size for axis in "XY"}
    metadata |= {f"PhysicalSize{axis}Unit": unit for axis in "XY"}
    tifffile.imwrite(tmp_path / "a.ome.tif", TRUTH, metadata=metadata, photometric="rgb", **TILES)
    assert open_image(str(tmp_path / "a.ome.tif")).um_per_px == (um_per_px and pytest.approx(um_per_px))


def write_ndpi(path: Path, pixels_bytes: int, page_at: int, stated_bytes: int | None = None) -> None:
    """The frame of an NDPI file: a classic TIFF, but offsets of pages have 8 bytes, and so have the upper halves of all
    values, which follow a page."""
    stated = pixels_bytes if stated_bytes is None else stated_bytes
    tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 273: 12, 277: 1, 278: 64, 279: stated, 65420: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    with path.open("wb") as stream:
        stream.write(b"II*\0" + struct.pack("<Q", page_at))
        stream.seek(page_at)
        stream.write(struct.pack("<H", len(tags)) + entries + struct.pack("<Q", 0) + bytes(4 * len(tags)))


@pytest.mark.parametrize("page_at", [5_000, 5 << 30])
def test_an_ndpi_file_must_hold_its_pixels(tmp_path: Path, page_at: int) -> None:
    path = tmp_path / "a.ndpi"  # the larger one has a hole in it, and takes no room
    write_ndpi(path, 4096, page_at)
    assert missing_bytes(path) is None
    with path.open("r+b") as stream:
        stream.truncate(page_at + 60)
    assert missing_bytes(path) is not None
    write_ndpi(path, 4096, page_at, stated_bytes=(1 << 32) - 1 if page_at < 1 << 32 else None)
    if page_at < 1 << 32:
        assert "its pixels would end at byte 4294967307" in str(missing_bytes(path))


def test_a_slide_of_several_files_is_fetched_whole(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files = {
        "a.mrxs": b"\xff\xd8 a picture",
        "a/Slidedat.ini": b"[GENERAL]",
        "a/Data0001.dat": b"tiles",
        "b.mrxs": b"other",
    }
    for name, data in files.items():
        Location.parse(f"{bucket}/slides").join(*name.split("/")).write_bytes(data)
    uri = f"{bucket}/slides/a.mrxs"
    assert sorted(companions(uri)) == [f"{bucket}/slides/a/Data0001.dat", f"{bucket}/slides/a/Slidedat.ini"]
    for _ in range(2):
        here = ImageFile.at(uri).local
        assert here.read_bytes() == files["a.mrxs"]
        assert {p.name: p.read_bytes() for p in (here.parent / "a").iterdir()} == {
            "Slidedat.ini": b"[GENERAL]",
            "Data0001.dat": b"tiles",
        }
    Location.parse(f"{bucket}/slides/a/Slidedat.ini").write_bytes(b"[GENERAL] once more")
    assert (ImageFile.at(uri).local.parent / "a" / "Slidedat.ini").read_bytes() == b"[GENERAL] once more"


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="folder") as refusal:
        open_image(str(tmp_path))
    assert refusal.value.rule == "image_readable"


def test_every_file_of_a_slide_counts_in_its_digest(tmp_path: Path) -> None:
    (tmp_path / "slide.mrxs").write_bytes(b"head")
    (tmp_path / "slide").mkdir()
    (tmp_path / "slide/Data0000.dat").write_bytes(b"pixels")
    source = Source(reader="r", uri=str(tmp_path), files={"image": str(tmp_path / "slide.mrxs")})
    before = digest(source, {})
    assert digest(source, {}) == before
    (tmp_path / "slide/Data0000.dat").write_bytes(b"others")
    assert digest(source, {}) != before
