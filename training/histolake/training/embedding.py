"""Embedding a lake: every pair of a version under one model, into `embeddings/<model>-v<n>.lance`.

A slide is claimed, cut into runs, embedded by workers that write fragments, and appended in one commit when its last
run is in; slides whose rows are in the table already are passed over. So a run that was killed leaves whole slides
behind, and the next one does the others. Two runs at once share the slides. What was forgotten meanwhile is taken out
at the end; a crash before that leaves it to vacuum.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from histolake.platform.errors import LakeError
from histolake.platform.lake import Fragment, Lake, Snapshot
from histolake.platform.lake.embeddings.claims import claimed, let_go, take
from histolake.platform.lake.embeddings.table import About, EmbeddingTable
from histolake.platform.lake.embeddings.tables import writing
from histolake.training.embed_pool import Crew, Pool, in_process, on_ray
from histolake.training.embed_worker import EmbedPlan, Work, Written
from histolake.training.models.files import model_digest, read_card
from histolake.training.registry import ResolvedModel

__all__ = ["EmbedOutcome", "Progress", "embed_lake", "model_uri", "table_name"]

Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much
RUN_ROWS = (256, 4096)  # pairs a fragment holds at least (unless its slide has fewer) and at most
CLAIM = "embed"
OTHER_WIDTH = 0.1  # relative difference from which a slide's pictures count as of another width than the model's


@dataclass(frozen=True, kw_only=True)
class EmbedOutcome:
    """What came of a run."""

    table: str
    model: str
    lake_version: int
    device: str
    workers: int
    slides: int  # that were asked for
    embedded: int  # slides, in this run
    skipped: int  # slides whose vectors were there
    elsewhere: int  # slides that another run is at
    forgotten: int  # slides that were removed from the lake meanwhile
    failed: int  # slides
    other_width: int  # slides whose pictures show another width than the model was trained on
    pairs: int  # embedded in this run
    without_image: int  # of them; their vector is null
    without_sentence: int
    index: str  # what there is to search with
    seconds: float
    problems: tuple[str, ...] = ()

    def flat(self) -> dict[str, Any]:
        """As one row."""
        return {**self.__dict__, "problems": "; ".join(self.problems)}


def model_uri(model: str) -> str:
    """NAME@ALIAS and NAME/VERSION as URIs of the registry; folders and URIs as they are."""
    if model.startswith(("models:/", "runs:/")) or (Path(model) / "model.json").is_file():
        return model
    return f"models:/{model}" if "@" in model or re.fullmatch(r"[^/]+/\d+", model) else model


def table_name(found: ResolvedModel, digest: str) -> str:
    """The table of a registered version, or of a plain folder by its name and digest."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", found.name or found.path.name)
    return f"{name}-v{found.version}" if found.version else f"{name}-{digest[:12]}"


def embed_lake(
    snapshot: Snapshot,
    found: ResolvedModel,
    crew: Crew,
    *,
    where: str | None = None,
    batch: int | None = None,
    index: bool = True,
    ray: bool = True,
    tell: Progress = lambda *_: None,
) -> EmbedOutcome:
    """Embed the slides of a lake version for which `where` is true, those that are not yet, and index the table.

    With `ray` (which must be running) the crew are actors, else this process does the work. Safe to run again.
    """
    began = time.monotonic()
    card, digest = read_card(found.path), model_digest(found.path)
    about = About(
        model=found.name or found.path.name,
        version=found.version,
        digest=digest,
        width=int(card["embed_dim"]),
        image_column=str(card["image_column"]),
        image_um=card.get("image_um"),
    )
    name = table_name(found, digest)
    lake = snapshot.lake
    table = lake.embeddings.create(name, about)
    plan = EmbedPlan(
        root=lake.root,
        version=snapshot.version,
        table=table.location,
        width=about.width,
        model_uri=found.uri,
        model_folder=str(found.path.resolve()),
        digest=digest,
        image_column=about.image_column,
    )
    plan = crew.equip(plan, batch)
    with snapshot.reading(writing(name)):
        run = _Run(lake, table, snapshot.slides(where=where).to_pylist(), crew.workers, tell)
        run.through(on_ray(plan, crew) if ray else in_process(plan))
        forgotten = run.take_out_forgotten()
        indexed = _index(lake, table, tell) if index else "not looked at"
    return EmbedOutcome(
        table=name,
        model=found.uri,
        lake_version=snapshot.version,
        device=crew.device,
        workers=crew.workers,
        slides=len(run.slides),
        embedded=len(run.embedded - forgotten),
        skipped=run.skipped,
        elsewhere=run.elsewhere,
        forgotten=len(forgotten),
        failed=len(run.problems),
        other_width=sum(_differs(row, about) for row in run.slides),
        pairs=run.pairs,
        without_image=run.without_image,
        without_sentence=run.without_sentence,
        index=indexed,
        seconds=round(time.monotonic() - began, 2),
        problems=tuple(run.problems.values()),
    )


def _differs(row: dict[str, Any], about: About) -> bool:
    shown = row["spot_um"] if about.image_column == "spot_image" else row["niche_um"]
    return bool(shown and about.image_um) and abs(shown / about.image_um - 1) > OTHER_WIDTH


