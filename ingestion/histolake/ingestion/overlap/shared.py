"""What two sets of slides share, the worst first.

kind        shared when
slide       the same slide of one lake, or one name in two lakes whose contents do not tell them apart
content     one ingest, or the same source files under two names
look_alike  one names the other in the catalogue, or their spots or pictures are as near as look-alikes are: the same
            estimate as at the ingest (`duplicates`), made here, because slides of two lakes never met
patient     one study (by name or accession) and one patient
unit        one study in which the patient of a slide is not known, which counts as one patient, as in splits
study       one study, of other patients

Names of studies and accessions are compared without regard to capitals and spaces. A slide without a study is of its
cohort, in its lake alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from histolake.ingestion.duplicates import FEW, DuplicateSettings, KnownSlides, containment
from histolake.ingestion.overlap.sets import SlideSet

__all__ = ["KINDS", "LEAKS", "Shared", "find_shared", "verdict"]

KINDS = ("slide", "content", "look_alike", "patient", "unit", "study")
LEAKS = frozenset(KINDS) - {"study"}
NAMED = 5  # slides named in a row

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """One thing that two sets share."""

    kind: str  # one of KINDS
    what: str  # in words: which slide, patient or study, or how alike
    a: str  # slides of the first set
    b: str  # slides of the second


def find_shared(a: SlideSet, b: SlideSet, settings: DuplicateSettings | None = None) -> list[Shared]:
    """What the sets share, the worst first. Slides that are told to be one are not told again to be alike."""
    settings = replace(settings or DuplicateSettings(), slides="flag")
    pairs = _same(a.slides, b.slides)
    for one, other, what in _alike(a.slides, b.slides, settings):
        pairs.setdefault((_key(one), _key(other)), Shared(kind="look_alike", what=what, a=_id(one), b=_id(other)))
    found = [*pairs.values(), *_studies(a.slides, b.slides)]
    return sorted(found, key=lambda shared: (KINDS.index(shared.kind), shared.a, shared.b, shared.what))


def verdict(found: Sequence[Shared], a: SlideSet, b: SlideSet) -> str:
    """All of it in one sentence."""
    sizes = f"({len(a.slides)} and {len(b.slides)} slides)"
    words = {
        "slide": ("slide", "slides"),
        "content": ("section under two names", "sections under two names"),
        "look_alike": ("look-alike", "look-alikes"),
        "patient": ("patient", "patients"),
        "unit": ("study with an unknown patient", "studies with unknown patients"),
        "study": ("study", "studies"),
    }
    counts = {kind: sum(shared.kind == kind for shared in found) for kind in KINDS}
    told = ", ".join(f"{count} {words[kind][count > 1]}" for kind, count in counts.items() if count)
    if not found:
        return f"Disjoint: {a.name} and {b.name} share no slide, patient, study or look-alike {sizes}."
    if not any(shared.kind in LEAKS for shared in found):
        return f"No leak, but kin: {a.name} and {b.name} share {told}, of other patients {sizes}."
    return f"They leak: {a.name} and {b.name} share {told} {sizes}."


def _id(row: Row) -> str:
    return str(row["slide_id"])


def _key(row: Row) -> tuple[str, str]:
    return (str(row["lake"]), _id(row))


def _same(a: Sequence[Row], b: Sequence[Row]) -> dict[tuple[tuple[str, str], tuple[str, str]], Shared]:
    """Pairs that are one slide, or one content under two names."""
    by_name: defaultdict[str, list[Row]] = defaultdict(list)
    by_content: defaultdict[str, list[Row]] = defaultdict(list)
    for row in b:
        by_name[_id(row)].append(row)
        for content in _contents(row):
            by_content[content].append(row)
    found: dict[tuple[tuple[str, str], tuple[str, str]], Shared] = {}
    for row in a:
        for other in by_name[_id(row)]:
            one_lake = row["lake"] == other["lake"]
            if one_lake or not _apart(row, other):
                what = "the same slide" if one_lake else f"the same name in {row['lake']} and {other['lake']}"
                found[_key(row), _key(other)] = Shared(kind="slide", what=what, a=_id(row), b=_id(other))
        for content in _contents(row):
            for other in by_content[content]:
                what = f"the same {content.partition(' ')[0]}"
                shared = Shared(kind="content", what=what, a=_id(row), b=_id(other))
                found.setdefault((_key(row), _key(other)), shared)
    return found


def _contents(row: Row) -> list[str]:
    known = (("ingest", row["ingest_id"]), ("files", row["source_digest"]))
    return [f"{what} {value}" for what, value in known if value]


def _apart(one: Row, other: Row) -> bool:
    """Whether the contents of two slides of one name are known to have nothing to do with each other."""
    inside, seen = containment(one["profile_sketch"] or [], other["profile_sketch"] or [])
    around, back = containment(other["profile_sketch"] or [], one["profile_sketch"] or [])
    return max(inside, around) == 0 and min(seen, back) >= FEW


def _alike(a: Sequence[Row], b: Sequence[Row], settings: DuplicateSettings) -> list[tuple[Row, Row, str]]:
    """Pairs of look-alikes and how alike they are, as the catalogue notes and as the contents say now."""
    keyed = {"/".join(_key(row)): row for row in b}
    known = KnownSlides({**row, "slide_id": name} for name, row in keyed.items())
    by_name = {_key(row): row for row in b}
    naming: defaultdict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in b:
        for name in row["look_alikes"] or ():
            naming[row["lake"], name].append(row)
    found: dict[tuple[tuple[str, str], tuple[str, str]], tuple[Row, Row, str]] = {}
    for row in a:
        # Under no slide's name, so that a namesake in another lake is compared too.
        alike = known.judge("", row, settings).alike
        for other in (keyed[name] for name in alike):
            found[_key(row), _key(other)] = (row, other, _how_alike(row, other))
        noted = [by_name[key] for name in row["look_alikes"] or () if (key := (row["lake"], name)) in by_name]
        for other in [*noted, *naming[_key(row)]]:
            found.setdefault((_key(row), _key(other)), (row, other, "noted at the ingest"))
    return list(found.values())


def _how_alike(one: Row, other: Row) -> str:
    said = []
    inside, seen = containment(one["profile_sketch"] or [], other["profile_sketch"] or [])
    around, back = containment(other["profile_sketch"] or [], one["profile_sketch"] or [])
    if seen and back and max(inside, around) > 0:
        said.append(f"about {max(inside, around):.0%} of the spots of one are in the other")
    hashes = [row["image_hash"] or "" for row in (one, other)]
    if hashes[0] and len(hashes[0]) == len(hashes[1]):
        bits = (int(hashes[0], 16) ^ int(hashes[1], 16)).bit_count()
        said.append(f"their pictures differ in {bits} of {4 * len(hashes[0])} bits")
    return ", ".join(said)


def _studies(a: Sequence[Row], b: Sequence[Row]) -> list[Shared]:
    """One row for each patient that the sets share, and one for each study."""
    there = _by_study(b)
    found: dict[tuple[Any, ...], Shared] = {}
    for study, mine in _by_study(a).items():
        if study not in there:
            continue
        yours = there[study]
        name = _study_name(mine[0])
        for patient in sorted({row["patient"] for row in mine} & {row["patient"] for row in yours} - {None, ""}):
            one, other = ([r for r in rows if r["patient"] == patient] for rows in (mine, yours))
            shared = Shared(kind="patient", what=f"{name}/{patient}", a=_some(one), b=_some(other))
            found[shared.kind, shared.a, shared.b] = shared
        unknown = [row for row in (*mine, *yours) if not row["patient"]]
        kind = "unit" if unknown else "study"
        what = f"{name}, patient not known of {_some(unknown)}" if unknown else name
        shared = Shared(kind=kind, what=what, a=_some(mine), b=_some(yours))
        # A study that is shared by its name and by its accession is told once.
        found.setdefault((kind, shared.a, shared.b), shared)
    return list(found.values())


def _by_study(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for key in dict.fromkeys(_study_keys(row)):
            found[key].append(row)
    return found


def _study_keys(row: Row) -> list[str]:
    named = [" ".join(str(row[name]).split()).casefold() for name in ("study", "accession") if row[name]]
    return named or [f"cohort {row['cohort']} of {row['lake']}"]


def _study_name(row: Row) -> str:
    return str(row["study"] or row["accession"] or f"cohort {row['cohort']}")


def _some(rows: Sequence[Row]) -> str:
    names = sorted({_id(row) for row in rows})
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
