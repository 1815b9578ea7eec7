"""The SpatialData reader, on stores that spatialdata wrote and on stores written to its format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from scipy.sparse import csr_matrix
from tests.ingestion.spatialdata_files import (
    tissue,
    unpack_spatialdata,
    write_image,
    write_shapes,
    write_spatialdata,
    write_table,
)

from histolake.ingestion.discover import find_sections
from histolake.ingestion.images import open_image
from histolake.ingestion.pipeline import ingest_settings
from histolake.ingestion.readers import Listing, Source, digest, reader
from histolake.ingestion.readers.spatial_store import Store
from histolake.ingestion.slide import Slide
from histolake.ingestion.worker import look
from histolake.platform.errors import SourceError
from histolake.platform.settings import load_settings
from histolake.platform.storage import Location


def found(path: Path) -> dict[str | None, Source]:
    return {source.section: source for source in reader("spatialdata").find(Listing(Location.parse(path)))}


def read(path: Path, section: str | None = None, **metadata: Any) -> Slide:
    return reader("spatialdata").read(found(path)[section], metadata)


def refusal(path: Path, section: str | None = None, **metadata: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        read(path, section, **metadata)
    return caught.value


def say(path: Path, **values: Any) -> None:
    (path / "section.json").write_text(json.dumps(values))


@pytest.fixture(params=[2, 3], ids=["zarr 2", "zarr 3"])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, dict[str, list[float]]]]:
    return unpack_spatialdata(tmp_path / "real", request.param)


def test_positions_are_those_that_spatialdata_computes(real: tuple[Path, dict[str, dict[str, list[float]]]]) -> None:
    path, expected = real
    for section, image in (("cell_circles", "he_image"), ("visium", "visium_full_image")):
        slide = read(path, section)
        places = {spot.barcode: (spot.x_px, spot.y_px) for spot in slide.refused}
        places |= {name: tuple(xy) for name, xy in zip(slide.barcodes.tolist(), slide.xy_px, strict=True)}
        assert places.keys() == expected[section].keys()
        for name, xy in expected[section].items():
            np.testing.assert_allclose(places[name], xy, atol=1e-6)
        assert slide.image == str(path / "images" / image)


def test_counts_and_genes_of_a_region(real: tuple[Path, dict[str, dict[str, list[float]]]]) -> None:
    path, _ = real
    slide = read(path, "visium")
    table = zarr.open_group(path, mode="r")["tables/spots"]
    parts = (table[f"X/{key}"][:] for key in ("data", "indices", "indptr"))
    stored = csr_matrix(tuple(parts), shape=tuple(table["X"].attrs["shape"])).toarray()
    names = table["obs"][table["obs"].attrs["_index"]][:].tolist()
    rows = [names.index(name) for name in slide.barcodes.tolist()]
    np.testing.assert_array_equal(slide.counts.toarray(), stored[rows])
    assert slide.symbols == [f"GENE{g}" for g in range(30)]
    assert slide.ensembl_ids == [f"ENSG{g:011d}" for g in range(30)]
    known = slide.metadata
    assert (known.technology, known.spot_diameter_um, known.pitch_um) == ("Visium", 55.0, 100.0)
    assert known.expression_unit == "counts"
    assert {spot.rule for spot in slide.refused} == {"spot_selected"}
    assert slide.n_read == 56
    raster = list(zip(slide.array_row, slide.array_col, strict=True))
    assert raster == sorted(raster)


def test_the_scale_comes_from_microns_or_from_the_pitch(real: tuple[Path, dict[str, dict[str, list[float]]]]) -> None:
    path, _ = real
    (cells,) = read(path, "cell_circles").scales
    assert (cells.origin, cells.um_per_px) == ("source", pytest.approx(0.2125 * 1.3))
    (spots,) = read(path, "visium").scales
    assert (spots.origin, spots.um_per_px) == ("pitch", pytest.approx(5.0))  # neighbours are 20 px apart


def test_the_same_store_in_both_formats_is_one_section(tmp_path: Path) -> None:
    two, three = (read(unpack_spatialdata(tmp_path / str(n), n)[0], "visium") for n in (2, 3))
    np.testing.assert_array_equal(two.counts.toarray(), three.counts.toarray())
    np.testing.assert_array_equal(two.xy_px, three.xy_px)


def test_a_store_is_found_as_its_sections(real: tuple[Path, dict[str, dict[str, list[float]]]]) -> None:
    path, _ = real
    sections = {c.section: c for c in find_sections([str(path.parent)], "c") if c.problem is None}
    assert set(sections) == {"store.zarr/cell_circles", "store.zarr/visium"}
    sources = found(path)
    assert {Location.parse(uri).name for uri in sources["visium"].files.values()} == {
        "spots",
        "visium",
        "visium_full_image",
    }
    before = digest(sources["visium"], {})
    say(path, section="P7", study="S")
    named = {c.section for c in find_sections([str(path.parent)], "c") if c.problem is None}
    assert named == {"P7-cell_circles", "P7-visium"}
    assert read(path, "visium").metadata.study == "S"
    assert digest(found(path)["visium"], {}) != before


def test_the_image_is_cut_from_the_store(real: tuple[Path, dict[str, dict[str, list[float]]]]) -> None:
    path, _ = real
    image = open_image(str(read(path, "visium").image))
    pixels = zarr.open_group(path, mode="r")["images/visium_full_image/s0"][:].transpose(1, 2, 0)
    assert image.size_px == (180, 160)
    np.testing.assert_array_equal(image.read_region(50, 60, 70, 33), pixels[60:93, 50:120])
    image.close()


def test_one_table_one_section(tmp_path: Path) -> None:
    for number in (2, 3):
        path = write_spatialdata(tmp_path / f"{number}.zarr", zarr_format=number)
        slide = read(path)
        assert (len(slide), slide.image) == (120, str(path / "images/he"))
        assert [e.um_per_px for e in slide.scales] == [pytest.approx(100 / 40)]


def test_several_regions_of_one_table(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr")
    root = zarr.open_group(path, mode="a")
    rng = np.random.default_rng(1)
    xy = rng.uniform(20, 300, (30, 2))
    counts = csr_matrix(rng.poisson(2, (30, 12)).astype(np.float32))
    for name, rows in (("left", slice(0, 20)), ("right", slice(20, 30))):
        write_shapes(root, name, xy[rows], [f"c{i}" for i in range(30)][rows], {"global": [1, 1]})
    region_of = ["left"] * 20 + ["right"] * 10
    write_table(
        root, "cells", ["left", "right"], [f"n{i}" for i in range(30)], [f"c{i}" for i in range(30)], counts,
        region_of=region_of,
    )  # fmt: skip
    assert set(found(path)) == {"capture", "left", "right"}
    right = read(path, "right", um_per_px=0.5)
    assert right.barcodes.tolist() == [f"n{i}" for i in range(20, 30)]
    np.testing.assert_allclose(right.xy_px, xy[20:])  # centroids of squares
    np.testing.assert_array_equal(right.counts.toarray(), counts.toarray()[20:])
    assert (right.metadata.spot_diameter_um, right.metadata.pitch_um) == (20.0, 20.0)


def test_of_images_of_one_ground_the_finest_and_of_others_none(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr", image=False)
    root = zarr.open_group(path, mode="a")
    assert read(path).image is None
    write_image(root, "low", tissue((140, 104), 0), {"global": [4, 4]})
    low = read(path)
    assert low.image == str(path / "images/low")
    write_image(root, "full", tissue((560, 416), 0), {"global": [1, 1]})
    full = read(path)
    assert full.image == str(path / "images/full")
    np.testing.assert_allclose(full.xy_px, low.xy_px * 4)
    assert low.scales[0].um_per_px == pytest.approx(4 * full.scales[0].um_per_px)
    write_image(root, "dapi", tissue((560, 416), 0)[:1].astype(np.uint16), {"global": [1, 1]})
    assert read(path).image == str(path / "images/full")
    write_image(root, "other", tissue((300, 300), 0), {"global": [1, 1]})
    error = refusal(path)
    assert (error.rule, error.figure) == ("image_chosen", 3.0)
    assert "full, low, other" in str(error)
    assert "image" not in found(path)[None].files
    say(path, image="images/low")
    assert read(path).image == str(path / "images/low")
    np.testing.assert_allclose(read(path, image=str(path / "images/full")).xy_px, full.xy_px)
    say(path, image="images/none")
    assert refusal(path).rule == "missing_file"
    say(path, image="images/dapi")
    error = refusal(path)
    assert (error.rule, error.figure) == ("image_readable", 1.0)


def test_an_image_in_another_frame_is_not_used(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr", image=False)
    write_image(zarr.open_group(path, mode="a"), "far", tissue((300, 300), 0), {"elsewhere": [1, 1]})
    assert read(path).image is None
    say(path, image="images/far")
    error = refusal(path)
    assert error.rule == "image_alignment"
    assert "elsewhere" in str(error)


def test_an_image_outside_the_store(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr", image=False)
    slide = read(path, image=str(tmp_path / "he.svs"))
    assert slide.image == str(tmp_path / "he.svs")
    np.testing.assert_allclose(slide.xy_px, read(path).xy_px)


def test_a_mask_needs_shapes(tmp_path: Path) -> None:
    path, _ = unpack_spatialdata(tmp_path / "real", 3)
    file = path / "tables/cells/zarr.json"
    file.write_text(file.read_text().replace('"region": "cell_circles"', '"region": "cell_labels"'))
    obs = path / "tables/cells/obs/region/categories"
    shutil.rmtree(obs)
    zarr.create_array(path, name="tables/cells/obs/region/categories", data=np.array(["cell_labels"], dtype=object).astype(str), zarr_format=3)  # fmt: skip # noqa: E501
    categories = zarr.open_array(path, path="tables/cells/obs/region/categories", mode="a")
    categories.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    error = refusal(path, "cell_labels")
    assert error.rule == "region_known"
    assert "cell_boundaries, cell_circles" in str(error)
    say(path, region={"cell_labels": "cell_boundaries"})
    slide = read(path, "cell_labels")
    assert len(slide) == 40
    assert not slide.refused


def test_cells_pooled_to_pseudo_spots(tmp_path: Path) -> None:
    path, _ = unpack_spatialdata(tmp_path / "real", 3)
    cells = read(path, "cell_circles")
    say(path, spots="pooled", keep_all=True, pitch_um=12, spot_diameter_um=10)
    slide = read(path, "cell_circles")
    assert slide.flags == ("pseudo_spots",)
    np.testing.assert_array_equal(np.asarray(slide.counts.sum(axis=0)), np.asarray(cells.counts.sum(axis=0)))
    assert (slide.metadata.pitch_um, slide.metadata.spot_diameter_um) == (12.0, 10.0)
    um_per_px = slide.scales[0].um_per_px
    nearest = np.linalg.norm((cells.xy_px[:, None] - slide.xy_px[None]) * um_per_px, axis=2).min(axis=1)
    assert nearest.max() <= 12 / np.sqrt(3) + 1e-6
    say(path, spots="bins")
    assert refusal(path, "cell_circles").rule == "metadata_valid"


def test_pooling_needs_a_scale(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr", section={"spots": "pooled"})
    root = zarr.open_group(path, mode="a")
    xy = np.random.default_rng(0).uniform(0, 400, (40, 2))
    write_shapes(root, "cells", xy, [f"c{i}" for i in range(40)], {"global": [1, 1]}, radius=3)
    write_table(root, "t", ["cells"], [f"c{i}" for i in range(40)], [f"c{i}" for i in range(40)], csr_matrix((40, 5)))
    assert refusal(path, "cells").rule == "scale_known"
    assert read(path, "cells", um_per_px=0.5).metadata.pitch_um == 100.0


def test_rows_without_a_shape_are_told(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr")
    root = zarr.open_group(path, mode="a")
    shutil.rmtree(path / "shapes/capture")
    row, column = np.divmod(np.arange(117), 12)
    xy = np.stack([(2 * column + row % 2 + 2) * 20.0, (row + 1) * 20 * np.sqrt(3)], axis=1)
    write_shapes(root, "capture", xy, list(range(117)), {"global": [1.0, 1.0]}, radius=9)
    slide = read(path)
    assert [spot.rule for spot in slide.refused] == ["spot_position"] * 3
    assert len(slide) == 117


@pytest.mark.parametrize("number", [2, 3])
def test_what_is_missing_or_damaged(tmp_path: Path, number: int) -> None:
    path = write_spatialdata(tmp_path / "s.zarr", zarr_format=number)
    for place in ("tables/table/X/data", "tables/table/obs/_index", "shapes/capture/shapes.parquet"):
        copy = tmp_path / place.replace("/", "-")
        shutil.copytree(path, copy)
        whole = copy / place
        files = [whole] if whole.is_file() else [f for f in whole.rglob("*") if f.is_file() and "z" not in f.name[:2]]
        assert files
        for file in files:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        assert refusal(copy).rule == "file_complete", place
    copy = tmp_path / "no shapes"
    shutil.copytree(path, copy)
    (copy / "shapes/capture/shapes.parquet").unlink()
    assert refusal(copy).rule == "missing_file"
    shutil.rmtree(copy / "shapes/capture")
    assert refusal(copy).rule == "region_known"
    shutil.rmtree(copy / "tables/table")
    error = refusal(copy)
    assert error.rule == "missing_file"
    assert "images he" in str(error)


def test_a_store_that_names_no_format_and_one_that_is_none(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr", zarr_format=2)
    (path / ".zattrs").unlink()
    assert len(read(path)) == 120
    zarr.open_group(tmp_path / "plain.zarr", mode="w").create_array("x", data=np.ones(3))
    assert not reader("spatialdata").find(Listing(Location.parse(tmp_path / "plain.zarr")))
    assert not reader("spatialdata").find(Listing(Location.parse(tmp_path)))


def test_transformations_of_every_kind(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "s.zarr")
    file = path / "shapes/capture/zarr.json"
    values = json.loads(file.read_text())

    def side(axes: str, name: str) -> dict[str, Any]:
        return {"name": name, "axes": [{"name": axis} for axis in axes]}

    plane = {"input": side("xy", "xy"), "output": side("xy", "a")}
    steps = [
        {"type": "scale", "scale": [2, 3], **plane},
        {"type": "translation", "translation": [10, 20], **plane},
        {"type": "mapAxis", "mapAxis": {"x": "y", "y": "x"}, **plane},
    ]
    turned = {"input": side("yx", "yx"), "output": side("xy", "b")}
    values["attributes"]["coordinateTransformations"] = [
        {"type": "sequence", "transformations": steps, **plane},
        {"type": "affine", "affine": [[5, 6, 7], [8, 10, 11]], **turned},
        {"type": "displacements", "path": "field", **plane, "output": side("xy", "c")},
        {"type": "scale", "scale": [0, 0], **plane, "output": side("xy", "d")},
        {"type": "affine", "affine": "broken", **plane, "output": side("xy", "e")},
    ]
    file.write_text(json.dumps(values))
    store = Store.at(Listing(Location.parse(path)))
    assert store is not None
    maps = store.shapes["capture"].maps
    assert set(maps) == {"a", "b"}
    np.testing.assert_allclose(maps["a"](np.array([[1.0, 2.0]])), [[26.0, 12.0]])
    # Rows are x and y of the output, columns y and x of the input.
    np.testing.assert_allclose(maps["b"](np.array([[1.0, 2.0]])), [[5 * 2 + 6 + 7, 8 * 2 + 10 + 11]])


def test_the_pipeline_takes_it_in(tmp_path: Path) -> None:
    path = write_spatialdata(tmp_path / "in/s.zarr")
    (candidate,) = find_sections([str(path.parent)], "c")
    told = look(candidate, None, ingest_settings(load_settings()))
    assert (told.n_kept, told.refused) == (120, ())
    record = told.record
    assert (record["um_per_px"], record["scale_from"]) == (pytest.approx(2.5), "pitch")
    assert (record["image_width_px"], record["image_height_px"]) == (560, 417)
    assert "low_resolution" in record["flags"]
