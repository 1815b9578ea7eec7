"""Leave one out: a series of named splits, in each of which one patient, organ, technology or study tests.

The others train, without the slides that may share a patient or tissue with those that test: what is held out is worth
more than what is lost. The lists are of one version of the lake, and stay as they are when slides are added.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from histolake.platform.errors import SplitError
from histolake.platform.splits.placing import Kinship, Row, unit_of
from histolake.platform.splits.split import GROUPS, Split, group_of

__all__ = ["leave_one_out"]


def leave_one_out(rows: Sequence[Row], by: str) -> list[Split]:
    """One split for each group of the slides, by name ("organ kidney"). `by` is patient, organ, technology or study.

    A study in which a slide's patient is not known counts as one patient. A slide whose organ or technology is not
    known is on no list. Raises `SplitError` where nothing would be left to train on in any of them.
    """
    if by not in ("patient", *GROUPS):
        raise SplitError(f"One {by!r} cannot be left out; leave out one patient, {', '.join(GROUPS[:-1])} or study.")
    unknown = {study for study, patient in map(unit_of, rows) if not patient}
    members: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if group := _patient_of(row, unknown) if by == "patient" else group_of(row, by):
            members[group].append(row)
    kinship = Kinship(rows)
    listed = sorted(row["slide_id"] for group in members.values() for row in group)
    made = []
    for group, tested in sorted(members.items()):
        kept_away = kinship.of(tested)
        train = [slide_id for slide_id in listed if slide_id not in kept_away]
        if train:
            test = sorted(row["slide_id"] for row in tested)
            made.append(Split.named(train=train, test=test, name=f"{by} {group}"))
    if not made:
        raise SplitError(f"Whichever {by} is left out, nothing remains to train on: all slides are kin.")
    return made


def _patient_of(row: Row, unknown: set[str]) -> str:
    study, patient = unit_of(row)
    return study if study in unknown else f"{study}/{patient}"
