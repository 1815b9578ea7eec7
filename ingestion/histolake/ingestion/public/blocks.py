"""One Visium section as several: cut into blocks, with a gap between them that no patch reaches across.

For a cohort of a single section, where something has to be held out. Neighbouring spots look alike, and a niche shows
its neighbours too, so spots are held out by the block, never at random; those within half a gap of a cut are in no
block. It is still one section of one donor: a figure on a held-out block is kinder than one on another person's tissue,
and whoever reports it says so.

Each block is a folder as Space Ranger writes one: the matrix with the block's barcodes, the positions with `in_tissue`
0 outside, and links to the files that all of them share.
"""

from __future__ import annotations

import csv
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from histolake.platform.errors import UsageError

__all__ = ["GAP_UM", "Blocks", "cut_in_blocks"]

GAP_UM = 300.0  # micrometres between blocks; the widest default patch, a niche of 55 + 2 x 100, fits in it
ROW_UM, COLUMN_UM = 86.6025, 50.0  # micrometres between a Visium array's rows, and between its columns
MATRIX = "filtered_feature_bc_matrix.h5"
POSITIONS = ("spatial/tissue_positions_list.csv", "spatial/tissue_positions.csv")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """What became of a section."""

    folders: tuple[Path, ...]
    spots: tuple[int, ...]  # of each block
    left_out: int  # spots along the cuts


def cut_in_blocks(section: Path, into: Path, count: int) -> Blocks:
    """Cut a section into `count` blocks of about as many spots, along its longer side. A cut that is there is kept."""
    rows, table = _read_positions(section)
    names = [row[0] for row in rows]
    under = np.array([row[1] == "1" for row in rows])
    array_N2 = np.array([[float(row[2]), float(row[3])] for row in rows]) * (ROW_UM, COLUMN_UM)
    pixel_N2 = np.array([[float(row[4]), float(row[5])] for row in rows])
    if under.sum() < count:
        raise UsageError(f"{section} has {under.sum()} spots under tissue, too few for {count} blocks.")
    block_N = _assign(pixel_N2, under, count, GAP_UM / _um_per_px(array_N2, pixel_N2))
    folders = tuple(into / f"{section.name}-{number + 1}of{count}" for number in range(count))
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            chosen = {name for name, block in zip(names, block_N, strict=True) if block == number}
            _write(section, folder, table, rows, chosen)
    sizes = tuple(int((block_N == number).sum()) for number in range(count))
    return Blocks(folders=folders, spots=sizes, left_out=int(under.sum()) - sum(sizes))


def _read_positions(section: Path) -> tuple[list[list[str]], str]:
    """Rows of the positions (barcode, in_tissue, array row and column, pixel row and column), and their file's name."""
    for name in POSITIONS:
        if (section / name).is_file():
            with (section / name).open(newline="") as file:
                rows = [row for row in csv.reader(file) if row]
            return (rows[1:] if rows[0][0] == "barcode" else rows), name
    raise UsageError(f"{section} has no {' or '.join(POSITIONS)}, so it cannot be cut into blocks.")


def _um_per_px(array_um_N2: np.ndarray, pixel_N2: np.ndarray) -> float:
    """Micrometres a pixel, by least squares over the whole array (which may be turned in the image)."""
    design = np.column_stack([array_um_N2, np.ones(len(array_um_N2))])
    fitted = np.linalg.lstsq(design, pixel_N2, rcond=None)[0][:2]
    return float(1 / np.sqrt(abs(np.linalg.det(fitted))))


def _assign(pixel_N2: np.ndarray, under: np.ndarray, count: int, gap_px: float) -> np.ndarray:
    """Block of each spot, -1 for those off tissue or along a cut."""
    spans = np.ptp(pixel_N2[under], axis=0)
    along = pixel_N2[:, int(spans.argmax())]
    cuts = np.quantile(along[under], np.arange(1, count) / count)
    block = np.searchsorted(cuts, along)
    near = (np.abs(along[:, None] - cuts[None, :]) < gap_px / 2).any(axis=1)
    return np.where(under & ~near, block, -1)


def _write(section: Path, folder: Path, table: str, rows: list[list[str]], chosen: set[str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".cutting-"))
    try:
        (draft / "spatial").mkdir()
        shared = [
            place for place in section.iterdir() if place.is_file() and place.name.split(".")[0].endswith("image")
        ]
        shared += [place for place in (section / "spatial").iterdir() if place.name != Path(table).name]
        for place in shared:
            _link(place, draft / place.relative_to(section))
        header = [["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]]
        flagged = [[row[0], "1" if row[0] in chosen else "0", *row[2:]] for row in rows]
        with (draft / table).open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(
                flagged if table.endswith("_list.csv") else header + flagged
            )
        _write_matrix(section / MATRIX, draft / MATRIX, chosen)
        draft.chmod(0o755)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name, without a copy where the disk can."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_matrix(source: Path, target: Path, chosen: set[str]) -> None:
    """The matrix with some of its barcodes (its columns); genes stay as they are."""
    import h5py

    with h5py.File(source) as old, h5py.File(target, "w") as new:
        matrix = old["matrix"]
        barcodes = matrix["barcodes"][:]
        keep = np.array([name.decode() in chosen for name in barcodes])
        starts = matrix["indptr"][:]
        entries = np.repeat(keep, np.diff(starts))
        made = new.create_group("matrix")
        matrix.copy("features", made)
        packed = {"compression": "gzip", "compression_opts": 4}
        made.create_dataset("barcodes", data=barcodes[keep])
        made.create_dataset("data", data=matrix["data"][:][entries], **packed)
        made.create_dataset("indices", data=matrix["indices"][:][entries], **packed)
        made.create_dataset("indptr", data=np.concatenate([[0], np.cumsum(np.diff(starts)[keep])]).astype(starts.dtype))
        made.create_dataset("shape", data=np.array([matrix["shape"][0], keep.sum()], dtype=matrix["shape"].dtype))
        for key, value in old.attrs.items():
            new.attrs[key] = value
