"""What the codec benchmark compares is the same work: kernel, ingest and the loop of peers write the same pictures."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from tests.benchmarks.big_slide import UM_PER_PX, BigSlide, Shape, big_slide
from tests.benchmarks.kernel import STEPS, Decoded, TiledJpeg, run_kernel
from tests.benchmarks.peer_loop import run_peer_loop

from histolake.ingestion.images import open_image
from histolake.ingestion.images.tiff_image import TiffImage
from histolake.ingestion.tiling import PairTiler, PatchSettings

SPOT_UM, NICHE_UM = 104.0, 255.0
SIDES = (424, 1041)
RULES = PatchSettings()


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> BigSlide:
    """The slide of the benchmarks, small."""
    return big_slide(tmp_path_factory.mktemp("work"), Shape(side_px=2_600, spots=9, pattern_px=512))


@pytest.fixture(scope="module")
def ours(slide: BigSlide) -> list[tuple[bytes, bytes]]:
    """Pairs of pictures as the ingest cuts them."""
    image = open_image(str(slide.image))
    assert isinstance(image, TiffImage)
    tiler = PairTiler(image, slide.xy_px, spot_um=SPOT_UM, niche_um=NICHE_UM, um_per_px=UM_PER_PX, settings=RULES)
    spots, niches = tiler.pairs(0, len(slide.xy_px))
    assert not spots.outside_N.any() and not niches.outside_N.any()
    return list(zip(spots.jpegs, niches.jpegs, strict=True))


def test_the_kernel_writes_the_ingests_bytes_and_decodes_each_tile_once(
    slide: BigSlide, ours: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    source = TiledJpeg(slide.image)
    written, clock = run_kernel(source, slide.xy_px, SIDES, max_px=224, quality=90, out=tmp_path / "out")
    order = np.lexsort((slide.xy_px[:, 0], slide.xy_px[:, 1] // 256))
    data = (tmp_path / "out").read_bytes()
    assert data == b"".join(ours[i][0] + ours[i][1] for i in order) and written == len(data)
    touched = {
        (int(y), int(x))
        for cx, cy in slide.xy_px
        for y in np.arange((cy - 521) // 256, (cy + 521) // 256 + 1)
        for x in np.arange((cx - 521) // 256, (cx + 521) // 256 + 1)
    }
    assert len(touched) - 25 <= source.decoded <= len(touched)
    assert 0.5 < sum(clock.shares().values()) < 1 and set(clock.shares()) == set(STEPS)
    source.close()


def test_the_kernel_reads_a_plain_picture_too(slide: BigSlide, ours: list[tuple[bytes, bytes]], tmp_path: Path) -> None:
    image = open_image(str(slide.image))
    Image.fromarray(image.read_region(0, 0, *image.size_px)).save(tmp_path / "a.png")
    run_kernel(Decoded(tmp_path / "a.png"), slide.xy_px[:1], SIDES, max_px=224, quality=90, out=tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"".join(ours[0])


def test_the_loop_of_peers_writes_the_same_pictures_but_for_roundings_of_the_encoder(
    slide: BigSlide, ours: list[tuple[bytes, bytes]], tmp_path: Path
) -> None:
    spots = [(float(x), float(y)) for x, y in slide.xy_px]
    done, seconds = run_peer_loop(slide.image, spots, SIDES, max_px=224, quality=90, out=tmp_path / "a.h5")
    assert done == len(ours) and seconds > 0
    with h5py.File(tmp_path / "a.h5") as file:
        for k, name in enumerate(("spot", "niche")):
            for mine, theirs in zip(ours, file[name][:], strict=True):
                one, other = (np.asarray(Image.open(io.BytesIO(d))).astype(int) for d in (mine[k], theirs.tobytes()))
                assert one.shape == other.shape == (224, 224, 3)
                assert np.abs(one - other).mean() < 1.5
