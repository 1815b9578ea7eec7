"""The sentences at the top of the report: what a curator can act on, most pressing first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from histolake.ingestion.report.advice import flag_words, rule_words
from histolake.ingestion.report.facts import Cohort, Section

__all__ = ["Verdict", "verdicts"]

NAMED = 4  # names in a sentence before "and n more"
MUCH_LOST = 0.3  # share of a section's spots lost to quality rules that is worth a word
SINGLED = ("low_resolution", "image: none", "look_alike")  # flags with a sentence of their own


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One sentence. `tone` is good, look or act."""

    tone: str
    text: str
    where: str  # the part of the page that shows it


def verdicts(cohort: Cohort) -> list[Verdict]:
    """All sentences that apply."""
    found = [*_refused(cohort), *_scale(cohort), *_alike(cohort), *_blanks(cohort), *_flags(cohort), *_spots(cohort)]
    found += _made(cohort)
    order = {"act": 0, "look": 1, "good": 2}
    return [_published(cohort), *sorted(found, key=lambda verdict: order[verdict.tone])]


def _names(sections: Sequence[Section]) -> str:
    several = len({section.slide_id.split("/", 1)[0] for section in sections}) > 1
    names = [section.slide_id if several else section.name for section in sections]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _sections(n: int, one: str = "", many: str = "") -> str:
    return f"{n} section {one}".strip() if n == 1 else f"{n} sections {many}".strip()


def _published(cohort: Cohort) -> Verdict:
    pairs = sum(section.row["n_pairs"] or 0 for section in cohort.published)
    n, all_n = len(cohort.published), len(cohort.sections)
    if not n:
        return Verdict(tone="act", text=f"None of {_sections(all_n)} was published.", where="refused")
    every = "All" if n == all_n else f"{n} of"
    text = f"{every} {_sections(all_n)} {'was' if n == all_n == 1 else 'were'} published, with {pairs:,} pairs."
    if n == all_n == 1:
        text = f"The section was published, with {pairs:,} pairs."
    return Verdict(tone="good", text=text, where="sections")


def _refused(cohort: Cohort) -> list[Verdict]:
    if not cohort.refused:
        return []
    said = "; ".join(
        f"{section.name}: {rule_words(section.refusal.rule)}" if section.refusal else section.name
        for section in cohort.refused[:NAMED]
    )
    more = f"; and {len(cohort.refused) - NAMED} more" if len(cohort.refused) > NAMED else ""
    text = f"{_sections(len(cohort.refused), 'was', 'were')} refused ({said}{more})."
    return [Verdict(tone="act", text=text, where="refused")]


def _scale(cohort: Cohort) -> list[Verdict]:
    apart = [s for s in cohort.refused if s.refusal and s.refusal.rule == "scale_agrees"]
    trusted = [s for s in cohort.published if _spread(s) > cohort.tolerance]
    alone = [s for s in cohort.published if s.row.get("scales") is not None and len(s.row["scales"]) == 1]
    found = []
    if apart:
        text = f"{_sections(len(apart), 'states', 'state')} scales that disagree ({_names(apart)}): say which to trust."
        found.append(Verdict(tone="act", text=text, where="scale"))
    if trusted:
        apart_words = f"{_sections(len(trusted), 'has', 'have')} scales more than {cohort.tolerance:.0%} apart"
        text = f"{apart_words} and came in because one was named as the one to trust ({_names(trusted)})."
        found.append(Verdict(tone="look", text=text, where="scale"))
    if alone:
        text = f"The scale of {_sections(len(alone))} rests on one statement and could not be checked: {_names(alone)}."
        found.append(Verdict(tone="look", text=text, where="scale"))
    return found


def _spread(section: Section) -> float:
    """How far apart a section's statements of the scale are, as a fraction."""
    values = [scale["um_per_px"] for scale in section.row.get("scales") or () if scale["um_per_px"]]
    return max(values) / min(values) - 1 if values else 0.0