def _index(lake: Lake, table: EmbeddingTable, tell: Progress) -> str:
    with claimed(lake.root, lake.keeper, CLAIM, f"{table.name}-index") as ours:
        if not ours:
            return "made by another run"
        tell("indexing", 0, 1)
        states = table.index()
        tell("indexing", 1, 1)
    return ", ".join(f"{s.name}: {s.kind}, {s.cells} cells" for s in states) or "none: all vectors are compared"


@dataclass
class _Slide:
    """A slide under way."""

    slide_id: str
    claim: str
    works: int
    written: dict[int, Written] = field(default_factory=dict)


class _Run:
    """One embedding of a lake under way."""

    def __init__(
        self, lake: Lake, table: EmbeddingTable, slides: list[dict[str, Any]], workers: int, tell: Progress
    ) -> None:
        self.slides = slides
        self.skipped = self.elsewhere = self.pairs = 0
        self.embedded: set[str] = set()  # ingests
        self.without_image = self.without_sentence = 0
        self.problems: dict[str, str] = {}  # by ingest
        self._lake, self._table, self._tell = lake, table, tell
        self._under_way: dict[str, _Slide] = {}
        view = table.view()
        self._there, self._seen = view.ingests(), int(view.dataset.version)  # the table, and at which version
        there = self._there
        self._todo = [row for row in slides if there.get(row["ingest_id"], 0) != row["n_pairs"]]
        self.skipped += len(slides) - len(self._todo)
        self._total = sum(row["n_pairs"] for row in self._todo)
        self._done = 0
        self._run_rows = min(RUN_ROWS[1], max(RUN_ROWS[0], self._total // (4 * workers)))

    def through(self, pool: Pool) -> None:
        """Take every slide that is left through the workers."""
        try:
            for written in pool(self._works()):
                self._take(written)
        finally:
            for slide in self._under_way.values():
                let_go(self._lake.keeper, slide.claim)
            self._under_way.clear()

    def _works(self) -> Iterator[Work]:
        """Runs of the slides as they are claimed, one slide after the other as workers get free."""
        for row in self._todo:
            ingest_id, rows = row["ingest_id"], row["n_pairs"]
            claim = take(self._lake.root, self._lake.keeper, CLAIM, f"{self._table.name}-{ingest_id}")
            if claim is None:
                self.elsewhere += 1
                self._advance(rows)
                continue
            held = self._held(ingest_id)
            if held == rows:  # another run was done with it a moment ago
                let_go(self._lake.keeper, claim)
                self.skipped += 1
                self._advance(rows)
                continue
            if held:
                self._table.drop([ingest_id])
                self._seen = 0
            starts = range(0, rows, self._run_rows)
            self._under_way[ingest_id] = _Slide(row["slide_id"], claim, len(starts))
            for number, start in enumerate(starts):
                yield Work(
                    ingest_id=ingest_id,
                    slide_id=row["slide_id"],
                    number=number,
                    start=start,
                    stop=min(start + self._run_rows, rows),
                )

    def _held(self, ingest_id: str) -> int:
        """How many rows of an ingest the table has now. It is read anew only where others have written to it."""
        if int(self._table.dataset().version) != self._seen:
            view = self._table.view()
            self._there, self._seen = view.ingests(), int(view.dataset.version)
        return self._there.get(ingest_id, 0)

    def _take(self, written: Written) -> None:
        """Note one run; with the last of its slide, commit them all."""
        slide = self._under_way[written.ingest_id]
        slide.written[written.number] = written
        self._advance(written.rows)
        if len(slide.written) < slide.works:
            return
        parts = [slide.written[number] for number in range(slide.works)]
        problem = next((part.problem for part in parts if part.problem is not None), None)
        if problem is None:
            try:
                self._lake.keeper.ensure(slide.claim)  # that this process was not taken for dead while it slept
                self._append(written.ingest_id, parts)
            except LakeError as error:
                problem = str(error)
        if problem is not None:
            self.problems[written.ingest_id] = f"{slide.slide_id}: {problem}"
        del self._under_way[written.ingest_id]
        let_go(self._lake.keeper, slide.claim)

    def _append(self, ingest_id: str, parts: list[Written]) -> None:
        fragments: list[Fragment] = [part.fragment for part in parts if part.fragment is not None]
        before = int(self._table.dataset().version)
        self._table.append(fragments)
        if before == self._seen and int(self._table.dataset().version) == before + 1:
            self._seen += 1  # the one commit was ours
        self.embedded.add(ingest_id)
        self.pairs += sum(part.rows for part in parts)
        self.without_image += sum(part.without_image for part in parts)
        self.without_sentence += sum(part.without_sentence for part in parts)

    def _advance(self, rows: int) -> None:
        self._done += rows
        self._tell("embedding pairs", self._done, self._total)

    def take_out_forgotten(self) -> set[str]:
        """The slides of this run that the lake no longer has; their rows, if any were written, go again."""
        named = set(self._lake.catalog.slides(["ingest_id"])["ingest_id"].to_pylist())
        gone = {row["ingest_id"] for row in self._todo} - named
        if gone:
            self._lake.embeddings.drop(gone)
        for ingest_id in gone:
            self.problems.pop(ingest_id, None)
        return gone
