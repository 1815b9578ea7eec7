"""AnnData files and the folders of HEST-1k and STimage-1K4M, small, in the layout of their publishers.

Each writer returns what it wrote, so that a test holds the truth that a reader has to find.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import csc_matrix, csr_matrix

GENES = [f"GENE{i:03d}" for i in range(258)] + ["ERBB2", "COL1A1"]
BASES = np.array(list("ACGT"))


@dataclass(frozen=True)
class Section:
    """A section as it was made: the truth of a test."""

    barcodes: list[str]
    array: np.ndarray  # (N, 2) column and row
    xy_px: np.ndarray  # (N, 2) full-resolution pixels
    counts: np.ndarray  # (N, G)
    genes: list[str]
    size_px: tuple[int, int]  # of the full image


def make_section(
    kind: str = "visium", *, um_per_px: float = 5.0, columns: int = 10, rows: int = 9, seed: int = 0
) -> Section:
    """Spots on an array: "visium" (hexagonal, 100 um), "st" (square, 200 um), "st-staggered" (150 um) or "square"
    (100 um, names that tell nothing)."""
    rng = np.random.default_rng(seed)
    step_um = {"visium": (50.0, 86.6), "st": (200.0, 200.0), "st-staggered": (100.0, 111.8), "square": (100.0, 100.0)}
    staggered = kind in ("visium", "st-staggered")
    places = [(c, r) for r in range(2, rows + 2) for c in range(2, (2 if staggered else 1) * columns + 2)]
    array = np.array([(c, r) for c, r in places if not staggered or (c + r) % 2 == 0], dtype=float)
    rng.shuffle(array)
    counts = rng.poisson(3.0, (len(array), len(GENES)))
    if kind == "visium":
        barcodes = ["".join(rng.choice(BASES, 16)) + "-1" for _ in array]
    else:
        barcodes = [f"{c:.0f}x{r:.0f}" if kind != "square" else f"spot{i}" for i, (c, r) in enumerate(array)]
    xy_px = array * np.array(step_um[kind]) / um_per_px + rng.normal(0, 0.2, array.shape)
    width, height = (int(side) for side in xy_px.max(axis=0) + 2 * 100 / um_per_px)
    return Section(barcodes, array, xy_px, counts, list(GENES), (width, height))


def tissue(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A picture that is nowhere plain and nowhere the same, (H, W, 3)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def as_anndata(section: Section, *, obs: dict[str, Any] | None = None, array: bool = True) -> anndata.AnnData:
    """The section in scanpy's layout: counts in X (sparse), array positions in obs, pixels in obsm["spatial"]."""
    columns: dict[str, Any] = {}
    if array:
        columns = {"array_row": section.array[:, 1].astype(int), "array_col": section.array[:, 0].astype(int)}
    table = anndata.AnnData(
        X=csr_matrix(section.counts.astype(np.float32)),
        obs=pd.DataFrame(columns | (obs or {}), index=section.barcodes),
        var=pd.DataFrame(index=section.genes),
    )
    table.obsm["spatial"] = section.xy_px
    return table


def add_images(
    table: anndata.AnnData,
    section: Section,
    images: dict[str, float],
    *,
    library: str = "library",
    scalefactors: dict[str, float] | None = None,
    fractions: bool = False,
) -> None:
    """Put reduced copies of the full image into `uns["spatial"]`: key -> pixels per full-resolution pixel."""
    full = Image.fromarray(tissue(section.size_px))
    reduced = {}
    for key, factor in images.items():
        small = np.asarray(full.resize((round(full.width * factor), round(full.height * factor))))
        reduced[key] = (small / 255).astype(np.float32) if fractions else small
    factors = {f"tissue_{key}_scalef": factor for key, factor in images.items()} | (scalefactors or {})
    table.uns.setdefault("spatial", {})[library] = {"images": reduced, "scalefactors": factors}


def write_h5ad(
    file: Path,
    section: Section | None = None,
    *,
    layout: str = "csr",
    image: str | None = None,
    obs: dict[str, Any] | None = None,
    array: bool = True,
    metadata: dict[str, Any] | None = None,
) -> Section:
    """One .h5ad file. `layout` of X: csr, csc or dense; `image`: the name of the full image beside it; `metadata` go
    into a JSON file of the same name."""
    section = section or make_section()
    file.parent.mkdir(parents=True, exist_ok=True)
    table = as_anndata(section, obs=obs, array=array)
    table.X = {"csr": table.X, "csc": csc_matrix(table.X), "dense": table.X.toarray()}[layout]
    table.write_h5ad(file)
    if image:
        Image.fromarray(tissue(section.size_px)).save(file.parent / image)
    if metadata:
        file.with_suffix(".json").write_text(json.dumps(metadata))
    return section


