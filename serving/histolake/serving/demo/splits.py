"""Which sections train, choose and test in the demo.

HER2ST's legacy cohort has a named split: C2 to C4 of patient C train, C5 of the same patient chooses between recipes,
A1 of patient A tests. In any other cohort one patient tests and one section of another validates. Where the cohort
is too small for that, a side stays empty and its figures are null.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from histolake.platform.errors import UsageError
from histolake.platform.splits import Split, unit_of

__all__ = ["HER2ST", "choose_split", "describe_split"]

HER2ST = {"train": ("C2", "C3", "C4"), "validation": ("C5",), "test": ("A1",)}


def choose_split(slides: Sequence[Mapping[str, Any]]) -> Split:
    """The split of published slides (rows of `catalog/slides`).

    Raises `UsageError` if there is nothing to train on.
    """
    if not slides:
        raise UsageError("No section was published, so there is nothing to train on; the rejections say why.")
    named = {str(row["slide_id"]).rsplit("/", 1)[-1]: str(row["slide_id"]) for row in slides}
    if set(named) <= {name for side in HER2ST.values() for name in side} and set(named) & set(HER2ST["train"]):
        # A section that was refused is missing from its list; the others keep their sides.
        lists = {side: [named[name] for name in names if name in named] for side, names in HER2ST.items()}
    else:
        lists = _by_patient(slides)
    return Split.named(train=lists["train"], validation=lists["validation"], test=lists["test"], cuts_units=True)


def _by_patient(slides: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The smallest patient tests; the last section of the patient with most sections validates; the others train.

    Patients and sections are taken in the order of size, then name, so that the choice is the same every time.
    """
    units: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in slides:
        units[unit_of(row)].append(str(row["slide_id"]))
    # A section whose patient is not known may be of any patient: it never tests.
    known = sorted((unit for unit in units if unit[1]), key=lambda unit: (len(units[unit]), unit))
    lists: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    tested = known[0] if len(known) > 1 or (known and len(units) > 1) else None
    if tested is not None:
        lists["test"] = sorted(units.pop(tested))
    rest = sorted(units, key=lambda unit: (-len(units[unit]), unit))
    if sum(len(units[unit]) for unit in rest) > 1:
        lists["validation"] = [sorted(units[rest[0]])[-1]]
    chosen = set(lists["validation"])
    lists["train"] = sorted(slide for unit in rest for slide in units[unit] if slide not in chosen)
    return lists


def describe_split(split: Split) -> str:
    """The split in one line."""
    parts = [f"{side}: {', '.join(split.lists[side]) or 'none'}" for side in ("train", "validation", "test")]
    return "; ".join(parts)
