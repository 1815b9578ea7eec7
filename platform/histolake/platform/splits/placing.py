"""How slides get their sides: one after another by age, so that what may share tissue never stands on two sides.

Two slides are **kin** when they have one unit ((study, patient)), when they are of one study and the patient of either
is not known (then it may be any patient of that study), or when one names the other among its `look_alikes`. A bare
patient name never joins studies; a slide without a study counts as of its cohort.

**Definition.** Take the slides of a version by age: (`first_published`, patient known before not known, slide_id). The
evidence on a slide is the sides of its older kin that have one. Then its side is

- without evidence: what the split wants of it (for a split by units, a hash of its unit, the fractions and the seed);
- with evidence of one side: that side. Where the split fixes the sides (all of an organ on one), the slide is left
  out if the two differ;
- with evidence of several sides: none. It is left out, and the reason names its kin on each.

A slide that is left out is evidence for nobody. So look-alikes join units: one that looks like an old slide takes its
side, and the rest of its own unit follows; one that would join two sides is the one that goes.

**Why nothing leaks.** Let two kin both have sides. When the younger was placed, the side of the older was among its
evidence, and a slide with evidence is placed on the only side that is in it. So they have one side. By steps: all
slides that chains of kin connect, through slides that have sides, are on one.

**Why nothing moves.** A side depends on the slide's own row and on older rows alone. `first_published` is the version
that first published the slide_id; a slide that is added has a later one than all that are there, and whom it looks like
stands in its own row. So it changes the evidence on no older slide. Ingesting a slide again, cutting it again and
correcting it keep its age, and its row carries it: versions that are expired take nothing away.

**Corrections** of study and patient count from their own version on, because only the rows of that version are asked.
The slide is placed anew at its age, and younger kin follow it. To forget a slide is to place the others as if it had
never been there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["LEFT_OUT", "SIDES", "Kinship", "Placing", "Row", "place", "place_apart", "resembling", "ties", "unit_of"]

SIDES = ("train", "validation", "test")
LEFT_OUT = "left_out"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Placing:
    """Where a slide is, and why."""

    side: str
    why: str = ""  # a sentence's predicate: why it is left out, or whom it follows; empty where the split put it there
    rule: str = ""  # the reason's name, to count by: both_sides, against_group, no_group, look_alike, unlisted, no_gap


@dataclass(frozen=True)
class Kin:
    """An older slide that has a side, and what ties a slide to it."""

    slide_id: str
    side: str
    tie: str  # "is of one patient with", "may be of one patient with", "looks like"


def unit_of(slide: Row) -> tuple[str, str]:
    """The unit of a slide that must not be divided: (study, patient), with "" for what is not known.

    A slide with neither is a unit of its cohort, for nothing says that its sections are of different patients.
    """
    study = slide.get("study") or ""
    patient = slide.get("patient") or ""
    return (study or f"cohort {slide['cohort']}", patient)


def age_of(slide: Row) -> tuple[int, bool, str]:
    """By this slides are put in order, oldest first. Rows of older lakes know only the version of the row itself."""
    born = slide.get("first_published")
    born = slide.get("published_in") if born is None else born
    return (0 if born is None else int(born), not unit_of(slide)[1], str(slide["slide_id"]))


def resembling(slides: Iterable[Row]) -> dict[str, set[str]]:
    """slide_id -> slide_ids among the slides given that it names as look-alikes or that name it."""
    named = {row["slide_id"]: row.get("look_alikes") or () for row in slides}
    found: defaultdict[str, set[str]] = defaultdict(set)
    for slide_id, others in named.items():
        for other in others:
            if other in named and other != slide_id:
                found[slide_id].add(other)
                found[other].add(slide_id)
    return dict(found)


class _Family:
    """The slides that have sides, to be asked for the kin of the next one."""

    def __init__(self, slides: Sequence[Row]) -> None:
        self._alike = resembling(slides)
        self._sides: dict[str, str] = {}
        self._units: defaultdict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # -> side -> its first slide
        self._studies: defaultdict[str, dict[str, str]] = defaultdict(dict)

    def add(self, slide: Row, side: str) -> None:
        unit = unit_of(slide)
        self._sides[slide["slide_id"]] = side
        self._units[unit].setdefault(side, slide["slide_id"])
        self._studies[unit[0]].setdefault(side, slide["slide_id"])

    def kin(self, slide: Row) -> list[Kin]:
        """One of them on each side for each tie, the strongest tie first."""
        study, patient = unit_of(slide)
        found = []
        if patient:
            found += [Kin(k, side, "is of one patient with") for side, k in self._units[study, patient].items()]
            found += [Kin(k, side, "may be of one patient with") for side, k in self._units[study, ""].items()]
        else:
            found += [Kin(k, side, "may be of one patient with") for side, k in self._studies[study].items()]
        alike = sorted(self._alike.get(slide["slide_id"], ()))
        return found + [Kin(k, self._sides[k], "looks like") for k in alike if k in self._sides]


class Kinship:
    """All kin among the slides of a version, whether they have sides or not."""

    def __init__(self, slides: Sequence[Row]) -> None:
        self._alike = resembling(slides)
        self._units: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        self._studies: defaultdict[str, list[str]] = defaultdict(list)
        for slide in slides:
            self._units[unit_of(slide)].append(slide["slide_id"])
            self._studies[unit_of(slide)[0]].append(slide["slide_id"])

    def of(self, slides: Iterable[Row]) -> set[str]:
        """The slides that are kin to any of these, and these."""
        found: set[str] = set()
        for slide in slides:
            study, patient = unit_of(slide)
            found |= {slide["slide_id"], *self._alike.get(slide["slide_id"], ())}
            found.update(self._units[study, patient] + self._units[study, ""] if patient else self._studies[study])
        return found


def ties(slides: Iterable[Row], others: Iterable[Row]) -> dict[str, list[str]]:
    """slide_id -> what ties a slide to any of the others ("is of one patient with", ...), the strongest tie first.

    A slide that is among the others is tied to them by its unit as much as any.
    """
    asked, there = list(slides), list(others)
    family = _Family(list({row["slide_id"]: row for row in [*asked, *there]}.values()))
    for row in there:
        family.add(row, "there")
    return {row["slide_id"]: list(dict.fromkeys(kin.tie for kin in family.kin(row))) for row in asked}


def place(
    slides: Sequence[Row], wanted: Callable[[Row], Placing], *, fixed: Callable[[Row], str] | None = None
) -> dict[str, Placing]:
    """Every slide's side by the definition above, in the order of age.

    `wanted` gives what the split wants of a slide without kin (which may be to leave it out). `fixed`, for splits that
    allow no other side than that, names in words what is fixed ("organ kidney").
    """
    family = _Family(slides)
    found: dict[str, Placing] = {}
    for slide in sorted(slides, key=age_of):
        own = wanted(slide)
        placing = own if own.side == LEFT_OUT else _among(own, family.kin(slide), fixed(slide) if fixed else None)
        found[slide["slide_id"]] = placing
        if placing.side != LEFT_OUT:
            family.add(slide, placing.side)
    return found


def place_apart(slides: Sequence[Row], wanted: Callable[[Row], Placing]) -> dict[str, Placing]:
    """For splits that cut through slides: every slide as wanted but those that look like an older one that is in.

    Two names of one section would put the same tissue on several sides.
    """
    alike = resembling(slides)
    found: dict[str, Placing] = {}
    for slide in sorted(slides, key=age_of):
        inside = sorted(k for k in alike.get(slide["slide_id"], ()) if k in found and found[k].side != LEFT_OUT)
        seen = Placing(LEFT_OUT, f"looks like {inside[0]}, which is cut into blocks", "look_alike") if inside else None
        found[slide["slide_id"]] = seen or wanted(slide)
    return found


def _among(own: Placing, kin: Sequence[Kin], fixed: str | None) -> Placing:
    """Where a slide goes that wants a side and has these kin."""
    by_side = {relative.side: relative for relative in reversed(kin)}
    said = " and ".join(f"{by_side[side].tie} {by_side[side].slide_id} on {side}" for side in SIDES if side in by_side)
    if len(by_side) > 1:
        return Placing(LEFT_OUT, said, "both_sides")
    if not by_side or (fixed is not None and own.side in by_side):
        return own
    (side,) = by_side
    if fixed is not None:
        return Placing(LEFT_OUT, f"{said}, and {fixed} is on {own.side}", "against_group")
    return Placing(side, said if side != own.side else "")
