"""The reader of legacy Spatial Transcriptomics: scale, joins, and every way in which its files can be wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histolake.ingestion.readers import Listing, Source, digest, reader, readers
from histolake.ingestion.scale import ScaleSettings, settle
from histolake.ingestion.slide import Slide
from histolake.platform.errors import SourceError
from histolake.platform.storage import Location


def found(folder: Path) -> Source:
    (source,) = reader("legacy-st").find(Listing(Location.parse(folder)))
    return source


def read(folder: Path, **metadata: Any) -> Slide:
    return reader("legacy-st").read(found(folder), metadata)


def scale(slide: Slide) -> float:
    (evidence,) = slide.scales
    assert evidence.origin == "pitch"
    return evidence.um_per_px


def refusal(folder: Path, **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(folder, **metadata)
    return caught.value


def write_framed(folder: Path, *, pitch_px: tuple[float, float], image: tuple[int, int]) -> Path:
    """A section in the frame of the real ones: pixel = pitch (new - 1), 32 by 34 pitches."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    lines = ["\tA\tB"]
    for x in range(4, 30, 2):
        for y in range(4, 32, 3):
            new_x, new_y = x + rng.normal(0, 0.15), y + rng.normal(0, 0.15)
            pixel = (pitch_px[0] * (new_x - 1), pitch_px[1] * (new_y - 1))
            rows.append(f"{x}\t{y}\t{new_x:.3f}\t{new_y:.3f}\t{pixel[0]:.2f}\t{pixel[1]:.2f}\t1")
            lines.append(f"{x}x{y}\t1\t2")
    (folder / "spots.tsv").write_text("\n".join(rows) + "\n")
    (folder / "counts.tsv").write_text("\n".join(lines) + "\n")
    Image.new("RGB", image, "white").save(folder / "image.png")
    return folder


