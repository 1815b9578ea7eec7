"""Writes `spatialdata-2.tar.xz` and `spatialdata-3.tar.xz`: one small store in both zarr formats, by spatialdata.

The positions that have to come out are computed by spatialdata, too, and lie in the store as `expected.json`. Run in an
environment of its own with spatialdata 0.7.3:

    python tests/ingestion/data/make_spatialdata.py
"""

import json
import shutil
import tempfile
from pathlib import Path

import anndata
import geopandas
import numpy as np
import pandas as pd
import spatialdata
from scipy.sparse import csr_matrix
from shapely import Point
from spatialdata._io.format import SpatialDataContainerFormatV01, SpatialDataContainerFormatV02
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import (
    Affine,
    Identity,
    Scale,
    Sequence,
    Translation,
    get_transformation_between_coordinate_systems,
)

PIXEL_UM = 0.2125
XY = ("x", "y")
HERE = Path(__file__).parent
rng = np.random.default_rng(0)


def picture(width: int, height: int) -> np.ndarray:
    """(c, y, x): smooth, so that it packs small."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([200 + x * 40 // width, 120 + y * 80 // height, 180 + (x // 16 + y // 16) % 2 * 20]).astype("u1")


def table(names: list[str], instances: list, region: str, genes: int, **obs: object) -> anndata.AnnData:
    """Counts whose rows are in another order than the shapes."""
    order = rng.permutation(len(names))
    columns = {"region": pd.Categorical([region] * len(names)), "instance": instances, **obs}
    frame = pd.DataFrame(columns, index=names).iloc[order]
    var = pd.DataFrame(
        {"gene_ids": [f"ENSG{g:011d}" for g in range(genes)], "feature_types": ["Gene Expression"] * genes},
        index=[f"GENE{g}" for g in range(genes)],
    )
    counts = csr_matrix(rng.poisson(2, (len(names), genes)).astype("f4"))
    made = anndata.AnnData(counts, obs=frame, var=var)
    return TableModel.parse(made, region=region, region_key="region", instance_key="instance")


def circles(xy: np.ndarray, names: list, radius: float, transformations: dict) -> geopandas.GeoDataFrame:
    frame = geopandas.GeoDataFrame({"geometry": [Point(*p) for p in xy], "radius": radius}, index=names)
    return ShapesModel.parse(frame, transformations=transformations)


def store() -> tuple[spatialdata.SpatialData, dict[str, dict[str, list[float]]]]:
    """Cells of a Xenium section (micrometres) with a turned H&E; and a Visium capture area with two of its images."""
    cells_xy = rng.uniform(5, 35, (40, 2))
    cells = [f"cell{i}" for i in range(40)]
    to_px = Scale([1 / PIXEL_UM] * 2, XY)
    turned = Affine([[0.0, 1.3, -6.0], [-1.3, 0.0, 190.0], [0, 0, 1]], input_axes=XY, output_axes=XY)
    rows, columns = np.divmod(np.arange(56), 7)
    columns = 2 * columns + rows % 2
    spots_xy = np.stack([20 + columns * 10.0, 20 + rows * 10 * np.sqrt(3)], 1)
    numbers = list(range(100, 156))  # of the spots, as spatialdata-io numbers them; barcodes name the rows
    spots = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in rows]
    boundaries = geopandas.GeoDataFrame({"geometry": [Point(*p).buffer(2) for p in cells_xy]}, index=cells)
    he = Image2DModel.parse(
        picture(144, 152),
        c_coords=["r", "g", "b"],
        scale_factors=[2],
        chunks=(3, 64, 64),
        transformations={"global": turned},
    )
    dapi = rng.integers(0, 2, (1, 40, 40), dtype=np.uint16)
    moved = Sequence([Scale([4.0, 4.0], XY), Translation([1.0, 2.0], XY)])
    data = spatialdata.SpatialData(
        images={
            "he_image": he,
            "morphology_focus": Image2DModel.parse(dapi, c_coords=["DAPI"], transformations={"global": Identity()}),
            "visium_full_image": Image2DModel.parse(
                picture(180, 160), chunks=(3, 64, 64), transformations={"visium": Identity()}
            ),
            "visium_hires_image": Image2DModel.parse(
                picture(45, 40), transformations={"visium": moved, "visium_downscaled_hires": Identity()}
            ),
        },
        labels={"cell_labels": Labels2DModel.parse(np.zeros((16, 16), "i4"), transformations={"global": Identity()})},
        shapes={
            "cell_circles": circles(cells_xy, cells, 3.0, {"global": to_px, "microns": Identity()}),
            "cell_boundaries": ShapesModel.parse(boundaries, transformations={"global": to_px}),
            "visium": circles(spots_xy, numbers, 3.0, {"visium": Identity()}),
        },
        tables={
            "cells": table(cells, cells, "cell_circles", 30),
            "spots": table(
                spots, numbers, "visium", 30, array_row=rows, array_col=columns, in_tissue=(rows > 0).astype(int)
            ),
        },
    )
    expected = {}
    for shapes, image, names in (("cell_circles", "he_image", cells), ("visium", "visium_full_image", spots)):
        way = get_transformation_between_coordinate_systems(data, data.shapes[shapes], data.images[image])
        centres = data.shapes[shapes].geometry
        points = np.stack([centres.x, centres.y, np.ones(len(centres))])
        places = (way.to_affine_matrix(XY, XY) @ points)[:2].T
        expected[shapes] = dict(zip(names, places.tolist(), strict=True))
    return data, expected


def main() -> None:
    data, expected = store()
    for number, kind in ((2, SpatialDataContainerFormatV01()), (3, SpatialDataContainerFormatV02())):
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "store.zarr"
            data.write(folder, sdata_formats=[kind])
            (Path(work) / "expected.json").write_text(json.dumps(expected))
            shutil.make_archive(str(HERE / f"spatialdata-{number}"), "xztar", work)


if __name__ == "__main__":
    main()
