"""Small sections as a laboratory would hand them over, and the Ray that the pipeline's tests run on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histolake.platform.cluster import ClusterSettings, start_ray

PITCH_PX = 40
COLUMNS, ROWS = 9, 8
SIZE = (PITCH_PX * (COLUMNS + 1), PITCH_PX * (ROWS + 2))
GENES = [f"GENE{i:03d}" for i in range(258)] + ["ERBB2", "COL1A1"]


def tissue(size: tuple[int, int], seed: int) -> np.ndarray:
    """A picture that is nowhere plain and nowhere the same."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def write_section(folder: Path, *, seed: int = 0, image: str = "image.png", **section: Any) -> Path:
    """A good section of 72 spots at 5 um/px. Keywords go into its section.json."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    spots = [(x, y) for y in range(1, ROWS + 1) for x in range(1, COLUMNS + 1)]
    rng.shuffle(spots)
    counts = rng.poisson(3.0, (len(spots), len(GENES)))
    lines = ["\t".join(["", *GENES])]
    lines += ["\t".join([f"{x}x{y}", *map(str, row)]) for (x, y), row in zip(spots, counts, strict=True)]
    (folder / "counts.tsv.gz").write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    rows = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for x, y in sorted(spots):
        new_x, new_y = x + rng.normal(0, 0.03), y + rng.normal(0, 0.03)
        rows.append(f"{x}\t{y}\t{new_x:.4f}\t{new_y:.4f}\t{PITCH_PX * new_x:.3f}\t{PITCH_PX * new_y:.3f}\t1")
    (folder / "spots.tsv").write_text("\n".join(rows) + "\n")
    Image.fromarray(tissue(SIZE, seed)).save(folder / image)
    if section:
        (folder / "section.json").write_text(json.dumps(section))
    return folder


def change_lines(file: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Rewrite a table, plain or packed, line by line."""
    packed = file.suffix == ".gz"
    text = gzip.decompress(file.read_bytes()).decode() if packed else file.read_text()
    made = ("\n".join(change(text.rstrip("\n").split("\n"))) + "\n").encode()
    file.write_bytes(gzip.compress(made, mtime=0) if packed else made)


def change_cell(file: Path, line: int, column: int, value: str) -> None:
    """Write another value into one cell of a table."""

    def change(lines: list[str]) -> list[str]:
        cells = lines[line].split("\t")
        cells[column] = value
        return [*lines[:line], "\t".join(cells), *lines[line + 1 :]]

    change_lines(file, change)


@pytest.fixture(scope="session")
def make_section() -> Callable[..., Path]:
    return write_section


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., None]:
    return change_lines


@pytest.fixture(scope="session")
def set_cell() -> Callable[..., None]:
    return change_cell


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    with start_ray(ClusterSettings(cpus=3, object_store_mb=128)):
        yield
