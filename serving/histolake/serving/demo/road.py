"""The steps of `histolake demo`, in order. Each is a public command; this file holds what goes from one to the next."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import histolake.platform
from histolake.platform.lake import Lake, Snapshot
from histolake.platform.settings import load_settings
from histolake.platform.splits import Split
from histolake.platform.tracking import TrackingSettings
from histolake.serving.demo import asking, collect
from histolake.serving.demo.evidence import ClassMap, Evidence, Figures, GeneMap, Query, Recipe
from histolake.serving.demo.markers import marker_sentences
from histolake.serving.demo.runs import Run, better, evaluation_of, find_run, recipe_evidence, train_words
from histolake.serving.demo.splits import choose_split, describe_split
from histolake.serving.demo.steps import Steps, free_port, say, wait_until_up
from histolake.serving.demo.summary import summarise

__all__ = ["RECIPES", "Road"]

RECIPES = ("coca-tiny", "clip-lite0")
SERVE_TIMEOUT_S = 240.0
QUERIES = 4

PLAN = """\
histolake demo, everything in {out}:
  1. sample     choose the cohort: {source}
  2. ingest     read, check, tile and publish it in a lake         half a minute
  3. export     WebDataset shards                                  seconds
  4. train      {recipes}, two workers each          about five minutes
  5. evaluate   both on held-out sections, beside simple methods   one to three minutes
  6. serve      the better one, and ask it over HTTP               about a minute
  7. report     report.html and summary.json                       seconds
