"""Pyramids are their sources, pixel for pixel; whole images are never in memory; hashes tell copies from neighbours."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image

from histolake.ingestion.images import image_hash, make_pyramid, open_image, wants_pyramid
from histolake.ingestion.images.hashing import HASH_BITS, tissue_box
from histolake.ingestion.images.settings import ImageSettings
from histolake.ingestion.images.tiff_image import TiffImage
from histolake.platform.errors import SourceError

SIZE = (1500, 1100)


def picture(size: tuple[int, int] = SIZE, seed: int = 0, grain: int = 40) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 255, (size[1] // grain, size[0] // grain, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def write(path: Path, pixels: np.ndarray) -> Path:
    if path.name == "deep.tif":
        planes = np.moveaxis(pixels, 2, 0).astype(np.uint16) * 257
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", rowsperstrip=64, metadata=None)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb", metadata=None)
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "deep.tif", "grey.png"])
def test_a_pyramid_is_its_source_in_every_pixel(tmp_path: Path, name: str) -> None:
    pixels = picture()
    source = write(tmp_path / name, pixels[..., 0] if name == "grey.png" else pixels)
    make_pyramid(str(source), tmp_path / "made.tif")
    image, made = open_image(str(source)), open_image(str(tmp_path / "made.tif"))
    assert isinstance(made, TiffImage) and made.is_tiled
    assert made.size_px == image.size_px == SIZE
    np.testing.assert_array_equal(made.read_region(0, 0, *SIZE), image.read_region(0, 0, *SIZE))
    np.testing.assert_array_equal(made.read_region(255, 300, 300, 1), image.read_region(255, 300, 300, 1))
    with tifffile.TiffFile(tmp_path / "made.tif") as file:
        assert [page.imagewidth for page in file.pages] == [1500, 750, 375, 187]
    assert np.abs(made.overview(200).astype(int) - image.overview(200)).mean() < 3
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "made.tif"])


def test_pyramids_are_for_large_images_without_tiles(tmp_path: Path) -> None:
    plain = open_image(str(write(tmp_path / "a.png", picture())))
    strips = open_image(str(write(tmp_path / "deep.tif", picture())))
    tifffile.imwrite(tmp_path / "tiles.tif", picture(), photometric="rgb", tile=(256, 256), metadata=None)
    tiles = open_image(str(tmp_path / "tiles.tif"))
    small, large = ImageSettings(pyramid_above_mpx=1.0), ImageSettings(pyramid_above_mpx=2.0)
    assert [wants_pyramid(image, small) for image in (plain, strips, tiles)] == [True, True, False]
    assert [wants_pyramid(image, large) for image in (plain, strips, tiles)] == [False, False, False]


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_damaged_source_leaves_no_pyramid(tmp_path: Path, name: str) -> None:
    source = write(tmp_path / name, picture())
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with pytest.raises(SourceError) as refusal:
        make_pyramid(str(source), tmp_path / "made.tif")
    assert (refusal.value.rule, refusal.value.file) == ("image_readable", str(source))
    assert not (tmp_path / "made.tif").exists()


LARGE = 12_000  # pixels a side: 432 MB decoded
PEAK = r"""
import json, re, sys
from pathlib import Path
from histolake.ingestion.images import make_pyramid, open_image
import numpy, pyvips, tifffile, imagecodecs, openslide, PIL.Image

def memory_mb(name):
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

before_mb = memory_mb("VmRSS")
source, what = sys.argv[1:]
if what == "pyramid":
    make_pyramid(source, Path(source).with_name("made.tif"))
else:
    image = open_image(source)
    if what == "overview":
        assert image.overview(1024).shape == (1024, 1024, 3)
    else:
        for at in range(0, 12_000 - 300, 900):
            image.read_region(at, at, 300, 300)
