"""Small folders as Space Ranger writes them, by 10x Genomics' documentation of its outputs; their truth comes back.

Matrices: https://www.10xgenomics.com/support/software/space-ranger/latest/advanced/hdf5-feature-barcode-matrix-format
Positions, scale factors, images: .../space-ranger/latest/analysis/outputs/spatial-outputs
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet
from scipy.io import mmwrite
from scipy.sparse import coo_array, csr_array

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
HIRES_PX, LOWRES_PX = 400, 120  # the longer sides; Space Ranger's are 2000 (4000, 6000) and 600

# (id, symbol, feature type, genome)
Feature = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Visium:
    """What `write_space_ranger` wrote: all positions of the array, and the counts of those under tissue."""

    folder: Path
    barcodes: list[str]  # of the matrix, in its order
    counts: np.ndarray  # (spots of the matrix, features)
    features: list[Feature]
    where: dict[str, tuple[int, int, int, float, float]]  # barcode -> in_tissue, row, column, x_px, y_px (full image)
    size_px: tuple[int, int]  # of the full image
    um_per_px: float  # of the full image
    image: Path | None


@dataclass(frozen=True, kw_only=True)
class VisiumHD:
    """What `write_visium_hd` wrote."""

    folder: Path
    genes: int
    tissue: np.ndarray  # (rows, columns) bool, of the bins of 2 um
    counts: csr_array  # (bins of 2 um under tissue in raster order, genes)
    size_px: tuple[int, int]
    um_per_px: float
    image: Path | None


def gene_features(n: int = 260, species: str = "human") -> list[Feature]:
    """Genes with Ensembl ids."""
    prefix, genome = {"human": ("ENSG", "GRCh38"), "mouse": ("ENSMUSG", "mm10")}[species]
    return [(f"{prefix}{i:011d}", f"GENE{i:03d}", "Gene Expression", genome) for i in range(1, n + 1)]


def write_space_ranger(
    folder: Path,
    *,
    version: int = 2,
    matrix: str = "h5",
    image: str | None = "full",
    prefix: str = "",
    spatial: str = "spatial",
    image_name: str = "tissue_image.tif",
    features: Sequence[Feature] | None = None,
    rows: int = 10,
    columns: int = 20,
    um_per_px: float = 2.0,
    turn: float = 0.01,
    seed: int = 0,
) -> Visium:
    """A Visium section: half the rectangle's positions (the hexagonal lattice), all but its border under tissue.

    Versions: 1 has positions without a header, in whole pixels; 2 with a header; 3 is a CytAssist slide; 4 has them in
    Parquet. `image`: "full" (with both reduced copies), "hires" (both copies), "lowres", or None. `turn` is the
    array's rotation on the image in radians.
    """
    rng = np.random.default_rng(seed)
    features = list(features or gene_features())
    (folder / spatial).mkdir(parents=True, exist_ok=True)
    where, size_px = _array(rows, columns, um_per_px, turn, rng, whole=version == 1)
    barcodes = sorted(barcode for barcode, place in where.items() if place[0])
    counts = rng.poisson(2.0, (len(barcodes), len(features)))
    write_positions(folder / spatial, where, version=version)
    factors = {
        "tissue_hires_scalef": HIRES_PX / max(size_px),
        "tissue_lowres_scalef": LOWRES_PX / max(size_px),
        "fiducial_diameter_fullres": 105 / um_per_px,
        "spot_diameter_fullres": (70 if version < 3 else 65) / um_per_px,
    }
    if version == 3:
        factors["regist_target_img_scalef"] = factors["tissue_hires_scalef"]
        Image.new("RGB", (60, 60), "pink").save(folder / spatial / "cytassist_image.tiff")
    (folder / spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    written = write_images(folder / f"{prefix}{image_name}", folder / spatial, size_px, image, seed)
    attributes = {
        "chemistry_description": "Visium V4 Slide" if version == 3 else "Spatial 3' v1",
        "software_version": f"spaceranger-{version}.0.0",
    }
    name = folder / f"{prefix}filtered_feature_bc_matrix"
    if matrix == "h5":
        write_h5(name.with_name(name.name + ".h5"), barcodes, csr_array(counts), features, attributes)
    else:
        write_mtx(name, barcodes, counts, features)
    return Visium(
        folder=folder,
        barcodes=barcodes,
        counts=counts,
        features=features,
        where=where,
        size_px=size_px,
        um_per_px=um_per_px,
        image=written,
    )


def write_visium_hd(
    folder: Path,
    *,
    sizes: Sequence[int] = (2, 8, 16),
    bins: tuple[int, int] = (480, 480),
    image: str | None = "full",
    genes: int = 260,
    counts_per_bin: float = 2.0,
    um_per_px: float = 1.0,
    tilt: float = 1e-6,
    all_tissue: bool = False,
    seed: int = 0,
) -> VisiumHD:
    """A Visium HD slide of `bins` squares of 2 um (rows, columns), an ellipse of them under tissue.

    `tilt` is how far the camera's picture deviates from an affine one, per micrometre.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    row, col = np.indices(bins)
    tissue = ((row / bins[0] - 0.5) ** 2 + (col / bins[1] - 0.5) ** 2 < 0.25) | all_tissue
    under_row, under_col = np.nonzero(tissue)
    n = len(under_row)
    total = rng.poisson(counts_per_bin * n)
    counts = coo_array((np.ones(total), (rng.integers(0, n, total), rng.integers(0, genes, total))), shape=(n, genes))
    counts = counts.tocsr()
    counts.sum_duplicates()
    size_px = (round((bins[1] * 2 + 200) / um_per_px), round((bins[0] * 2 + 200) / um_per_px))
    factors = {
        "tissue_hires_scalef": HIRES_PX / max(size_px),
        "tissue_lowres_scalef": LOWRES_PX / max(size_px),
        "microns_per_pixel": um_per_px,
        "fiducial_diameter_fullres": 330 / um_per_px,
    }
    for size in sizes:
        k = size // 2
        square = folder / "binned_outputs" / f"square_{size:03d}um"
        (square / "spatial").mkdir(parents=True, exist_ok=True)
        shape = (-(-bins[0] // k), -(-bins[1] // k))
        held = np.zeros(shape, dtype=bool)
        held[under_row // k, under_col // k] = True
        _write_bin_positions(square / "spatial", held, size, um_per_px, tilt)
        said = factors | {"bin_size_um": float(size), "spot_diameter_fullres": size / um_per_px}
        (square / "spatial/scalefactors_json.json").write_text(json.dumps(said))
        place = np.full(shape, -1)
        place[held] = np.arange(held.sum())
        belongs = csr_array((np.ones(n), (place[under_row // k, under_col // k], np.arange(n))))
        barcodes = [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in np.argwhere(held).tolist()]
        write_h5(
            square / "filtered_feature_bc_matrix.h5",
            barcodes,
            csr_array(belongs @ counts),
            gene_features(genes),
            {"chemistry_description": "Visium HD v1", "software_version": "spaceranger-3.1.1"},
        )
    (folder / "spatial").mkdir(exist_ok=True)
    written = write_images(folder / "tissue_image.tif", folder / "spatial", size_px, image, seed)
    return VisiumHD(
        folder=folder, genes=genes, tissue=tissue, counts=counts, size_px=size_px, um_per_px=um_per_px, image=written
    )


def hd_pixels(row: np.ndarray, col: np.ndarray, size: int, um_per_px: float, tilt: float) -> np.ndarray:
    """(N, 2) x and y of bins' centres on the full image: turned by 2 degrees, seen by a camera that is not upright."""
    x, y = (col + 0.5) * size, (row + 0.5) * size
    turned = np.stack([x * np.cos(0.035) - y * np.sin(0.035), x * np.sin(0.035) + y * np.cos(0.035)], axis=1)
    return (turned / (1 + tilt * x)[:, None] + 60) / um_per_px


def write_h5(
    path: Path, barcodes: Sequence[str], counts: Any, features: Sequence[Feature], attributes: dict[str, Any]
) -> None:
    """An HDF5 matrix: compressed by barcode, strings of fixed length, integers of the documented kinds."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"filetype": "matrix", "version": 2, **attributes})
        group = file.create_group("matrix")
        packed = {"compression": "gzip", "compression_opts": 1}
        group.create_dataset("barcodes", data=np.array(barcodes, dtype="S"), **packed)
        group.create_dataset("data", data=counts.data.astype(np.int32), **packed)
        group.create_dataset("indices", data=counts.indices.astype(np.int64), **packed)
        group.create_dataset("indptr", data=counts.indptr.astype(np.int64), **packed)
        group.create_dataset("shape", data=np.array(counts.shape[::-1], dtype=np.int32))
        said = group.create_group("features")
        for name, values in zip(("id", "name", "feature_type", "genome"), zip(*features, strict=True), strict=True):
            said.create_dataset(name, data=np.array(values, dtype="S"))
        said.create_dataset("_all_tag_keys", data=np.array([b"genome"]))


def write_mtx(
    folder: Path,
    barcodes: Sequence[str],
    counts: np.ndarray,
    features: Sequence[Feature],
    *,
    packed: bool = True,
    genes_tsv: bool = False,
) -> None:
    """A Matrix Market folder; `genes_tsv` as Cell Ranger 2 wrote it, without feature types."""
    folder.mkdir(parents=True, exist_ok=True)
    mmwrite(folder / "matrix.mtx", coo_array(counts.T), field="integer")
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    rows = ["\t".join(feature[: 2 if genes_tsv else 3]) for feature in features]
    (folder / ("genes.tsv" if genes_tsv else "features.tsv")).write_text("\n".join(rows) + "\n")
    for file in list(folder.iterdir()) if packed else []:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes(), mtime=0))
        file.unlink()


def write_positions(spatial: Path, where: dict[str, tuple[int, int, int, float, float]], *, version: int) -> None:
    """The positions' file of a version; pixels come as row, then column."""
    rows = [(barcode, flag, row, col, y, x) for barcode, (flag, row, col, x, y) in where.items()]
    if version >= 4:
        columns = list(zip(*rows, strict=True))
        parquet.write_table(
            pa.table(dict(zip(POSITION_COLUMNS, columns, strict=True))), spatial / "tissue_positions.parquet"
        )
        return
    lines = [",".join(map(str, row)) for row in rows]
    header = [] if version == 1 else [",".join(POSITION_COLUMNS)]
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    (spatial / name).write_text("\n".join([*header, *lines]) + "\n")


def write_images(full: Path, spatial: Path, size_px: tuple[int, int], image: str | None, seed: int) -> Path | None:
    """The slide image and its reduced copies, of a picture that is nowhere plain."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size_px[1] // 16 + 1, size_px[0] // 16 + 1, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize(size_px, Image.Resampling.BICUBIC)
    copies = {"full": ("hires", "lowres"), "hires": ("hires", "lowres"), "lowres": ("lowres",), None: ()}[image]
    for name in copies:
        scale = {"hires": HIRES_PX, "lowres": LOWRES_PX}[name] / max(size_px)
        reduced = (round(size_px[0] * scale), round(size_px[1] * scale))
        picture.resize(reduced).save(spatial / f"tissue_{name}_image.png")
    if image != "full":
        return None
    picture.save(full)
    return full


def _array(
    rows: int, columns: int, um_per_px: float, turn: float, rng: np.random.Generator, *, whole: bool
) -> tuple[dict[str, tuple[int, int, int, float, float]], tuple[int, int]]:
    """Every position of the array on an image with room for the frame, and the image's size."""
    width, height = columns * 50.0, rows * 86.6025
    size_px = (round((width + 400) / um_per_px), round((height + 400) / um_per_px))
    names = ["".join(letters) + "-1" for letters in rng.choice(list("ACGT"), (rows * columns, 16)).tolist()]
    where = {}
    for row in range(rows):
        for col in range(row % 2, columns, 2):
            x, y = col * 50.0 - width / 2, row * 86.6025 - height / 2
            x_px = (x * np.cos(turn) - y * np.sin(turn)) / um_per_px + size_px[0] / 2
            y_px = (x * np.sin(turn) + y * np.cos(turn)) / um_per_px + size_px[1] / 2
            inside = 0 < row < rows - 1 and 1 < col < columns - 2
            place = (round(x_px), round(y_px)) if whole else (float(x_px), float(y_px))
            where[names.pop()] = (int(inside), row, col, *place)
    return where, size_px


def _write_bin_positions(spatial: Path, held: np.ndarray, size: int, um_per_px: float, tilt: float) -> None:
    row, col = (axis.ravel() for axis in np.indices(held.shape))
    xy = hd_pixels(row, col, size, um_per_px, tilt)
    names = [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row.tolist(), col.tolist(), strict=True)]
    columns = (names, held.ravel().astype(np.int64), row, col, xy[:, 1], xy[:, 0])
    table = pa.table(dict(zip(POSITION_COLUMNS, columns, strict=True)))
    parquet.write_table(table, spatial / "tissue_positions.parquet", row_group_size=50_000)
