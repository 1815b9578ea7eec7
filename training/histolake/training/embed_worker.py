"""What embeds: a worker with a model in memory that turns runs of pairs into fragments of a table of embeddings.

While the model computes one batch, a thread reads the next from the lake and decodes its pictures. Memory holds the
model, two batches of pixels and the vectors of one run.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from histolake.platform.errors import HistolakeError, LakeError, ModelError
from histolake.platform.lake import Chunk, Fragment, Lake
from histolake.platform.lake.embeddings.table import EmbeddingsWriter
from histolake.platform.storage import Location

__all__ = ["EmbedPlan", "Embedder", "Work", "Written"]

READ_ROWS = 256

# What reading the lake raises where rows or files are gone: ours, the file system's, and Lance's by way of Arrow.
_UNREADABLE = (LakeError, OSError, pa.ArrowException)


@dataclass(frozen=True, kw_only=True)
class EmbedPlan:
    """What every worker of a run knows."""

    root: Location  # of the lake
    version: int
    table: Location
    width: int  # numbers a vector
    model_uri: str  # where another machine gets the model from
    model_folder: str  # where it lies on the machine that resolved it
    digest: str  # that it must have
    image_column: str
    device: str = "cpu"  # cpu or cuda
    batch: int = 32  # pairs a forward pass
    threads: int = 1  # of torch, on a CPU
    decoders: int = 1  # threads that decode pictures


@dataclass(frozen=True, kw_only=True)
class Work:
    """Rows [start, stop) of a slide, counted through its fragments."""

    ingest_id: str
    slide_id: str
    number: int  # of the slide's works
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of one work. `problem` says why there is no fragment."""

    ingest_id: str
    number: int
    rows: int
    fragment: Fragment | None = None
    without_image: int = 0
    without_sentence: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class _Batch:
    """Pairs read and prepared: N of them, those with a picture (I) and those with a sentence (S)."""

    pair_ids: list[bytes]
    has_N: np.ndarray
    image_IHWC: np.ndarray
    said_N: np.ndarray
    tokens_SL: np.ndarray


class Embedder:
    """A model in memory and a lake at a version. Make one in each worker."""

    def __init__(self, plan: EmbedPlan) -> None:
        import torch

        from histolake.training.models.files import load_model, model_digest

        if plan.device == "cpu":
            torch.set_num_threads(plan.threads)
        folder = _local(plan)
        if model_digest(folder) != plan.digest:
            raise ModelError(f"The model {plan.model_uri} is not the same on every machine; register it again.")
        self._plan = plan
        self._model = load_model(folder, plan.device)
        self._model.batch = plan.batch
        self._lake = Lake.open(plan.root)
        self._snapshot = self._lake.at(plan.version)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="embed-read")
        self._decoders = ThreadPoolExecutor(plan.decoders, thread_name_prefix="embed-decode")

    def write(self, work: Work) -> Written:
        """Embed a run of pairs into one fragment that nobody sees yet."""
        try:
            return self._write(work)
        except _UNREADABLE:
            # What a rewrite of the pairs has moved is found from the newest catalogue; what is gone is not.
            try:
                self._snapshot = self._lake.at(self._plan.version)
                return self._write(work)
            except (HistolakeError, *_UNREADABLE) as error:
                return _failed(work, error)
        except ModelError as error:
            return _failed(work, error)

    def _write(self, work: Work) -> Written:
        plan, rows = self._plan, work.stop - work.start
        vector_ND = np.zeros((rows, plan.width), dtype=np.float32)
        text_ND = np.zeros((rows, plan.width), dtype=np.float32)
        has_N, said_N = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
        pair_ids: list[bytes] = []
        for batch in self._batches(work):
            here = slice(len(pair_ids), len(pair_ids) + len(batch.pair_ids))
            has_N[here], said_N[here] = batch.has_N, batch.said_N
            vector_ND[here][batch.has_N] = self._model.embed_pixels(batch.image_IHWC)
            text_ND[here][batch.said_N] = self._model.embed_tokens(batch.tokens_SL)
            pair_ids += batch.pair_ids
        if len(pair_ids) != rows:
            raise LakeError(f"{work.slide_id} gave {len(pair_ids)} of {rows} pairs; run `histolake lake check`.")
        writer = EmbeddingsWriter(
            location=plan.table, width=plan.width, ingest_id=work.ingest_id, slide_id=work.slide_id
        )
        return Written(
            ingest_id=work.ingest_id,
            number=work.number,
            rows=rows,
            fragment=writer.write(pair_ids, vector_ND, has_N, text_ND, said_N),
            without_image=int(rows - has_N.sum()),
            without_sentence=int(rows - said_N.sum()),
        )

    def _batches(self, work: Work) -> Iterator[_Batch]:
        """The work's pairs in order, the next batch prepared by a thread meanwhile."""
        ahead: Future[_Batch] | None = None
        try:
            for chunk in self._chunks(work):
                coming = self._reader.submit(self._prepare, chunk)
                if ahead is not None:
                    yield ahead.result()
                ahead = coming
            if ahead is not None:
                yield ahead.result()
        finally:
            if ahead is not None:
                ahead.cancel()

    def _chunks(self, work: Work) -> Iterator[Chunk]:
        at = 0
        for chunk in self._snapshot.chunks([work.slide_id], rows=max(READ_ROWS, self._plan.batch)):
            first, last = max(work.start - at, 0), min(work.stop - at, chunk.rows)
            if first < last:
                yield Chunk(chunk.slide_id, chunk.ingest_id, chunk.start + first, chunk.start + last)
            at += chunk.rows

    def _prepare(self, chunk: Chunk) -> _Batch:
        column = self._plan.image_column
        rows = self._snapshot.read(chunk, ["pair_id", column, "sentence"])
        images: list[Any] = rows[column].to_pylist()
        sentences: list[Any] = rows["sentence"].to_pylist()
        has_N = np.array([image is not None for image in images], dtype=bool)
        said_N = np.array([bool(sentence and sentence.strip()) for sentence in sentences], dtype=bool)
        try:
            image_IHWC = self._model.decode_images([image for image in images if image is not None], self._decoders.map)
        except ModelError as error:
            raise ModelError(f"A picture of {chunk.slide_id} (rows {chunk.start} to {chunk.stop}): {error}") from error
        tokens_SL = self._model.tokenizer([text for text, said in zip(sentences, said_N, strict=True) if said])
        return _Batch(rows["pair_id"].to_pylist(), has_N, image_IHWC, said_N, tokens_SL)


def _failed(work: Work, error: Exception) -> Written:
    return Written(ingest_id=work.ingest_id, number=work.number, rows=work.stop - work.start, problem=str(error))


def _local(plan: EmbedPlan) -> Path:
    """The model's folder on this machine, fetched if it is not here."""
    folder = Path(plan.model_folder)
    if (folder / "model.json").is_file():
        return folder
    from histolake.platform.settings import load_settings
    from histolake.training.registry import resolve_model

    return resolve_model(plan.model_uri, load_settings().section("tracking")).path
