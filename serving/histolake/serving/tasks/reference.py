"""The reference folder of a published model, as arrays: what it was trained on, and what its answers are made of.

slides.json        every slide of the model's split with its side
reference.parquet  one row a training pair: where it lies, its sentence, both vectors, its expression
genes.json         the genes of that expression, chosen on training pairs alone
calibration.json   how `predict` is set, chosen on the validation side
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from histolake.platform.errors import ModelError, UsageError
from histolake.platform.splits import BLOCKS

__all__ = ["Reference", "load_reference"]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Training pairs of one model (M rows) and what was chosen on its validation side."""

    pair_ids: list[bytes]
    slide_ids: np.ndarray  # str, (M,)
    barcodes: list[str]
    x_px: np.ndarray  # spot centre, full-resolution pixels of the slide's image
    y_px: np.ndarray
    sentences: list[str]
    image_MD: np.ndarray  # float32, unit rows
    text_MD: np.ndarray
    expression_MG: np.ndarray  # float32, log1p of counts per 10^4 over all genes
    symbols: list[str]  # of the G genes
    gene_ids: np.ndarray  # int32, the lake's ids of the G genes
    slides: list[dict[str, Any]]  # slide_id, study, patient, side
    calibration: dict[str, Any]

    def __len__(self) -> int:
        return len(self.pair_ids)

    @property
    def training_slides(self) -> list[str]:
        """Ids of the slides that the model was trained on; of those cut into blocks, on a part."""
        return [row["slide_id"] for row in self.slides if row["side"] in ("train", BLOCKS)]

    @property
    def predict_settings(self) -> dict[str, Any]:
        """`top_k` and `temperature` as chosen on validation."""
        chosen = self.calibration["predict"]
        return {"top_k": int(chosen["top_k"]), "temperature": float(chosen["temperature"])}

    def keep_all_but(self, slide_ids: list[str]) -> np.ndarray | None:
        """A bool for each pair, False on the named slides; None if none is named. Raises `UsageError` for a slide that
        the reference does not hold."""
        if not slide_ids:
            return None
        held = sorted(set(self.slide_ids.tolist()))
        missing = [name for name in slide_ids if name not in held]
        if missing:
            raise UsageError(f"The reference holds no slide {missing[0]!r}; it holds {_some(held)}.")
        return ~np.isin(self.slide_ids, slide_ids)

    def columns_of(self, symbols: list[str] | None) -> np.ndarray:
        """Columns of the named genes, all of them for None. Raises `UsageError` that names every unknown symbol."""
        if symbols is None:
            return np.arange(len(self.symbols))
        if not symbols:
            raise UsageError("The list of genes is empty; leave it out to have every gene, or name at least one.")
        place = {symbol: column for column, symbol in enumerate(self.symbols)}
        missing = [symbol for symbol in symbols if symbol not in place]
        if missing:
            raise UsageError(
                f"The model predicts no gene {_some(missing)}; "
                f"it predicts {len(self.symbols)} genes: {_some(self.symbols)}."
            )
        return np.array([place[symbol] for symbol in symbols])


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def load_reference(folder: str | Path) -> Reference:
    """Read `reference/` of a model folder; raises `ModelError` if a file is missing or the files don't fit together."""
    root = Path(folder) / "reference"
    try:
        slides = json.loads((root / "slides.json").read_text())
        genes = json.loads((root / "genes.json").read_text())
        calibration = json.loads((root / "calibration.json").read_text())
        table = pq.read_table(root / "reference.parquet")
    except FileNotFoundError as error:
        raise ModelError(
            f"The model in {folder} has no {error.filename}; a published model has a whole reference."
        ) from error
    expression_MG = _matrix(table, "expression")
    if expression_MG.shape[1] != len(genes["symbols"]):
        raise ModelError(
            f"The reference in {root} has expression of {expression_MG.shape[1]} genes, "
            f"but names {len(genes['symbols'])}; publish the model again."
        )
    return Reference(
        pair_ids=table["pair_id"].to_pylist(),
        slide_ids=np.array(table["slide_id"].to_pylist(), dtype=str),
        barcodes=table["barcode"].to_pylist(),
        x_px=table["x_px"].to_numpy(),
        y_px=table["y_px"].to_numpy(),
        sentences=table["sentence"].to_pylist(),
        image_MD=_matrix(table, "image_vector"),
        text_MD=_matrix(table, "text_vector"),
        expression_MG=expression_MG,
        symbols=list(genes["symbols"]),
        gene_ids=np.array(genes["gene_ids"], dtype=np.int32),
        slides=slides,
        calibration=calibration,
    )


def _matrix(table: pa.Table, name: str) -> np.ndarray:
    column = table[name].combine_chunks()
    return np.asarray(column.flatten(), dtype=np.float32).reshape(len(column), -1)