HEST_ROW = {
    "dataset_title": "A study of breast",
    "id": "",
    "image_filename": "",
    "organ": "Breast",
    "disease_state": "Cancer",
    "oncotree_code": "IDC",
    "species": "Homo sapiens",
    "patient": "",
    "st_technology": "Visium",
    "license": "CC BY 4.0",
    "study_link": "https://www.nature.com/articles/s0?utm=x",
    "download_page_link1": "https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE123456",
    "inter_spot_dist": 100.0,
    "spot_diameter": 55.0,
    "pixel_size_um_embedded": "",
    "pixel_size_um_estimated": 5.0,
    "fullres_px_width": "",
    "fullres_px_height": "",
}


def write_hest(
    folder: Path,
    ids: tuple[str, ...] = ("TENX1",),
    *,
    sections: dict[str, Section] | None = None,
    rows: dict[str, dict[str, Any]] | None = None,
    wsis: bool = True,
    jsons: bool = True,
    catalogue: bool = False,
) -> dict[str, Section]:
    """A release of HEST-1k with these samples. `rows` change a sample's metadata."""
    made: dict[str, Section] = {}
    for name in ("st", "wsis", "metadata", "patches", "tissue_seg"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    table = []
    for seed, sample in enumerate(ids):
        section = made[sample] = (sections or {}).get(sample) or make_section(seed=seed)
        adata = as_anndata(section, obs={"in_tissue": np.ones(len(section.barcodes), dtype=bool)})
        add_images(adata, section, {"downscaled_fullres": 0.25}, library="ST")
        adata.write_h5ad(folder / f"st/{sample}.h5ad")
        if wsis:
            Image.fromarray(tissue(section.size_px)).save(folder / f"wsis/{sample}.tif")
        width, height = section.size_px
        row = HEST_ROW | {"id": sample, "image_filename": f"{sample}.tif"}
        row |= {"fullres_px_width": width, "fullres_px_height": height} | (rows or {}).get(sample, {})
        table.append(row)
        if jsons:
            (folder / f"metadata/{sample}.json").write_text(json.dumps(row))
        (folder / f"patches/{sample}.h5").write_bytes(b"not read")
        (folder / f"tissue_seg/{sample}.geojson").write_text("{}")
    if catalogue:
        with (folder / "HEST_v1_1_0.csv").open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(HEST_ROW))
            writer.writeheader()
            writer.writerows(table)
    return made


def write_stimage(
    folder: Path,
    slide: str = "GSE1_GSM2",
    *,
    technology: str = "ST",
    section: Section | None = None,
    um_per_px: float = 5.0,
    radius_um: float | None = None,
    image: bool = True,
    meta: dict[str, Any] | None = None,
) -> Section:
    """One slide of a release of STimage-1K4M, and its row of the metadata table where `meta` is given."""
    kind = {"ST": "st", "Visium": "visium", "VisiumHD": "square"}[technology]
    section = section or make_section(kind, um_per_px=um_per_px)
    names = [f"{slide}_{barcode}" for barcode in section.barcodes]
    for name in ("coord", "gene_exp", "image"):
        (folder / technology / name).mkdir(parents=True, exist_ok=True)
    radius = (radius_um or {"ST": 50.0, "Visium": 27.5, "VisiumHD": 4.0}[technology]) / um_per_px
    coord = pd.DataFrame({"yaxis": section.xy_px[:, 1], "xaxis": section.xy_px[:, 0], "r": radius}, index=names)
    coord.to_csv(folder / technology / f"coord/{slide}_coord.csv")
    pd.DataFrame(section.counts, index=names, columns=section.genes).to_csv(
        folder / technology / f"gene_exp/{slide}_count.csv"
    )
    if image:
        Image.fromarray(tissue(section.size_px)).save(folder / technology / f"image/{slide}.png")
    if meta is not None:
        (folder / "meta").mkdir(exist_ok=True)
        row = {"slide": slide, "species": "human", "tissue": "breast", "pmid": "34650042", "title": "A study"}
        row |= {"abstract": "Of cancer, and\nmore", "tech": technology, "spot_num": len(names)} | meta
        pd.DataFrame([row]).to_csv(folder / "meta/meta_all_gene02122025.csv", index=False)
        pd.DataFrame([row | {"species": "mouse"}]).to_csv(folder / "meta/meta_all_gene.csv", index=False)
    return section
