"""Images in zarr: regions, overviews, scale, transparency, and chunks that are damaged; on disk and in a store."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from tests.ingestion.spatialdata_files import tissue, unpack_spatialdata, write_image, write_spatialdata

from histolake.ingestion.images import open_image
from histolake.ingestion.readers import Listing, reader
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location


def group(path: Path, zarr_format: int = 3) -> Any:
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    root.create_group("images")
    return root


def refusal(uri: str) -> SourceError:
    with pytest.raises(SourceError) as caught:
        open_image(uri).read_region(0, 0, 8, 8)
    return caught.value


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_regions_and_overviews(tmp_path: Path, zarr_format: int) -> None:
    y, x = np.mgrid[0:303, 0:421]
    waves = (np.sin(x / 29), np.cos(y / 37), np.sin((x + 2 * y) / 53))  # smooth, for the levels leave out pixels
    pixels = np.stack([np.rint(128 + 120 * wave) for wave in waves]).astype(np.uint8)
    write_image(group(tmp_path / "s.zarr", zarr_format), "he", pixels, {"global": [1, 1]}, levels=3, chunk_px=64)
    uri = str(tmp_path / "s.zarr/images/he")
    image = open_image(uri)
    truth = pixels.transpose(1, 2, 0)
    assert image.size_px == (421, 303)
    assert image.um_per_px is None
    for x, y, width, height in ((0, 0, 421, 303), (63, 64, 2, 1), (100, 37, 200, 150), (420, 302, 1, 1)):
        np.testing.assert_array_equal(image.read_region(x, y, width, height), truth[y : y + height, x : x + width])
    np.testing.assert_array_equal(image.overview(1000), truth)
    np.testing.assert_array_equal(image.overview(211), truth[::2, ::2])  # the second level as it is
    for max_px in (60, 300):
        small = image.overview(max_px)
        assert small.shape == (round(303 * max_px / 421), max_px, 3)
        wanted = np.asarray(Image.fromarray(truth).resize(small.shape[1::-1], Image.Resampling.BOX)).astype(int)
        assert np.abs(small - wanted).max() < 12
    image.close()


def test_an_overview_without_a_pyramid_never_holds_the_image(tmp_path: Path) -> None:
    pixels = tissue((6000, 5000), 0)
    write_image(group(tmp_path / "s.zarr"), "he", pixels, {"global": [1, 1]}, chunk_px=512)
    image = open_image(str(tmp_path / "s.zarr/images/he"))
    image.overview(1000)  # imports
    tracemalloc.start()
    small = image.overview(300)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < pixels.nbytes / 2
    np.testing.assert_allclose(small[10, 20], pixels[:, 200:220, 400:420].astype(float).mean(axis=(1, 2)), atol=0.51)
    np.testing.assert_allclose(small[-1, -1], pixels[:, -20:, -20:].astype(float).mean(axis=(1, 2)), atol=0.51)


@pytest.mark.parametrize(
    ("unit", "pixel", "told"),
    [
        ("micrometer", 0.5, 0.5),
        ("nanometer", 250, 0.25),
        ("millimeter", 0.001, 1.0),
        ("parsec", 1, None),
        (None, 1, None),
    ],
)
def test_the_scale_of_axes_with_units(tmp_path: Path, unit: str | None, pixel: float, told: float | None) -> None:
    write_image(group(tmp_path / "s.zarr"), "he", tissue((40, 40), 0), {"global": [1, 1]}, unit=unit, pixel=pixel)
    assert open_image(str(tmp_path / "s.zarr/images/he")).um_per_px == (None if told is None else pytest.approx(told))


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pixels = np.concatenate([tissue((40, 40), 0), np.zeros((1, 40, 40), np.uint8)])
    pixels[3, :20] = 255
    write_image(group(tmp_path / "s.zarr"), "he", pixels, {"global": [1, 1]})
    region = open_image(str(tmp_path / "s.zarr/images/he")).read_region(0, 0, 40, 40)
    np.testing.assert_array_equal(region[:20], pixels[:3, :20].transpose(1, 2, 0))
    assert (region[20:] == 255).all()


def test_fluorescence_is_no_picture(tmp_path: Path) -> None:
    root = group(tmp_path / "s.zarr")
    write_image(root, "dapi", tissue((40, 40), 0)[:1].astype(np.uint16), {"global": [1, 1]})
    write_image(root, "five", np.zeros((5, 40, 40), np.uint8), {"global": [1, 1]})
    error = refusal(str(tmp_path / "s.zarr/images/dapi"))
    assert (error.rule, error.figure) == ("image_readable", 1.0)
    assert refusal(str(tmp_path / "s.zarr/images/five")).figure == 5.0


def test_an_image_in_one_great_chunk_is_refused(tmp_path: Path) -> None:
    root = group(tmp_path / "s.zarr")
    write_image(root, "he", tissue((400, 400), 0), {"global": [1, 1]})
    side = 16_000  # nothing of it is written
    root["images/he"].create_array("s0", shape=(3, side, side), dtype="u1", chunks=(3, side, side), overwrite=True)
    error = refusal(str(tmp_path / "s.zarr/images/he"))
    assert (error.rule, error.figure, error.limit) == ("image_readable", 3.0 * side**2, 512.0 * 2**20)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.01])
def test_a_chunk_that_was_cut_off_is_told(tmp_path: Path, zarr_format: int, kept: float) -> None:
    """Noise does not pack, and Blosc would hand out whatever lies behind a piece of it."""
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    root = group(tmp_path / "s.zarr", zarr_format)
    write_image(root, "he", noise, {"global": [1, 1]}, chunk_px=64)
    array = tmp_path / "s.zarr/images/he/s0"
    if zarr_format == 2:
        root["images/he"].create_array(
            "s0", shape=noise.shape, dtype="u1", chunks=(3, 64, 64), compressors=[_blosc()], overwrite=True
        )[:] = noise
        assert json.loads((array / ".zarray").read_text())["compressor"]["id"] == "blosc"
    (chunk,) = [file for file in array.rglob("*") if file.is_file() and "z" not in file.name]
    data = chunk.read_bytes()
    chunk.write_bytes(data[: int(len(data) * kept)])
    error = refusal(str(tmp_path / "s.zarr/images/he"))
    assert (error.rule, error.file) == ("image_readable", str(tmp_path / "s.zarr/images/he"))


def _blosc() -> Any:
    from numcodecs import Blosc

    return Blosc(cname="zstd", clevel=5)


def test_a_chunk_of_format_3_packed_with_blosc(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (3, 64, 64), dtype=np.uint8)
    root = group(tmp_path / "s.zarr")
    write_image(root, "he", noise, {"global": [1, 1]}, chunk_px=64)
    root["images/he"].create_array(
        "s0", shape=noise.shape, dtype="u1", chunks=(3, 64, 64), compressors=[zarr.codecs.BloscCodec()], overwrite=True
    )[:] = noise
    uri = str(tmp_path / "s.zarr/images/he")
    np.testing.assert_array_equal(open_image(uri).read_region(0, 0, 64, 64), noise.transpose(1, 2, 0))
    (chunk,) = [file for file in (tmp_path / "s.zarr/images/he/s0/c").rglob("*") if file.is_file()]
    chunk.write_bytes(chunk.read_bytes()[:6000])
    assert "6000 of" in str(refusal(uri))


def test_what_is_no_image(tmp_path: Path) -> None:
    write_image(group(tmp_path / "s.zarr"), "he", tissue((40, 40), 0), {"global": [1, 1]})
    for uri in ("s.zarr", "s.zarr/images"):
        assert refusal(str(tmp_path / uri)).rule == "image_readable"
    assert refusal(str(tmp_path / "s.zarr/images/gone")).rule == "missing_file"
    metadata = tmp_path / "s.zarr/images/he/s0/zarr.json"
    metadata.write_text(metadata.read_text()[:50])
    assert refusal(str(tmp_path / "s.zarr/images/he")).rule == "image_readable"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_store_in_an_object_store(bucket: str, tmp_path: Path, zarr_format: int) -> None:
    local = write_spatialdata(tmp_path / "s.zarr", zarr_format=zarr_format)
    for file in local.rglob("*"):
        if file.is_file():
            Location.parse(f"{bucket}/{zarr_format}.zarr").join(str(file.relative_to(local))).write_bytes(
                file.read_bytes()
            )
    here, there = (
        reader("spatialdata").read(*reader("spatialdata").find(Listing(Location.parse(place))), {})
        for place in (local, f"{bucket}/{zarr_format}.zarr")
    )
    np.testing.assert_array_equal(here.counts.toarray(), there.counts.toarray())
    np.testing.assert_array_equal(here.xy_px, there.xy_px)
    assert there.image == f"{bucket}/{zarr_format}.zarr/images/he"
    near, far = open_image(str(here.image)), open_image(there.image)
    np.testing.assert_array_equal(near.read_region(30, 200, 140, 90), far.read_region(30, 200, 140, 90))
    np.testing.assert_array_equal(near.overview(64), far.overview(64))


def test_the_first_plane_of_more_axes(tmp_path: Path) -> None:
    path, _ = unpack_spatialdata(tmp_path / "real", 3)
    file = path / "images/visium_hires_image/zarr.json"
    values = json.loads(file.read_text())
    pyramid = values["attributes"]["ome"]["multiscales"][0]
    pixels = zarr.open_array(path, path="images/visium_hires_image/s0", mode="r")[:]
    zarr.create_array(path, name="images/visium_hires_image/t", data=np.stack([pixels, 255 - pixels]), zarr_format=3)
    pyramid["axes"] = [{"name": "t", "type": "time"}, *pyramid["axes"]]
    pyramid["datasets"][0]["path"] = "t"
    file.write_text(json.dumps(values))
    image = open_image(str(path / "images/visium_hires_image"))
    np.testing.assert_array_equal(image.read_region(0, 0, 45, 40), pixels.transpose(1, 2, 0))