def _alike(cohort: Cohort) -> list[Verdict]:
    if not cohort.alike:
        return []
    n = len(cohort.alike)
    words = f"{n} pair of sections looks" if n == 1 else f"{n} pairs of sections look"
    text = f"{words} alike: if they are the same tissue, they must not be on two sides of a split."
    return [Verdict(tone="look", text=text, where="alike")]


def _blanks(cohort: Cohort) -> list[Verdict]:
    published = cohort.published
    found = []
    no_patient = [s for s in published if s.said("patient") is None]
    by_study = [s for s in no_patient if s.said("study") is not None]
    by_cohort = [s for s in no_patient if s.said("study") is None]
    for sections, unit in ((by_study, "study"), (by_cohort, "cohort")):
        if sections:
            why = "" if unit == "study" else " and no study"
            splits = "it splits" if len(sections) == 1 else "they split"
            text = (
                f"{_sections(len(sections), 'has', 'have')} no patient{why}: {splits} by "
                f"{unit}, all of one {unit} on one side ({_names(sections)})."
            )
            found.append(Verdict(tone="act", text=text, where="table"))
    for name in ("licence", "species", "organ", "technology"):
        blank = [s for s in published if s.said(name) is None]
        if blank:
            text = f"{name.capitalize()} is blank in {len(blank)} of {len(published)} ({_names(blank)})."
            found.append(Verdict(tone="act" if name == "licence" else "look", text=text, where="table"))
    licences = Counter(s.said("licence") for s in published if s.said("licence"))
    if len(licences) > 1:
        text = f"There are {len(licences)} different licences: check that they allow what you plan."
        found.append(Verdict(tone="look", text=text, where="table"))
    return found


def _flags(cohort: Cohort) -> list[Verdict]:
    found = []
    low = [s for s in cohort.published if "low_resolution" in s.flags]
    if low:
        it = "it is" if len(low) == 1 else "they are"
        text = (
            f"{_sections(len(low), 'is', 'are')} of low resolution ({_names(low)}): {it} published and can be used for "
            "evaluation, but kept out of training unless asked."
        )
        found.append(Verdict(tone="look", text=text, where="table"))
    bare = [s for s in cohort.published if "image: none" in s.flags]
    if bare:
        text = f"{_sections(len(bare), 'has', 'have')} no image, for expression-only tasks ({_names(bare)})."
        found.append(Verdict(tone="look", text=text, where="table"))
    other = Counter(flag for s in cohort.published for flag in s.flags if flag not in SINGLED)
    for flag, n in sorted(other.items()):
        text = f"{_sections(n, 'is', 'are')} flagged: {flag_words(flag)}."
        found.append(Verdict(tone="look", text=text, where="table"))
    return found


def _spots(cohort: Cohort) -> list[Verdict]:
    lost = [s for s in cohort.published if s.n_lost > MUCH_LOST * max(s.n_lost + (s.row["n_pairs"] or 0), 1)]
    if not lost:
        return []
    text = f"{_sections(len(lost), 'lost', 'lost')} more than {MUCH_LOST:.0%} of its spots ({_names(lost)})."
    return [Verdict(tone="look", text=text.replace("its", "its" if len(lost) == 1 else "their"), where="spots")]


def _made(cohort: Cohort) -> list[Verdict]:
    found = []
    digests = {s.row["settings_digest"] for s in cohort.sections}
    if len(digests) > 1:
        text = f"The sections were made under {len(digests)} different settings; a re-tile makes them the same."
        found.append(Verdict(tone="look", text=text, where="made"))
    simulated = cohort.n_simulated
    if simulated:
        text = f"{_sections(simulated, 'is', 'are')} simulated and says nothing about tissue."
        text = text if simulated == 1 else text.replace("says", "say")
        found.append(Verdict(tone="look", text=text, where="sections"))
    return found
