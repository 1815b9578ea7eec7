"""Regions of image files against PIL's crops, and files that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histolake.ingestion.images import open_image
from histolake.platform.errors import SourceError

REGIONS = [(0, 0, 50, 40), (123, 77, 64, 64), (299, 199, 1, 1), (200, 0, 100, 200)]


def picture() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((300, 200), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_regions_equal_crops(tmp_path: Path, name: str) -> None:
    Image.fromarray(picture()).save(tmp_path / name)
    whole = np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
    image = open_image(str(tmp_path / name))
    assert image.size_px == (300, 200)
    for x, y, width, height in REGIONS:
        region = image.read_region(x, y, width, height)
        assert region.dtype == np.uint8
        # Decoders of JPEG differ in rounding; the lossless ones may not differ at all.
        assert np.abs(region - whole[y : y + height, x : x + width]).max() <= (4 if name.endswith("jpg") else 0)
    image.close()


def test_grey_and_transparent_and_deep_pictures_become_rgb(tmp_path: Path) -> None:
    grey = picture()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    clear = np.dstack([picture(), np.where(np.arange(300) < 150, 0, 255)[None].repeat(200, 0).astype(np.uint8)])
    Image.fromarray(clear).save(tmp_path / "clear.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    region = open_image(str(tmp_path / "grey.png")).read_region(10, 10, 30, 20)
    np.testing.assert_array_equal(region, grey[10:30, 10:40, None].repeat(3, 2))
    region = open_image(str(tmp_path / "clear.png")).read_region(140, 0, 20, 10)
    assert (region[:, :10] == 255).all()
    np.testing.assert_array_equal(region[:, 10:], picture()[:10, 150:160])
    region = open_image(str(tmp_path / "deep.png")).read_region(10, 10, 30, 20)
    assert np.abs(region[..., 0].astype(int) - grey[10:30, 10:40]).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_a_truncated_file_is_an_error_wherever_one_reads(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 600, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    with pytest.raises(SourceError) as refusal:
        open_image(str(file)).read_region(0, 350, 50, 50)
    assert refusal.value.rule == "image_readable"
    assert refusal.value.file == str(file)


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("this is not a picture")
    with pytest.raises(SourceError, match="cannot be decoded"):
        open_image(str(tmp_path / "a.jpg"))
    with pytest.raises(SourceError) as refusal:
        open_image(str(tmp_path / "b.jpg"))
    assert refusal.value.rule == "missing_file"
