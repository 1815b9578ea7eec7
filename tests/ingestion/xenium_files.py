"""Xenium bundles, written to the publisher's specification.

The bundle follows "Understanding Xenium Outputs" (10x Genomics, Xenium Onboard Analysis 1 to 3). Its truth is simple:
each cell is a dark disc in the morphology's frame, the H&E image shows the same discs through the alignment, and the
counts of a cell are in the table that comes back.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import mmwrite
from scipy.sparse import csc_matrix

PIXEL_UM = 0.2125
CONTROLS = {
    "Negative Control Probe": ["NegControlProbe_00042"],
    "Negative Control Codeword": ["NegControlCodeword_0500", "NegControlCodeword_0501"],
    "Unassigned Codeword": ["UnassignedCodeword_0001"],
}
# H&E pixels to morphology pixels: a quarter turn with a mirror, 1.29 times as large, as in published bundles.
TURNED = np.array([[0.0098, 1.2896, -20.0], [1.2896, -0.0098, 15.0], [0.0, 0.0, 1.0]])


@dataclass(frozen=True)
class Bundle:
    """What was written."""

    folder: Path
    cell_ids: list[str]
    xy_um: np.ndarray  # (N, 2)
    counts: np.ndarray  # (N, G) of the genes alone
    genes: list[str]


def write_xenium(
    folder: Path,
    *,
    seed: int = 0,
    cells: int = 300,
    genes: int = 60,
    extent_um: float = 240.0,
    matrix: str = "h5",  # or "mtx"
    table: str = "parquet",  # or "csv"
    alignment: np.ndarray | None = TURNED,
    image: str | None = "S_he_image.ome.tif",
    pixel_um: float = PIXEL_UM,
    section: dict[str, Any] | None = None,
) -> Bundle:
    """A bundle of random cells on a square of `extent_um`. The matrix has the cells in another order than the table,
    and controls among the genes."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    ids = [f"{''.join(rng.choice(list('abcdefghijklmnop'), 8))}-1" for _ in range(cells)]
    xy_um = rng.uniform(5, extent_um - 5, (cells, 2))
    names = [f"GENE{g:03d}" for g in range(genes)]
    counts = rng.poisson(1.5, (cells, genes))
    controls = [(kind, name) for kind, several in CONTROLS.items() for name in several]
    features = [(f"ENSG{g:011d}", name, "Gene Expression") for g, name in enumerate(names)]
    features = [*features[:7], *((name, name, kind) for kind, name in controls), *features[7:]]
    everything = np.concatenate([counts[:, :7], np.full((cells, len(controls)), 9), counts[:, 7:]], axis=1)
    order = rng.permutation(cells)
    stored = csc_matrix(everything[order].T)
    write = _write_h5 if matrix == "h5" else _write_mtx
    write(folder, stored, [ids[i] for i in order], features)
    _write_cells(folder, table, ids, xy_um, counts)
    (folder / "experiment.xenium").write_text(json.dumps(_experiment(pixel_um, cells)))
    (folder / "gene_panel.json").write_text("{}")
    side = int(extent_um / pixel_um)
    (folder / "morphology_focus").mkdir()
    for name in ("morphology.ome.tif", "morphology_focus/morphology_focus_0000.ome.tif"):
        Image.fromarray(np.zeros((side, side), np.uint16)).save(folder / name, format="TIFF")
    if image is not None:
        seen = histology(xy_um / pixel_um, np.eye(3) if alignment is None else alignment, side)
        Image.fromarray(seen).save(folder / image, format="TIFF")
        if alignment is not None:
            stem = image.removesuffix(".ome.tif").removesuffix(".tif")
            rows = "\n".join(",".join(f"{v:.12g}" for v in row) for row in alignment)
            (folder / f"{stem}alignment.csv").write_text(rows + "\n")
    if section is not None:
        (folder / "section.json").write_text(json.dumps(section))
    return Bundle(folder, ids, xy_um, counts, names)


