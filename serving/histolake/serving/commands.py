"""Commands of serving: `histolake serve`, `histolake evaluate`."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from histolake.serving.evaluation.protocol import Subject

__all__ = ["evaluate", "serve"]

DEFAULT_MODEL = "models:/omiclip@champion"
SIDES = ("validation", "test")


def serve(
    model: Annotated[
        str, typer.Option("--model", help="Which model: models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder.")
    ] = DEFAULT_MODEL,
    port: Annotated[int | None, typer.Option(help="TCP port; 8000 unless the settings say otherwise.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; loopback unless the settings say otherwise.")
    ] = None,
) -> None:
    """Serve a registered model over HTTP: embed, retrieve, predict, annotate.

    Runs until Ctrl-C or SIGTERM and leaves nothing behind. The routes are described at URL/docs.

    Example: `histolake serve --model models:/omiclip@champion --port 8000`, then
    `curl http://127.0.0.1:8000/v1/model`, or in Python `histolake.serving.Client(url).predict([jpeg])`.
    """
    from histolake.platform.settings import load_settings
    from histolake.serving.service.server import running

    settings = load_settings({"service.port": port, "service.host": host})
    typer.echo(f"starting {model} ...", err=True)
    stop = threading.Event()
    try:
        results = sys.stdout  # Ray's own words go to stderr for as long as it runs
        with running(model, settings.section("service"), settings.section("cluster")) as url:
            # Ray and Serve have set their own by now.
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, _setter(stop))
            typer.echo(_welcome(url), file=results)
            while not stop.wait(1.0):
                pass
            typer.echo("stopping ...", err=True)
    except KeyboardInterrupt:
        typer.echo("stopped while starting", err=True)


def _setter(stop: threading.Event) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    return handle


def _welcome(url: str) -> str:
    json_type = "-H 'Content-Type: application/json'"
    return "\n".join(
        [
            f"ready at {url}  (routes: {url}/docs; stop with Ctrl-C)",
            "",
            f"  curl -s {url}/v1/model",
            f"""  curl -s {url}/v1/retrieve {json_type} -d '{{"sentences": ["ERBB2 KRT8 KRT18"], "k": 3}}'""",
            f"""  echo '{{"images": ["'$(base64 -w0 patch.jpg)'"]}}' | curl -s {url}/v1/predict {json_type} -d @-""",
        ]
    )


def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a model folder."),
    ],
    lake: Annotated[str | None, typer.Option(help="URI of the lake.", envvar="HISTOLAKE_LAKE")] = None,
    side: Annotated[list[str] | None, typer.Option(help="validation or test; may be given twice.")] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Lake version: a number or a tag; the one the model was trained on if left out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything, figures per gene too, to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array on stdout, nothing else.")] = False,
) -> None:
    """Measure models on slides they were not trained on, beside what simple methods reach there.

    For each slide of the side, and for all of them: Recall@5% and @10% of the right gene sentence among the section's
    own (chance 0.05 and 0.10), Pearson per gene of predicted against measured expression, and the same for a linear
    CCA, a ridge regression and the training mean. The column `mark` says what a figure must not be mistaken for.

    Example: `histolake evaluate models:/omiclip@champion --lake ./lake --side validation --side test --out out.json`
    """
    from histolake.platform.errors import UsageError

    sides = side or ["test"]
    wrong = [name for name in sides if name not in SIDES]
    if wrong:
        raise UsageError(f"--side is {wrong[0]!r}; it is validation or test.")

    from rich.console import Console

    from histolake.platform.lake import Lake
    from histolake.platform.settings import load_settings
    from histolake.serving.evaluation.protocol import Evaluator
    from histolake.serving.published import find_published

    settings = load_settings()
    uri = lake or settings.lake
    if uri is None:
        raise UsageError("No lake is named; give --lake URI or set HISTOLAKE_LAKE.")
    opened = Lake.open(uri)
    progress = Console(stderr=True)
    evaluators: dict[int, Evaluator] = {}
    rows: list[dict[str, Any]] = []
    documents: list[dict[str, Any]] = []
    for model in models:
        subject = _subject(find_published(model, settings))
        at = opened.resolve(version if version is not None else int(subject.card["lake"]["version"]))
        if at not in evaluators:
            snapshot = opened.at(at)
            if snapshot.notice:
                progress.print(snapshot.notice, highlight=False)
            evaluators[at] = Evaluator(snapshot, lambda what: progress.print(what, style="dim", highlight=False))
        for name in sides:
            with evaluators[at].snapshot.reading(f"evaluate {model}"):
                found = evaluators[at].run(subject, name)
            rows += found.rows
            documents.append({"rows": found.rows, "genes": found.genes, "baselines": found.baselines})
    if out is not None:
        content = {"format": "histolake-evaluation", "format_version": 1, "lake": opened.uri, "evaluations": documents}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1, allow_nan=False))
        progress.print(f"written to {out}", highlight=False)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, allow_nan=False))
    else:
        _print_table(rows)


def _subject(published: Any) -> Subject:
    from histolake.serving.evaluation.protocol import Subject
    from histolake.serving.tasks import load_reference
    from histolake.training.models import load_model

    folder = published.local()
    model = load_model(folder)
    return Subject(
        uri=published.uri,
        name=published.name,
        version=published.version,
        card=model.card,
        encoder=model,
        reference=load_reference(folder),
    )


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = {
        "R@5%": "recall_at_5pct",
        "CCA": "recall_at_5pct_cca",
        "R@10%": "recall_at_10pct",
        "CCA ": "recall_at_10pct_cca",
        "Pearson": "pcc_mean",
        "ridge": "pcc_mean_ridge",
        "mean": "pcc_mean_mean_predictor",
    }
    several = len({row["model"] for row in rows}) > 1
    table = Table(*(["model"] if several else []), "side", "slide", "spots", *columns, box=None, padding=(0, 1, 0, 0))
    marks: dict[str, str] = {}
    for row in rows:
        figures = ["-" if row[key] is None else f"{row[key]:.3f}" for key in columns.values()]
        table.add_row(*([row["model"]] if several else []), row["side"], row["slide_id"], str(row["n_spots"]), *figures)
        marks |= {row["side"]: row["mark"]} if row["slide_id"] == "all" and row["mark"] else {}
    console = Console()
    console.print(table)
    console.print(
        f"{', '.join(dict.fromkeys(row['model'] for row in rows))}; lake version {rows[0]['lake_version']}. "
        "Chance: R@5% 0.050, R@10% 0.100. Pearson per gene over spots.",
        highlight=False,
    )
    for side, mark in marks.items():
        console.print(f"{side}: {mark}", highlight=False)
