"""`report.html`: one page that needs nothing but itself. Pictures are inside it; it asks no machine for anything.

Words and layout are in `report.html.j2`; here the evidence becomes what that template names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from histolake.platform.page import fill
from histolake.serving.demo import figures
from histolake.serving.demo.evidence import SIDE_NAMES, Evidence, Figures, GeneMap, Query, Recipe, Section
from histolake.serving.demo.reading import read_figures

__all__ = ["render"]

SHOWN_SYMBOLS = 8  # of a sentence
MAPS_A_ROW = 4


def render(evidence: Evidence) -> str:
    """The page as HTML."""
    filters = {"percent": _percent, "number": _number}
    return fill("histolake.serving.demo", "report.html.j2", _context(evidence), filters)


def _context(evidence: Evidence) -> dict[str, Any]:
    served = evidence.served
    return {
        "e": evidence,
        "served": served,
        "label": "simulated" if evidence.simulated else "real tissue",
        "stamp": f"lake version {evidence.lake_version}, {served.model_name} version {served.model_version}",
        "lake_stamp": f"lake version {evidence.lake_version}",
        "recipes_stamp": f"lake version {evidence.lake_version}, " + ", ".join(_named(r) for r in evidence.recipes),
        "reading": read_figures(evidence),
        "cards": _cards(evidence),
        "sections": [_section(section) for section in evidence.sections],
        "loss": figures.loss_figure(evidence.recipes) if any(recipe.loss for recipe in evidence.recipes) else None,
        "sides": [_side(evidence, side) for side in ("test", "validation") if side in served.figures],
        "rows": [_row(recipe) for recipe in evidence.recipes],
        "queries": [_query(query) for query in evidence.queries],
        "maps": _maps(evidence),
        "classes": _classes(evidence),
        "seconds": [(step, seconds) for step, seconds in evidence.seconds.items()],
    }


def _named(recipe: Recipe) -> str:
    return f"{recipe.model_name} version {recipe.model_version} ({recipe.name})"


def _cards(evidence: Evidence) -> list[tuple[str, str]]:
    published = evidence.published
    patients = {section.patient or section.slide_id for section in published}
    pairs = sum(section.n_pairs for section in published)
    refused = sum(section.n_spots - section.n_pairs for section in published)
    return [
        (str(len(published)), "sections"),
        (str(len(patients)), "patients"),
        (f"{pairs:,}", "pairs published"),
        (f"{refused:,}", "spots refused"),
        (f"{evidence.served_requests:,}", "requests answered"),
    ]


def _section(section: Section) -> dict[str, Any]:
    rules = [f"{count} {_words(rule)}" for rule, count in section.refused.items() if count]
    return {
        "s": section,
        "name": section.slide_id.rsplit("/", 1)[-1],
        "side": SIDE_NAMES[section.side] if section.published else "refused",
        "picture": figures.section_figure(section) if section.width_px and section.height_px else None,
        "refused": "; ".join(rules),
        "flags": [_words(flag) for flag in section.flags],
    }


def _words(name: str) -> str:
    return name.replace("_", " ").replace("-", " ")


def _side(evidence: Evidence, side: str) -> dict[str, Any]:
    served = evidence.served
    own: Figures = served.figures[side]
    names = ", ".join(slide_id.rsplit("/", 1)[-1] for slide_id in own.slide_ids)
    return {
        "title": names,
        "mark": "same patient, used to choose" if own.same_patient else _other_mark(side),
        "same": own.same_patient,
        "n": own.n_pairs,
        "recall": figures.recall_figure(evidence.recipes, side) if own.recall_at_5pct is not None else None,
        "pearson": figures.pearson_figure(own, served) if own.pcc_G is not None else None,
        "genes": len(own.genes),
    }


def _other_mark(side: str) -> str:
    return "another patient" if side == "test" else "another patient, used to choose"


def _row(recipe: Recipe) -> dict[str, Any]:
    return {"r": recipe, "test": recipe.figures.get("test"), "validation": recipe.figures.get("validation")}


def _query(query: Query) -> dict[str, Any]:
    own = query.sentence.split()
    hits = []
    for hit in query.hits:
        theirs = hit.sentence.split()
        shared = [symbol for symbol in theirs if symbol in set(own)]
        hits.append(
            {
                "picture": figures.photograph(hit.picture) if hit.picture else None,
                "where": f"{hit.slide_id.rsplit('/', 1)[-1]} · {hit.barcode}",
                "score": f"{hit.score:.2f}",
                "symbols": [(symbol, symbol in set(own)) for symbol in theirs[:SHOWN_SYMBOLS]],
                "shared": len(shared),
                "of": len(theirs),
            }
        )
    return {
        "picture": figures.photograph(query.picture),
        "where": f"{query.slide_id.rsplit('/', 1)[-1]} · {query.barcode}",
        "symbols": own[:SHOWN_SYMBOLS],
        "hits": hits,
    }


def _maps(evidence: Evidence) -> list[dict[str, Any]]:
    """One figure a section and reason, of a few genes each."""
    groups: defaultdict[tuple[str, str], list[GeneMap]] = defaultdict(list)
    for one in evidence.maps:
        groups[one.slide_id, one.why].append(one)
    return [
        {
            "section": slide_id.rsplit("/", 1)[-1],
            "why": why,
            "picture": figures.gene_figure(_first(maps)),
            "genes": ", ".join(one.gene for one in _first(maps)),
        }
        for (slide_id, why), maps in groups.items()
    ]


def _first(maps: Sequence[GeneMap]) -> Sequence[GeneMap]:
    return maps[:MAPS_A_ROW]


def _classes(evidence: Evidence) -> list[dict[str, Any]]:
    slide_ids = list(dict.fromkeys(one.slide_id for one in evidence.classes))
    found = []
    for slide_id in slide_ids:
        classes = [one for one in evidence.classes if one.slide_id == slide_id]
        found.append(
            {
                "section": slide_id.rsplit("/", 1)[-1],
                "picture": figures.class_figure(classes),
                "shares": [(one.name, one.share, ", ".join(one.markers)) for one in classes],
                "agreement": evidence.domain_agreement.get(slide_id),
            }
        )
    return found


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