def histology(cells_px: np.ndarray, to_morphology: np.ndarray, side: int, radius: float = 6.0) -> np.ndarray:
    """Pink tissue with a dark disc on each cell: the colour of pixel p is that of the morphology's frame at M p."""
    corners = np.linalg.inv(to_morphology) @ np.array([[0, side, 0, side], [0, 0, side, side], [1, 1, 1, 1]])
    width, height = (int(np.ceil(corners[axis].max())) + 1 for axis in (0, 1))
    y, x = np.mgrid[0:height, 0:width]
    at = to_morphology @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    column, row = (np.rint(at[axis]).astype(int) for axis in (0, 1))
    frame = np.full((side, side, 3), (230, 170, 200), np.uint8)
    rows, columns = np.mgrid[0:side, 0:side]
    for cx, cy in cells_px:
        y0, y1, x0, x1 = (int(v) for v in (cy - radius, cy + radius + 1, cx - radius, cx + radius + 1))
        box = np.s_[max(y0, 0) : y1, max(x0, 0) : x1]
        frame[box][np.hypot(rows[box] - cy, columns[box] - cx) <= radius] = (60, 20, 110)
    inside = (column >= 0) & (column < side) & (row >= 0) & (row < side)
    pixels = np.full((x.size, 3), 255, np.uint8)
    pixels[inside] = frame[row[inside], column[inside]]
    return pixels.reshape(height, width, 3)


def _experiment(pixel_um: float, cells: int) -> dict[str, Any]:
    return {
        "major_version": 5,
        "minor_version": 0,
        "run_name": "run",
        "region_name": "region",
        "panel_organism": "Human",
        "panel_tissue_type": "Breast",
        "panel_name": "Human Breast",
        "num_cells": cells,
        "pixel_size": pixel_um,
        "instrument_sw_version": "2.0.1.0",
        "analysis_sw_version": "xenium-2.0.0.10",
        "images": {"morphology_filepath": "morphology.ome.tif"},
    }


def _write_h5(folder: Path, stored: Any, ids: list[str], features: list[tuple[str, str, str]]) -> None:
    with h5py.File(folder / "cell_feature_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(ids, dtype="S")
        group["data"] = stored.data.astype(np.int32)
        group["indices"] = stored.indices.astype(np.int64)
        group["indptr"] = stored.indptr.astype(np.int64)
        group["shape"] = np.array(stored.shape, dtype=np.int32)
        for key, column in (("id", 0), ("name", 1), ("feature_type", 2)):
            group[f"features/{key}"] = np.array([f[column] for f in features], dtype="S")
        group["features/genome"] = np.array(["Unknown"] * len(features), dtype="S")


def _write_mtx(folder: Path, stored: Any, ids: list[str], features: list[tuple[str, str, str]]) -> None:
    inside = folder / "cell_feature_matrix"
    inside.mkdir()
    mmwrite(inside / "matrix.mtx", stored, field="integer")
    packed = {
        "matrix.mtx": (inside / "matrix.mtx").read_bytes(),
        "features.tsv": "".join("\t".join(f) + "\n" for f in features).encode(),
        "barcodes.tsv": "".join(f"{name}\n" for name in ids).encode(),
    }
    for name, data in packed.items():
        (inside / f"{name}.gz").write_bytes(gzip.compress(data, mtime=0))
    (inside / "matrix.mtx").unlink()


def _write_cells(folder: Path, table: str, ids: list[str], xy_um: np.ndarray, counts: np.ndarray) -> None:
    frame = pd.DataFrame(
        {
            "cell_id": ids,
            "x_centroid": xy_um[:, 0],
            "y_centroid": xy_um[:, 1],
            "transcript_counts": counts.sum(1),
            "control_probe_counts": 0,
            "cell_area": 80.0,
            "nucleus_area": 30.0,
        }
    )
    if table == "parquet":
        frame.to_parquet(folder / "cells.parquet", index=False)
    else:
        frame.to_csv(folder / "cells.csv.gz", index=False)