def test_counts_positions_and_order(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder = make_section(tmp_path / "s")
    slide = read(folder)
    table = [line.split("\t") for line in gzip.decompress((folder / "counts.tsv.gz").read_bytes()).decode().split("\n")]
    spots = [line.split("\t") for line in (folder / "spots.tsv").read_text().split("\n")[1:-1]]
    where = {f"{row[0]}x{row[1]}": row for row in spots}
    dense = slide.counts.toarray()
    assert slide.symbols == table[0][1:]
    for row in table[1:-1]:
        i = slide.barcodes.tolist().index(row[0])
        np.testing.assert_array_equal(dense[i], np.array(row[1:], dtype=float))
        np.testing.assert_allclose(slide.xy_px[i], np.array(where[row[0]][4:6], dtype=float))
        np.testing.assert_allclose((slide.array_col[i], slide.array_row[i]), np.array(where[row[0]][2:4], dtype=float))
    raster = sorted(zip(slide.array_row, slide.array_col, slide.barcodes, strict=True))
    assert [barcode for _, _, barcode in raster] == slide.barcodes.tolist()


def test_the_scale_is_fitted_over_all_spots(tmp_path: Path) -> None:
    slide = read(write_framed(tmp_path / "s", pitch_px=(28.981, 29.15), image=(927, 991)))
    assert scale(slide) == pytest.approx(200 / 29.0655, rel=1e-4)
    assert slide.flags == ()


def test_a_reduced_image_reduces_the_positions(tmp_path: Path) -> None:
    full = read(write_framed(tmp_path / "full", pitch_px=(50.0, 50.2), image=(1600, 1707)))
    small = read(write_framed(tmp_path / "small", pitch_px=(50.0, 50.2), image=(400, 427)))
    assert small.flags == ("image_reduced",)
    np.testing.assert_allclose(small.xy_px, full.xy_px / 4, rtol=1e-3)
    assert scale(small) == pytest.approx(4 * scale(full), rel=1e-3)


def test_a_cut_image_is_not_taken_for_a_reduced_one(tmp_path: Path) -> None:
    slide = read(write_framed(tmp_path / "cut", pitch_px=(50.0, 50.0), image=(700, 900)))
    assert slide.flags == ()
    assert slide.xy_px.max() > 900  # the quality rules see that it leaves the image


def test_a_stated_scale_decides(tmp_path: Path) -> None:
    folder = write_framed(tmp_path / "s", pitch_px=(50.0, 50.0), image=(400, 425))
    assert read(folder, um_per_px="16").flags == ("image_reduced",)
    assert read(folder, um_per_px="4.02").flags == ()
    settled = settle(read(folder, um_per_px="4.02"), None, ScaleSettings())
    assert (settled.metadata.um_per_px, settled.metadata.scale_from) == (4.02, "stated")
    with pytest.raises(SourceError, match="which to trust") as caught:
        settle(read(folder, um_per_px="0.5"), None, ScaleSettings())
    assert (caught.value.rule, caught.value.limit) == ("scale_agrees", 0.05)


def test_metadata_beside_and_above(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder = make_section(tmp_path / "s", patient="P1", study="S", simulated=True, organ="breast", other="ignored")
    slide = read(folder, patient="P2")
    assert (slide.metadata.patient, slide.metadata.study, slide.metadata.simulated) == ("P2", "S", True)
    assert (slide.metadata.technology, slide.metadata.spot_diameter_um) == ("Spatial Transcriptomics", 100.0)


def test_the_digest_is_of_contents_and_metadata(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    one, other = found(make_section(tmp_path / "a")), found(make_section(tmp_path / "b"))
    assert digest(one, {}) == digest(other, {})
    assert digest(one, {"patient": "P"}) != digest(one, {})
    (tmp_path / "b/image.png").write_bytes((tmp_path / "b/image.png").read_bytes() + b"\0")
    assert digest(one, {}) != digest(other, {})


def test_spots_without_a_position_or_not_selected_are_told(
    tmp_path: Path, make_section: Callable[..., Path], rewrite: Callable[..., None], set_cell: Callable[..., None]
) -> None:
    folder = make_section(tmp_path / "s")
    set_cell(folder / "spots.tsv", 5, 6, "0")
    rewrite(folder / "spots.tsv", lambda lines: lines[:-2])
    slide = read(folder)
    assert sorted(spot.rule for spot in slide.refused) == ["spot_position", "spot_position", "spot_selected"]
    assert len(slide) == 69
    assert slide.n_read == 72


def test_a_table_written_by_r_has_no_corner(tmp_path: Path) -> None:
    folder = write_framed(tmp_path / "s", pitch_px=(50.0, 50.0), image=(1600, 1700))
    text = (folder / "counts.tsv").read_text()
    (folder / "counts.tsv").write_text(text.removeprefix("\t"))
    assert read(folder).symbols == ["A", "B"]


CELLS = [
    ("-1", "counts_valid"),
    ("nan", "counts_valid"),
    ("inf", "counts_valid"),
    ("many", "counts_valid"),
    ("", "counts_valid"),
]


@pytest.mark.parametrize(("value", "rule"), CELLS)
def test_a_count_that_is_none(
    tmp_path: Path, make_section: Callable[..., Path], set_cell: Callable[..., None], value: str, rule: str
) -> None:
    folder = make_section(tmp_path / "s")
    set_cell(folder / "counts.tsv.gz", 7, 11, value)
    error = refusal(folder)
    assert (error.rule, error.file) == (rule, str(folder / "counts.tsv.gz"))
    assert "line 8" in str(error)


def test_files_that_end_too_early(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    packed = make_section(tmp_path / "packed")
    data = (packed / "counts.tsv.gz").read_bytes()
    (packed / "counts.tsv.gz").write_bytes(data[: len(data) // 2])
    assert refusal(packed).rule == "file_complete"
    plain = make_section(tmp_path / "plain")
    text = gzip.decompress(data)
    (plain / "counts.tsv").write_bytes(text[: len(text) // 2])
    (plain / "counts.tsv.gz").unlink()
    error = refusal(plain)
    assert error.rule == "file_complete"
    assert error.limit == 260
    spots = make_section(tmp_path / "spots")
    (spots / "spots.tsv").write_text((spots / "spots.tsv").read_text()[:-12])
    assert refusal(spots).rule == "file_complete"
    noise = make_section(tmp_path / "noise")
    (noise / "counts.tsv.gz").write_bytes(b"not packed at all")
    assert refusal(noise).rule == "file_complete"


def test_nothing_in_it(tmp_path: Path, make_section: Callable[..., Path], rewrite: Callable[..., None]) -> None:
    for name in ("counts.tsv.gz", "spots.tsv"):
        folder = make_section(tmp_path / name)
        rewrite(folder / name, lambda lines: lines[:1])
        error = refusal(folder)
        assert (error.rule, error.figure, error.file) == ("empty_section", 0.0, str(folder / name))
    folder = make_section(tmp_path / "zero bytes")
    (folder / "counts.tsv.gz").write_bytes(b"")
    assert refusal(folder).rule == "empty_section"


def test_a_spot_twice(tmp_path: Path, make_section: Callable[..., Path], rewrite: Callable[..., None]) -> None:
    for name in ("counts.tsv.gz", "spots.tsv"):
        folder = make_section(tmp_path / name)
        rewrite(folder / name, lambda lines: [*lines, lines[4]])
        error = refusal(folder)
        assert (error.rule, error.figure, error.file) == ("duplicate_barcodes", 1.0, str(folder / name))


def test_positions_that_are_no_numbers(
    tmp_path: Path, make_section: Callable[..., Path], set_cell: Callable[..., None]
) -> None:
    folder = make_section(tmp_path / "s")
    set_cell(folder / "spots.tsv", 3, 4, "left")
    error = refusal(folder)
    assert error.rule == "positions_valid"
    assert "line 4" in str(error)
    assert "'left'" in str(error)
    folder = make_section(tmp_path / "t")
    set_cell(folder / "spots.tsv", 0, 4, "column")
    assert refusal(folder).rule == "positions_valid"


@pytest.mark.parametrize("name", ["counts.tsv.gz", "spots.tsv"])
def test_a_missing_file(tmp_path: Path, make_section: Callable[..., Path], name: str) -> None:
    folder = make_section(tmp_path / "s")
    (folder / name).unlink()
    error = refusal(folder)
    assert error.rule == "missing_file"
    assert Path(error.file or "").stem.startswith(name.split(".")[0])


def test_a_section_json_that_cannot_be_read(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder = make_section(tmp_path / "s")
    for text in ("{", "[1]", json.dumps({"um_per_px": "about one"})):
        (folder / "section.json").write_text(text)
        error = refusal(folder)
        assert (error.rule, error.file) == ("metadata_valid", str(folder / "section.json"))


def test_other_folders_are_not_ours(tmp_path: Path) -> None:
    for name in ("matrix.mtx", "image.jpg"):
        (tmp_path / name).touch()
    assert not any(r.find(Listing(Location.parse(tmp_path))) for r in readers().values())


def test_a_section_without_an_image_comes_in_without(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder = make_section(tmp_path / "s")
    (folder / "image.png").unlink()
    slide = read(folder)
    assert (slide.image, slide.image_size_px, len(slide)) == (None, None, 72)
    assert scale(slide) == pytest.approx(5.0, rel=0.01)


def test_an_image_that_the_curator_names_wins(tmp_path: Path, make_section: Callable[..., Path]) -> None:
    folder, other = make_section(tmp_path / "s"), make_section(tmp_path / "t", seed=1)
    named = str(other / "image.png")
    assert read(folder, image=named).image == named
    source = found(folder)
    assert digest(source, {"image": named}) != digest(source, {})
