"""A batch in the making: its tensors, and the rows of windows that go into them, some rows at a time by any thread.

Axes: B pairs of the batch, P rows of a window, R rows that are filled at once, K neighbours of a spot, W of a vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from histolake.training.inputs import Input, Picture, Profile, Sentence
from histolake.training.reading.augmentation import Drawn
from histolake.training.reading.batch import Batch
from histolake.training.reading.fill import fill_pictures, fill_tokens
from histolake.training.reading.memory import Reused
from histolake.training.reading.order import Slice
from histolake.training.reading.profiles import Profiles
from histolake.training.reading.windows import Rows

__all__ = ["Filling", "Frame", "Segment", "Window"]

PART_ROWS = 32  # pairs that one thread fills in at a time


@dataclass(frozen=True)
class Window:
    """Rows of a window of the order, with all that was read for them."""

    rows: Rows
    slides_P: np.ndarray  # int64, the number of each row's slide
    profiles: Profiles | None
    vectors: tuple[np.ndarray, np.ndarray] | None  # float32 (P, W), and which rows have one
    neighbours_PK: np.ndarray | None  # int64

    def reaches(self, epoch: int, position: int) -> bool:
        """Whether a position is not after the window."""
        return (epoch, position) <= (self.rows.epoch, int(self.rows.positions_P[-1]))

    def segments(self, mine: Slice) -> Iterator[Segment]:
        """The part of a slice that lies in this window, if any."""
        if mine.epoch != self.rows.epoch:
            return
        first, stop = np.searchsorted(self.rows.positions_P, [mine.positions_B[0], mine.positions_B[-1] + 1])
        if first < stop:
            yield Segment(self, int(first), int(stop), int(self.rows.positions_P[first] - mine.positions_B[0]))


@dataclass(frozen=True)
class Segment:
    """Rows [first, stop) of a window, which go into a batch from row `at` on."""

    window: Window
    first: int
    stop: int
    at: int


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What the batches of a reader have in common."""

    inputs: Sequence[Input]
    tokenizers: Mapping[str, Any]
    pinned: bool
    memory: Reused = field(default_factory=Reused)

    def empty(self, rows: int) -> dict[str, torch.Tensor]:
        """Tensors for the inputs of so many pairs, not filled in."""
        return {each.key: self._empty(each, rows) for each in self.inputs}

    def _empty(self, each: Input, rows: int) -> torch.Tensor:
        shape: tuple[int, ...]
        if isinstance(each, Picture):
            shape, dtype = (rows, each.px, each.px, 3), torch.uint8
        elif isinstance(each, Sentence):
            shape, dtype = (rows, each.context), torch.int64
        else:
            shape, dtype = (rows, len(each.gene_ids) if isinstance(each, Profile) else each.width), torch.float32
        if self.pinned:  # torch keeps pinned memory by itself, until copies from it have ended
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        return self.memory.empty(shape, dtype)


@dataclass
class Filling:
    """One batch: begin it, and ask for it when it is needed."""

    frame: Frame
    mine: Slice
    segments: Sequence[Segment]
    drawn: Drawn | None
    _tensors: dict[str, torch.Tensor] = field(init=False)
    _has: dict[str, np.ndarray] = field(init=False)
    _parts: list[Future[int]] = field(init=False, default_factory=list)

    def begin(self, pool: ThreadPoolExecutor) -> Filling:
        """Hand the rows to a pool of threads."""
        rows = len(self.mine.positions_B)
        self._tensors = self.frame.empty(rows)
        self._has = {each.key: np.ones(rows, dtype=bool) for each in self.frame.inputs}
        for segment in self.segments:
            for first in range(segment.first, segment.stop, PART_ROWS):
                stop = min(first + PART_ROWS, segment.stop)
                part = Segment(segment.window, first, stop, segment.at + first - segment.first)
                self._parts.append(pool.submit(self._fill, part))
        return self

    def finish(self) -> Batch:
        """Wait for the rows; gives the batch, or raises what reading it raised."""
        surviving = sum(part.result() for part in self._parts)
        windows = [segment.window for segment in self.segments]
        spans = [slice(segment.first, segment.stop) for segment in self.segments]
        ids = [window.rows.table["pair_id"][span].to_pylist() for window, span in zip(windows, spans, strict=True)]
        pair_ids = [pair_id for some in ids for pair_id in some]
        slides_B = np.concatenate([window.slides_P[span] for window, span in zip(windows, spans, strict=True)])
        said = sum(int(self._has[each.key].sum()) for each in self.frame.inputs if isinstance(each, Sentence))
        return Batch(
            step=self.mine.step,
            epoch=self.mine.epoch,
            positions_B=self.mine.positions_B,
            pair_ids=pair_ids,
            slides_B=torch.from_numpy(slides_B),
            ids_B=torch.from_numpy(np.frombuffer(b"".join(pair[:8] for pair in pair_ids), dtype=np.int64).copy()),
            tensors=self._tensors,
            present={key: torch.from_numpy(has_B) for key, has_B in self._has.items() if not has_B.all()},
            drawn=self.drawn,
            neighbours_BK=self._neighbours(),
            genes_surviving=surviving / said if said else float("nan"),
        )

    def _neighbours(self) -> torch.Tensor | None:
        found = [segment.window.neighbours_PK for segment in self.segments]
        if any(neighbours is None for neighbours in found):
            return None
        width = max(neighbours.shape[1] for neighbours in found if neighbours is not None)
        out_BK = np.full((len(self.mine.positions_B), width), -1, dtype=np.int64)
        for segment, neighbours in zip(self.segments, found, strict=True):
            assert neighbours is not None, "looked at above"
            rows = neighbours[segment.first : segment.stop]
            out_BK[segment.at : segment.at + len(rows), : rows.shape[1]] = rows
        return torch.from_numpy(out_BK)

    def _fill(self, part: Segment) -> int:
        """Fill in some rows; gives how many genes of their sentences reach the model, added up."""
        window, here = part.window, slice(part.at, part.at + part.stop - part.first)
        table = window.rows.table.slice(part.first, part.stop - part.first)
        surviving = 0
        for each in self.frame.inputs:
            into, has = self._tensors[each.key][here].numpy(), self._has[each.key]
            if isinstance(each, Picture):
                has[here] = fill_pictures(table[each.column], into)
            elif isinstance(each, Sentence):
                has[here], genes = fill_tokens(table[each.column], self.frame.tokenizers[each.key], into)
                surviving += genes
            elif isinstance(each, Profile):
                assert window.profiles is not None, "read with the window"
                read = window.profiles.spots if each.of == "spot" else window.profiles.niches
                into[:], has[here] = read(part.first, part.stop)
            else:
                assert window.vectors is not None, "read with the window"
                into[:], has[here] = (found[part.first : part.stop] for found in window.vectors)
        return surviving