Together about ten minutes on two cores. What is there from an earlier run is reused."""


class Road:
    """One run of the demo."""

    def __init__(self, out: Path, from_dir: str | None, port: int) -> None:
        self.out = out
        self.from_dir = from_dir
        self.port = port
        self.lake_uri = str(out / "lake")
        self.steps = Steps({"HISTOLAKE_LAKE": self.lake_uri, **self._own_tracking()})
        self.cohort = ""
        self.why = ""

    # -- where runs go -----------------------------------------------------------------------------------------------

    def _own_tracking(self) -> dict[str, str]:
        """A SQLite file in the folder, unless the person has named a tracking server."""
        uri = next(s for s in load_settings().describe() if s.name == "tracking.uri")
        if uri.source != "default" or os.environ.get("MLFLOW_TRACKING_URI"):
            return {}
        return {"HISTOLAKE_TRACKING__URI": f"sqlite:///{self.out / 'mlflow.db'}"}

    def _tracking(self) -> TrackingSettings:
        overrides: dict[str, object] = {"tracking.uri": self._own_tracking().get("HISTOLAKE_TRACKING__URI")}
        section: TrackingSettings = load_settings(overrides).section("tracking")
        return section

    # -- the road ----------------------------------------------------------------------------------------------------

    def walk(self) -> bool:
        """Every step; whether something was refused. Raises an error if nothing could be published."""
        start = time.monotonic()
        named = self.from_dir or load_settings().sample_dir
        unnamed = "the smallest public one if the network has it, else a simulated one"
        source = f"real sections in {named}" if named else unnamed
        say(PLAN.format(out=self.out, source=source, recipes=" and ".join(RECIPES)))
        self.out.mkdir(parents=True, exist_ok=True)
        for name in ("report.html", "summary.json"):
            # What stands there afterwards is of this run.
            (self.out / name).unlink(missing_ok=True)

        cohort_file = self._sample()
        refused = self._ingest(cohort_file)
        snapshot = Lake.open(self.lake_uri).at()
        slides = [row for row in snapshot.slides().to_pylist() if row["cohort"] == self.cohort]
        split = choose_split(slides)
        say(f"split: {describe_split(split)}")
        shards = self._export(snapshot, slides)
        runs = self._train(snapshot, split)
        recipes, why = self._evaluate(snapshot, split, slides, runs)
        evidence = self._serve(snapshot, split, slides, recipes, why, shards)
        self._report(evidence, time.monotonic() - start)
        return refused

    def _sample(self) -> str:
        with self.steps.timed("sample", "which cohort, and why"):
            cohort = ["--from", self.from_dir] if self.from_dir else ["--public"]
            words = ["sample", "--to", str(self.out / "sample"), *cohort]
            _, rows = self.steps.ask(*words)
        self.cohort, self.why = rows[0]["cohort"], rows[0]["why"]
        return str(rows[0]["file"])

    def _ingest(self, cohort_file: str) -> bool:
        with self.steps.timed("ingest", "files in, pairs out"):
            words = ["ingest", cohort_file, "--lake", self.lake_uri, "--cohort", self.cohort]
            code, rows = self.steps.ask(*words, accept=(0, 3))
        unchanged = sum(row["status"] == "unchanged" for row in rows)
        if unchanged:
            say(f"{unchanged} sections were published by an earlier run and are unchanged: reused.")
        return code == 3

    def _export(self, snapshot: Snapshot, slides: list[dict[str, Any]]) -> int:
        name = f"{self.cohort}-v{snapshot.version}"
        with self.steps.timed("export", "WebDataset shards for other tools' loaders"):
            words = [
                "export",
                name,
                "--lake",
                self.lake_uri,
                "--version",
                str(snapshot.version),
                "--rows-per-shard",
                "256",
            ]
            for row in slides:
                words += ["--slide", row["slide_id"]]
            _, shards = self.steps.ask(*words)
        return len(shards)

    def _train(self, snapshot: Snapshot, split: Split) -> list[Run]:
        runs = []
        for recipe in RECIPES:
            with self.steps.timed("train", recipe):
                where = (self._tracking(), recipe, self.lake_uri, snapshot.version, split)
                run = find_run(*where, reused=True)
                if run is not None:
                    say(f"{run.uri} was trained by this recipe on this lake version and split: reused.")
                else:
                    self.steps.call(*train_words(recipe, self.lake_uri, snapshot.version, split))
                    run = find_run(*where, reused=False)
                    assert run is not None, "a run that ended well has registered its model"
                runs.append(run)
        return runs

    def _evaluate(
        self, snapshot: Snapshot, split: Split, slides: list[dict[str, Any]], runs: list[Run]
    ) -> tuple[tuple[Recipe, ...], str]:
        sides = [side for side in ("validation", "test") if split.lists[side]]
        documents: list[dict[str, Any]] = []
        file = self.out / "evaluation.json"
        with self.steps.timed("evaluate", "the tasks that are served, on held-out sections"):
            if sides:
                words = ["evaluate", *(run.uri for run in runs), "--lake", self.lake_uri, "--out", str(file)]
                self.steps.call(*words, *(word for side in sides for word in ("--side", side)))
                documents = json.loads(file.read_text())["evaluations"]
            recipes = []
            for run in runs:
                found = {side: collect.figures_of(evaluation_of(documents, run, side), split, slides) for side in sides}
                figures: dict[str, Figures] = {side: value for side, value in found.items() if value is not None}
                recipes.append(recipe_evidence(self._tracking(), run, snapshot.version, figures))
            chosen, why = better(recipes)
            say(why)
            served = next(recipe for recipe in chosen if recipe.served)
            version = f"{served.model_name}/{served.model_version}"
            self.steps.call("models", "promote", version, "--alias", "champion")
        return chosen, why

    # -- asking the server -------------------------------------------------------------------------------------------

    def _serve(
        self,
        snapshot: Snapshot,
        split: Split,
        slides: list[dict[str, Any]],
        recipes: tuple[Recipe, ...],
        why: str,
        shards: int,
    ) -> Evidence:
        from histolake.serving.client import Client

        served = next(recipe for recipe in recipes if recipe.served)
        port = self.port or free_port()
        with (
            self.steps.timed("serve", f"{served.model_uri} on Ray Serve, asked over HTTP"),
            self.steps.serving(
                "serve", "--model", f"models:/{served.model_name}@champion", "--port", str(port)
            ) as process,
            Client(f"http://127.0.0.1:{port}", timeout_s=120.0) as client,
        ):
            wait_until_up(process, client.healthy, SERVE_TIMEOUT_S)
            questions = Questions(snapshot, slides, asking.Counter(client))
            questions.ask([slide_id for side in ("test", "validation") for slide_id in split.lists[side]])
        sides = {slide_id: side for side, listed in split.lists.items() for slide_id in listed}
        return Evidence(
            simulated=any(bool(row["simulated"]) for row in slides),
            source=f"Chosen because {self.why}.",
            lake_version=snapshot.version,
            software=histolake.platform.__version__,
            shards=shards,
            sections=collect.sections_of(snapshot, self.cohort, sides),
            recipes=recipes,
            chosen_because=why,
            maps=tuple(questions.maps),
            queries=tuple(questions.queries),
            classes=tuple(questions.classes),
            domain_agreement=questions.agreement,
            served_requests=questions.server.requests,
        )

    def _report(self, evidence: Evidence, so_far: float) -> None:
        from histolake.serving.demo.report import render

        with self.steps.timed("report", "a page for people, figures for programs"):
            evidence = replace(evidence, seconds=dict(self.steps.seconds), commands=tuple(self.steps.commands))
            page = render(evidence)
            (self.out / "report.html").write_text(page, encoding="utf-8")
        seconds = {**self.steps.seconds, "total": so_far + self.steps.seconds["report"]}
        summary = summarise(replace(evidence, seconds=seconds))
        # Last: where it stands, the run has come to its end.
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        say(f"\nreport:  {self.out / 'report.html'}\nsummary: {self.out / 'summary.json'}  ({seconds['total']:.0f} s)")


class Questions:
    """What the running server is asked, and what the report keeps of its answers."""

    def __init__(self, snapshot: Snapshot, slides: list[dict[str, Any]], server: asking.Counter) -> None:
        self.snapshot = snapshot
        self.server = server
        self.rows = {row["slide_id"]: row for row in slides}
        card = server.model()
        self.image_column = str(card["image_column"])
        self.genes = [str(symbol) for symbol in card["genes"]]
        self.maps: list[GeneMap] = []
        self.queries: list[Query] = []
        self.classes: list[ClassMap] = []
        self.agreement: dict[str, float] = {}

    def ask(self, slide_ids: list[str]) -> None:
        """Everything about each held-out section; neighbours for a few patches of the first."""
        for number, slide_id in enumerate(slide_ids):
            held_out = asking.read_held_out(self.snapshot, slide_id, self.image_column)
            if not held_out.images:
                say(f"{slide_id} has no pictures to ask about.")
                continue
            row = self.rows[slide_id]
            classes = marker_sentences(row["organ"], simulated=bool(row["simulated"]))
            ids = self._gene_ids(classes)
            if number == 0:
                width = asking.check_embedding(self.server, held_out)
                say(f"embed: patches and sentences become vectors of {width} numbers")
                self._neighbours(held_out, ids, classes)
            self._section(held_out, row, ids, classes)

    def _gene_ids(self, classes: Mapping[str, str]) -> dict[str, int]:
        """symbol -> gene_id of what the model predicts and of the markers, where the lake knows it."""
        symbols = list(dict.fromkeys([*self.genes, *(s for words in classes.values() for s in words.split())]))
        ids = self.snapshot.lake.resolve_genes(symbols)
        return {symbol: int(gene_id) for symbol, gene_id in zip(symbols, ids, strict=True) if gene_id >= 0}

    def _neighbours(self, held_out: asking.HeldOut, ids: Mapping[str, int], classes: Mapping[str, str]) -> None:
        chosen = collect.choose_queries(held_out, ids, classes, QUERIES)
        hits = asking.ask_neighbours(self.server, [held_out.images[index] for index in chosen])
        pictures = collect.pictures_of(self.snapshot, self.image_column, hits)
        self.queries += collect.queries_of(held_out, chosen, hits, pictures)
        say(f"retrieve: the nearest training spots of {len(chosen)} patches of {held_out.slide_id}")

    def _section(
        self, held_out: asking.HeldOut, row: dict[str, Any], ids: Mapping[str, int], classes: Mapping[str, str]
    ) -> None:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"predict and annotate {held_out.slide_id}", total=len(held_out.images))
            answers = asking.ask_about(
                self.server, held_out, classes, lambda done, of: bar.update(task, completed=done, total=of)
            )
        say(f"predict, annotate: {len(held_out.images)} patches of {held_out.slide_id}, {len(answers.genes)} genes")
        spot_px = float(row["spot_diameter_um"] or 0) / float(row["um_per_px"] or 1)
        markers = [sentence.split()[place] for place in range(4) for sentence in classes.values()]
        self.maps += collect.gene_maps(held_out, answers, ids, markers, spot_px)
        self.classes += collect.class_maps(held_out, answers, ids, classes, spot_px)
        truth = _truth(row["source"]) if row["simulated"] else {}
        share = collect.domain_agreement(held_out, answers, truth)
        if share is not None:
            self.agreement[held_out.slide_id] = share


def _truth(source: str) -> dict[str, str]:
    """barcode -> true domain of a simulated section; nothing where its truth is not beside it."""
    import pyarrow.parquet as pq

    from histolake.platform.storage import Location

    file = Location.parse(source).join("truth.parquet")
    if not file.is_file():
        return {}
    table = pq.read_table(file.local_path(), columns=["barcode", "domain"])
    return dict(zip(table["barcode"].to_pylist(), table["domain"].to_pylist(), strict=True))
