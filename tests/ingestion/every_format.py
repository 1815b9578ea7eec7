"""A curator's folder with a section of every format in it, two of them broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.ingestion.anndata_files import make_section, write_h5ad, write_hest, write_stimage
from tests.ingestion.space_ranger_files import write_space_ranger, write_visium_hd
from tests.ingestion.spatialdata_files import write_spatialdata
from tests.ingestion.xenium_files import write_xenium

READERS = {
    "visium/v1": "space-ranger",
    "visium/v2": "space-ranger",
    "visium/v4": "space-ranger",
    "visium/cytassist": "space-ranger",
    "hd": "visium-hd",
    "xenium": "xenium",
    "legacy": "legacy-st",
    "files/loose": "anndata",
    "TENX7": "hest",
    "GSE1_GSM2": "stimage",
    "store.zarr": "spatialdata",
}
FOLDERS = ("visium", "hd", "xenium", "legacy", "files", "hest", "stimage", "store.zarr")  # of the good ones
BROKEN = {"broken/cut": "file_complete", "broken/strangers": "barcodes_match"}


def write_every_format(sections: Path, make_legacy: Callable[..., Path]) -> None:
    """Write the folder; its good sections keep 20 spots or more."""
    write_space_ranger(sections / "visium/v1", version=1, seed=1)
    write_space_ranger(sections / "visium/v2", version=2, matrix="mtx", seed=2)
    write_space_ranger(sections / "visium/v4/outs", version=4, seed=3)
    write_space_ranger(sections / "visium/cytassist", version=3, image="hires", seed=4)
    write_visium_hd(sections / "hd", seed=5)
    write_xenium(sections / "xenium", cells=4000, genes=260, extent_um=900, seed=6)
    make_legacy(sections / "legacy", seed=7)
    write_h5ad(sections / "files/loose.h5ad", make_section(seed=8), image="loose.png")
    write_hest(sections / "hest", ("TENX7",), sections={"TENX7": make_section(seed=9)})
    write_stimage(sections / "stimage", section=make_section("st", seed=10), meta={})
    write_spatialdata(sections / "store.zarr", seed=11)
    write_space_ranger(sections / "broken/cut", seed=12)
    make_legacy(sections / "broken/strangers", seed=13)
    matrix = sections / "broken/cut/filtered_feature_bc_matrix.h5"
    matrix.write_bytes(matrix.read_bytes()[: matrix.stat().st_size // 2])
    positions = sections / "broken/strangers/spots.tsv"
    header, *lines = positions.read_text().splitlines()
    positions.write_text("\n".join([header, *(f"9{line}" for line in lines)]) + "\n")
