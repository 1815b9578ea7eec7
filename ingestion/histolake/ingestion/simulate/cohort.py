"""Writing the simulated cohort: folders of legacy Spatial Transcriptomics, and the truth beside them.

    SIM-A-1/counts.tsv.gz  spots.tsv  image.jpg     as a laboratory would hand them over
    SIM-A-1/section.json                            what is known of the section, with "simulated": true
    SIM-A-1/truth.parquet                           a row a spot: domain, shares of domains and cell types, place in
    the patient SIM-A-1/truth.json                              the warp from the section to the patient, and the seed

A section that is there with the same seed and generator is left as it is.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histolake.ingestion.simulate.anatomy import DOMAINS, HEIGHT_UM, WIDTH_UM, Anatomy, Warp, make_anatomy, make_warp
from histolake.ingestion.simulate.expression import (
    CELL_TYPES,
    Programme,
    draw_counts,
    make_programme,
    mix_cells,
    patient_programme,
)
from histolake.ingestion.simulate.texture import make_stain, render

__all__ = ["PATIENTS", "simulate_cohort", "simulate_section"]

GENERATOR = 1  # raise it when the same seed gives another cohort
PATIENTS = ("SIM-A", "SIM-B", "SIM-C", "SIM-D")
SECTIONS = (1, 2)  # of each patient
UM_PER_PX = 1.0  # of the cohort; a test may ask for a coarser picture of the same tissue
PITCH_UM, DIAMETER_UM = 200.0, 100.0
DEPTH_IN_TISSUE_UM = 30.0  # a spot is under tissue where its centre lies this deep
POOR_SPOTS = 4  # a section's spots that caught next to nothing
JPEG_QUALITY = 88


def simulate_cohort(
    folder: Path, *, seed: int, tell: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, dict[str, str]]:
    """Write the cohort below a folder; section -> its metadata. Deterministic by seed."""
    names = [(patient, number) for patient in PATIENTS for number in SECTIONS]
    for done, (patient, number) in enumerate(names):
        tell("simulating", done, len(names))
        simulate_section(folder, patient, number, seed=seed)
    tell("simulating", len(names), len(names))
    return {f"{patient}-{number}": _metadata(patient) for patient, number in names}


def simulate_section(folder: Path, patient: str, number: int, *, seed: int, um_per_px: float = UM_PER_PX) -> Path:
    """Write one section of one patient unless it is there; its folder."""
    target = folder / f"{patient}-{number}"
    if _is_there(target, seed, um_per_px):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    _write_section(draft, patient, number, seed, um_per_px)
    if target.exists():
        shutil.rmtree(target)
    draft.chmod(0o755)
    draft.rename(target)
    return target


def _is_there(target: Path, seed: int, um_per_px: float) -> bool:
    try:
        truth = json.loads((target / "truth.json").read_text())
    except (OSError, ValueError):
        return False
    return tuple(truth.get(key) for key in ("seed", "generator", "um_per_px")) == (seed, GENERATOR, um_per_px)


def _metadata(patient: str) -> dict[str, str]:
    return {
        "patient": patient,
        "study": "simulated",
        "organ": "breast",
        "species": "human",
        "disease": "none: simulated tissue",
        "technology": "Spatial Transcriptomics",
        "licence": "Apache-2.0",
        "accession": "none: simulated",
        "simulated": "true",
    }


def _rng(seed: int, *path: int) -> np.random.Generator:
    return np.random.default_rng([seed, *path])


def _vocabulary() -> list[str]:
    from histolake.platform.lake.genes import vocabulary

    return vocabulary()["symbol"].to_pylist()


def _write_section(folder: Path, patient: str, number: int, seed: int, um_per_px: float) -> None:
    import simplejpeg

    p = PATIENTS.index(patient)
    # Each part of the truth has a stream of its own, so that a change of one leaves the others as they were.
    anatomy = make_anatomy(_rng(seed, p, 1))
    stain = make_stain(_rng(seed, p, 2))
    programme = patient_programme(_rng(seed, p, 3), make_programme(_rng(seed, 1000), _vocabulary()))
    depth = float(_rng(seed, p, 4).uniform(0.85, 1.2))
    warp = Warp() if number == SECTIONS[0] else make_warp(_rng(seed, p, 5, number))
    spots = _spots(_rng(seed, p, 6, number), anatomy, warp)
    _write_expression(folder, _rng(seed, p, 7, number), programme, spots, depth)
    _write_positions(folder, spots, um_per_px)
    image = render(_rng(seed, p, 8, number), anatomy, warp, stain, um_per_px)
    (folder / "image.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=JPEG_QUALITY, colorsubsampling="420"))
    stated = {
        **_metadata(patient),
        "section": f"{patient}-{number}",
        "simulated": True,
        "um_per_px": um_per_px,
        "pitch_um": PITCH_UM,
        "spot_diameter_um": DIAMETER_UM,
    }
    (folder / "section.json").write_text(json.dumps(stated, indent=1) + "\n")
    made = {"seed": seed, "generator": GENERATOR, "um_per_px": um_per_px}
    truth = {**made, "depth": depth, "warp_to_patient": asdict(warp)}
    (folder / "truth.json").write_text(json.dumps(truth, indent=1) + "\n")


def _spots(rng: np.random.Generator, anatomy: Anatomy, warp: Warp) -> dict[str, Any]:
    """Spots under tissue: array position, adjusted position, centre, and what lies below them."""
    columns, rows = round(WIDTH_UM / PITCH_UM), round(HEIGHT_UM / PITCH_UM)
    y, x = np.meshgrid(np.arange(1, rows + 1), np.arange(1, columns + 1), indexing="ij")
    array = np.stack([x.ravel(), y.ravel()], axis=1)
    adjusted = array + rng.normal(0, 0.02, array.shape)
    xy_um = (adjusted - 1) * PITCH_UM
    deep = anatomy.tissue_at(warp(xy_um)) > DEPTH_IN_TISSUE_UM
    inside = (xy_um > DIAMETER_UM / 2).all(axis=1) & (xy_um < np.array([WIDTH_UM, HEIGHT_UM]) - DIAMETER_UM / 2).all(
        axis=1
    )
    use = deep & inside
    array, adjusted, xy_um = array[use], adjusted[use], xy_um[use]
    # Shares of the domains over the spot's disc.
    turn = np.arange(12) * 2 * np.pi / 12
    disc = np.concatenate([r * np.stack([np.cos(turn), np.sin(turn)], axis=1) for r in (15.0, 30.0, 45.0)])
    over = anatomy.domains_at(warp((xy_um[:, None] + disc).reshape(-1, 2)))
    domains_ND = over.reshape(len(xy_um), len(disc), len(DOMAINS)).mean(axis=1)
    return {
        "array": array,
        "adjusted": adjusted,
        "xy_um": xy_um,
        "patient_um": warp(xy_um),
        "domains_ND": domains_ND,
        "mix_NT": mix_cells(rng, domains_ND),
        "barcodes": [f"{x}x{y}" for x, y in array],
    }


def _write_expression(
    folder: Path, rng: np.random.Generator, programme: Programme, spots: dict[str, Any], depth: float
) -> None:
    counts_NG = draw_counts(rng, programme, spots["domains_ND"], spots["mix_NT"], depth, POOR_SPOTS)
    lines = ["\t".join(["", *programme.symbols])]
    lines += ["\t".join([b, *map(str, row)]) for b, row in zip(spots["barcodes"], counts_NG.tolist(), strict=True)]
    packed = gzip.compress(("\n".join(lines) + "\n").encode(), compresslevel=6, mtime=0)
    (folder / "counts.tsv.gz").write_bytes(packed)
    named = np.array(DOMAINS)[spots["domains_ND"].argmax(axis=1)]
    truth = {
        "barcode": spots["barcodes"],
        "domain": named,
        "x_um": spots["xy_um"][:, 0],
        "y_um": spots["xy_um"][:, 1],
        "patient_x_um": spots["patient_um"][:, 0],
        "patient_y_um": spots["patient_um"][:, 1],
        **{f"domain_{name}": spots["domains_ND"][:, d] for d, name in enumerate(DOMAINS)},
        **{f"cells_{name}": spots["mix_NT"][:, t] for t, name in enumerate(CELL_TYPES)},
    }
    pq.write_table(pa.table(truth), folder / "truth.parquet")


def _write_positions(folder: Path, spots: dict[str, Any], um_per_px: float) -> None:
    lines = ["x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected"]
    for (x, y), (new_x, new_y) in zip(spots["array"], spots["adjusted"], strict=True):
        pixel_x, pixel_y = ((v - 1) * PITCH_UM / um_per_px for v in (new_x, new_y))
        lines.append(f"{x}\t{y}\t{new_x:.3f}\t{new_y:.3f}\t{pixel_x:.2f}\t{pixel_y:.2f}\t1")
    (folder / "spots.tsv").write_text("\n".join(lines) + "\n")