print(json.dumps(memory_mb("VmHWM") - before_mb))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One picture of 12,000 x 12,000 px as JPEG, PNG and tiled TIFF."""
    folder = tmp_path_factory.mktemp("large")
    noise = pyvips.Image.gaussnoise(LARGE // 8, LARGE // 8, mean=160, sigma=60, seed=1).cast("uchar")
    grown = noise.bandjoin([noise.rot180(), noise.rot90()]).zoom(8, 8).copy(interpretation="srgb")
    grown.write_to_file(str(folder / "a.jpg"), Q=80)
    grown.write_to_file(str(folder / "a.png"), compression=1)
    grown.tiffsave(str(folder / "a.tif"), tile=True, compression="jpeg", tile_width=256, tile_height=256)
    yield folder
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("what", "name"),
    [(what, name) for what in ("overview", "regions") for name in ("a.jpg", "a.png", "a.tif")]
    + [("pyramid", name) for name in ("a.jpg", "a.png")],  # the TIFF has tiles of its own
)
def test_a_large_image_is_never_in_memory(large: Path, what: str, name: str) -> None:
    command = [sys.executable, "-c", PEAK, str(large / name), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    peak_mb = json.loads(done.stdout)
    print(f"{what} of {name}: {peak_mb:.0f} MB")
    # Regions of a plain image come from a temporary file; its pages count here, though the system may take them back.
    limit_mb = 300 if what == "regions" else 200
    assert peak_mb < limit_mb, f"{what} of {name} took {peak_mb:.0f} MB; the image is 432 MB"


def bits_apart(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def again(pixels: np.ndarray, quality: int) -> np.ndarray:
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, "JPEG", quality=quality)
    return np.asarray(Image.open(packed))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    size = (round(pixels.shape[1] * factor), round(pixels.shape[0] * factor))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def test_hashes_of_copies_are_near_and_of_others_far() -> None:
    pictures = [picture((1024, 800), seed, grain=100) for seed in range(6)]
    hashes = [image_hash(pixels) for pixels in pictures]
    assert all(len(h) == HASH_BITS // 4 for h in hashes)
    for pixels, own in zip(pictures, hashes, strict=True):
        copies = [again(pixels, 50), resized(pixels, 0.5), resized(pixels, 0.33)]
        assert max(bits_apart(own, image_hash(copy)) for copy in copies) <= 8
    apart = [bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) >= 60


def test_small_tissue_on_much_glass_is_cut_out_first() -> None:
    pictures = []
    for seed in range(5):
        glass = np.full((800, 1024, 3), (243, 242, 244), np.uint8)
        glass[400:580, 500:720] = picture((220, 180), seed, grain=20)
        pictures.append(glass)
    left, top, right, bottom = tissue_box(pictures[0])
    assert left < 520 and top < 420 and right > 700 and bottom > 560, "tissue is cut off"
    assert (right - left) * (bottom - top) < 0.15 * 800 * 1024, "most of it is still glass"
    hashes = [image_hash(pixels) for pixels in pictures]
    assert min(bits_apart(a, b) for i, a in enumerate(hashes) for b in hashes[:i]) >= 60
    assert max(bits_apart(h, image_hash(again(p, 80))) for h, p in zip(hashes, pictures, strict=True)) <= 24


def test_empty_glass_has_a_hash_too() -> None:
    assert len(image_hash(np.full((300, 400, 3), 243, np.uint8))) == HASH_BITS // 4
    assert tissue_box(np.full((300, 400, 3), 243, np.uint8)) == (0, 0, 400, 300)


def test_hashes_of_real_sections(real_sections: Path) -> None:
    overviews = {name: open_image(str(real_sections / "her2st" / name / "image.jpg")).overview(1024) for name in NEXT}
    hashes = {name: image_hash(pixels) for name, pixels in overviews.items()}
    neighbours = [bits_apart(hashes[a], hashes[b]) for i, a in enumerate(NEXT) for b in NEXT[:i]]
    assert min(neighbours) > 60, "neighbouring sections look like copies"
    for name, pixels in overviews.items():
        copies = [again(pixels, 60), resized(pixels, 0.5), resized(again(pixels, 80), 0.7)]
        assert max(bits_apart(hashes[name], image_hash(copy)) for copy in copies) <= 8


NEXT = ["C2", "C3", "C4", "C5"]  # four sections of one tumour, one after the other
