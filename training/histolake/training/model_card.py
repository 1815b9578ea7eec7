"""A model's card for people: what it is, what it learned from, how good it is, and what it is not for. Markdown.

Everything in it is read from the run, the split and the catalogue; nothing is typed in. The headings follow Mitchell et
al. 2019 ("Model Cards for Model Reporting").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from histolake.training.inputs import Picture, Profile, Sentence, inputs_from_card

__all__ = ["CARD_TEXT_FILE", "Evidence", "model_card"]

CARD_TEXT_FILE = "MODEL_CARD.md"
NAMED = 12  # values that are listed; the others are counted
FEW_PATIENTS = 5
UNKNOWN = "not stated"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a card is written from."""

    name: str  # the registered model
    summary: str  # the recipe's
    card: Mapping[str, Any]  # the model folder's
    slides: Sequence[Mapping[str, Any]]  # catalogue rows of every side, each with its `side`
    pairs: Mapping[str, int]  # of each side
    steps: int
    global_batch: int
    workers: int
    seconds: float
    figures: Mapping[str, float] = field(default_factory=dict)  # of the validation side, by name
    mark: str = ""  # what has to be said beside them
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages


def model_card(evidence: Evidence) -> str:
    """The card's text."""
    parts = [_head(evidence), _use(evidence), _data(evidence), _training(evidence), _figures(evidence)]
    return "\n\n".join([*parts, _limits(evidence), _lineage(evidence)]) + "\n"


def _head(evidence: Evidence) -> str:
    card = evidence.card
    return (
        f"# {evidence.name}: {card['recipe']}\n\n{evidence.summary}.\n\n"
        f"It reads {_reads(card)}, and gives vectors of {card['embed_dim']} numbers."
    )


def _use(evidence: Evidence) -> str:
    text = "## Use\n\nResearch use only: not for diagnosis, treatment or any other decision about a patient."
    if evidence.card.get("simulated"):
        text += "\n\n**Some of its slides are simulated: its figures say nothing about tissue.**"
    return text


def _data(evidence: Evidence) -> str:
    trained = [row for row in evidence.slides if row["side"] in ("train", "blocks")]
    lake, where = evidence.card["lake"], evidence.card.get("where")
    filtered = f", of which `{where}` is true" if where else ""
    lines = [f"Version {lake['version']} of the lake {lake['uri']}{filtered}.", "", *_sides(evidence), ""]
    lines.append("Of the slides that it was trained on:")
    lines.append("")
    for title, column in (
        ("organs", "organ"),
        ("species", "species"),
        ("technologies", "technology"),
        ("diseases", "disease"),
        ("licences", "licence"),
        ("accessions", "accession"),
    ):
        lines.append(f"- {title}: {_counted(row.get(column) for row in trained)}")
    return "## Data\n\n" + "\n".join(lines)


def _sides(evidence: Evidence) -> list[str]:
    table = ["| side | slides | patients | studies | pairs |", "| --- | ---: | ---: | ---: | ---: |"]
    for side in sorted({str(row["side"]) for row in evidence.slides}):
        rows = [row for row in evidence.slides if row["side"] == side]
        pairs = evidence.pairs.get(side)
        told = UNKNOWN if pairs is None else f"{pairs:,}"
        table.append(
            f"| {side} | {len(rows)} | {_patients(rows)} | {len({row.get('study') for row in rows})} | {told} |"
        )
    return table


def _patients(rows: Iterable[Mapping[str, Any]]) -> str:
    rows = list(rows)
    known = {(row.get("study"), row["patient"]) for row in rows if row.get("patient")}
    unknown = sum(not row.get("patient") for row in rows)
    return f"{len(known)}" + (f" and {unknown} slides without one" if unknown else "")


def _counted(values: Iterable[Any]) -> str:
    counts = Counter(str(value) if value else UNKNOWN for value in values)
    named = [f"{value} ({count})" for value, count in counts.most_common(NAMED)]
    return ", ".join(named) + (f" and {len(counts) - NAMED} more" if len(counts) > NAMED else "")


def _training(evidence: Evidence) -> str:
    lines = [f"{evidence.steps:,} steps of {evidence.global_batch} pairs on {evidence.workers} workers"]
    lines[0] += f", {evidence.seconds / 60:.0f} minutes. The model is that after step {evidence.card['step']:,}."
    surviving = evidence.card.get("genes_surviving_tokenizer")
    if surviving is not None:
        lines.append(f"Of the genes of a sentence, {surviving:.1f} reach the encoder in the mean.")
    for name, held in (evidence.card.get("withheld") or {}).items():
        lines.append(f"Its frozen encoder's weights ({name}) are gated and not part of it: {held}.")
    return "## Training\n\n" + "\n\n".join(lines)


def _figures(evidence: Evidence) -> str:
    if not evidence.figures:
        return "## Figures\n\nNo slide was on the validation side: nothing is known of how good it is."
    mark = f" **{evidence.mark}.**" if evidence.mark else ""
    rows = [f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in sorted(evidence.figures.items())]
    return "\n".join(
        [f"## Figures\n\nOf the validation side, means over slides.{mark}\n", "| | |", "| --- | ---: |", *rows]
    )


def _limits(evidence: Evidence) -> str:
    trained = [row for row in evidence.slides if row["side"] in ("train", "blocks")]
    limits = [
        "It ranks what it has seen: pictures of other tissue, another stain, scanner or resolution get answers too.",
    ]
    patients = {(row.get("study"), row["patient"]) for row in trained if row.get("patient")}
    if len(patients) < FEW_PATIENTS:
        limits.append(f"It saw {len(patients)} known patients: expect little from it on others.")
    for column, title in (("organ", "organ"), ("technology", "technology"), ("species", "species")):
        values = {row.get(column) for row in trained if row.get(column)}
        if len(values) == 1:
            limits.append(f"All its slides are of one {title}: {values.pop()}.")
    unlicensed = sum(not row.get("licence") for row in trained)
    if unlicensed:
        limits.append(f"For {unlicensed} of its {len(trained)} slides the catalogue states no licence.")
    um = evidence.card.get("image_um")
    if um:
        limits.append(f"Its pictures show {um:g} um of tissue; give it pictures of that width.")
    return "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits)


def _lineage(evidence: Evidence) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in sorted(evidence.versions.items()))
    return (
        f"## Lineage\n\nRun {evidence.card['run_id']}. `histolake models lineage {evidence.name}/VERSION` lists every "
        f"slide with its source.\n\nMade with {packages or UNKNOWN}."
    )


def _reads(card: Mapping[str, Any]) -> str:
    """What it reads of a pair, in words."""
    told = []
    for each in inputs_from_card(card["inputs"]):
        if isinstance(each, Picture):
            told.append(f"the {each.column.replace('_', ' ')} at {each.px} px")
        elif isinstance(each, Sentence):
            told.append(f"the {each.column.replace('_', ' ')} ({each.tokenizer}, {each.context} tokens)")
        elif isinstance(each, Profile):
            told.append(f"the {each.of}'s profile of {len(each.gene_ids):,} genes")
        else:
            told.append(f"vectors of the table {each.table}")
    return ", ".join(told)
