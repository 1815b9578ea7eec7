"""Choosing the cohort to try histolake on, and saying which and why.

A folder of real sections is described, never copied. A public cohort is fetched, by name or where the demo asks for the
smallest one. Without either, a simulated cohort is written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from histolake.ingestion.cohort_file import COHORT_FILE, Chosen, write_cohort
from histolake.ingestion.discover import find_sections
from histolake.platform.errors import UsageError
from histolake.platform.storage import Location

if TYPE_CHECKING:
    from histolake.ingestion.public.catalogue import PublicSettings

__all__ = ["Public", "choose"]

# HER2ST: Andersson et al., "Spatial deconvolution of HER2-positive breast cancer delineates tumor-associated cell type
# interactions", Nature Communications 2021. Sections C2 to C5 are of patient C, A1 is of patient A.
HER2ST = {"C2": "C", "C3": "C", "C4": "C", "C5": "C", "A1": "A"}
HER2ST_METADATA = {
    "study": "Andersson 2021 (HER2ST)",
    "organ": "breast",
    "species": "human",
    "disease": "HER2-positive breast cancer",
    "technology": "Spatial Transcriptomics",
    "licence": "open-access study; the data's repository states no licence: not for redistribution",
    "accession": "Zenodo 4751624",
    "simulated": "false",
}


@dataclass(frozen=True, kw_only=True)
class Public:
    """That a public cohort is wanted: the one that is named, else the smallest that the network has."""

    settings: PublicSettings
    name: str | None = None
    blocks: int = 1  # cut each section of a named cohort into as many
    tell: Callable[[str, int, int | None], None] = lambda *_: None  # file, bytes there, bytes in all
    say: Callable[[str], None] = lambda _: None  # a line for the person who watches


def choose(
    real: str | None, to: str, *, seed: int, tell: Callable[[str, int, int], None], public: Public | None = None
) -> Chosen:
    """Choose a cohort and write its `cohort.json` and `metadata.csv` below `to`.

    `public` with a name is that cohort and nothing else; then `real`, a folder of sections of the user's (HER2ST is
    recognised in it); then, with `public`, the smallest public cohort that the network has; then the simulated one.
    Raises `UsageError` where the folder holds nothing that a reader knows, `DownloadError` where a cohort that was
    named cannot be had.
    """
    target = Location.parse(to)
    if target.is_remote:
        raise UsageError(f"The sample is written to a folder on this machine, not to {target}.")
    file = target.join(COHORT_FILE).uri
    if public is not None and public.name is not None:
        from histolake.ingestion.public.cohort import by_name

        chosen = by_name(
            public.name,
            target.local_path(),
            file,
            public.settings,
            blocks=public.blocks,
            tell=public.tell,
            say=public.say,
        )
    elif real:
        folder = Location.parse(real)
        if not folder.is_dir():
            raise UsageError(f"There is no folder {folder}; name one with --from, or unset HISTOLAKE_SAMPLE_DIR.")
        chosen = _her2st(folder, file) if folder.join("her2st").is_dir() else _as_found(folder, file)
    else:
        chosen = _without_a_folder(target, file, seed, tell, public)
    write_cohort(chosen, target)
    return chosen


def _her2st(folder: Location, file: str) -> Chosen:
    home = folder.join("her2st")
    missing = [section for section in HER2ST if not home.join(section).is_dir()]
    if missing:
        raise UsageError(f"{home} lacks the sections {', '.join(missing)}; the cohort is C2, C3, C4, C5 and A1.")
    twins = [f"her2st/{place.parent().name}/{place.name}" for place in _twins(home)]
    others = [f"{place.name}/" for place in folder.list() if place.is_dir() and place.name != "her2st"]
    others += [f"her2st/{place.name}" for place in home.list() if place.name not in HER2ST]
    return Chosen(
        name="her2st",
        data="real",
        why=f"{folder} holds her2st/: five sections of two HER2-positive breast tumours, "
        "patients C (C2 to C5) and A (A1)",
        sections={section: home.join(section).uri for section in HER2ST},
        metadata={section: {"patient": patient, **HER2ST_METADATA} for section, patient in HER2ST.items()},
        left_aside=tuple(
            f"{what}: {', '.join(names)}"
            for what, names in (("the same sections in another format", twins), ("not part of this cohort", others))
            if names
        ),
        file=file,
    )


def _twins(home: Location) -> list[Location]:
    return [place for section in HER2ST for place in home.join(section).list() if place.suffix == ".h5ad"]


def _as_found(folder: Location, file: str) -> Chosen:
    found = list(find_sections([folder.uri], "sample"))
    known = [candidate for candidate in found if candidate.source is not None]
    if not known:
        raise UsageError(f"{folder} holds no section that a reader knows. {found[0].problem}")
    return Chosen(
        name=folder.name,
        data="simulated" if all(c.source and c.source.metadata.get("simulated") is True for c in known) else "real",
        why=f"{folder} was named; it holds {len(known)} sections that a reader knows",
        sections={candidate.section: candidate.uri for candidate in known},
        metadata={},
        left_aside=tuple(f"no reader knows {c.uri}" for c in found if c.source is None),
        file=file,
    )


def _without_a_folder(
    target: Location, file: str, seed: int, tell: Callable[[str, int, int], None], public: Public | None
) -> Chosen:
    if public is None:
        return _simulated(target, file, seed, tell, "")
    from histolake.ingestion.public.cohort import offered

    offer = offered(target.local_path(), file, public.settings, tell=public.tell, say=public.say)
    return _simulated(target, file, seed, tell, f"; {offer}") if isinstance(offer, str) else offer


def _simulated(target: Location, file: str, seed: int, tell: Callable[[str, int, int], None], no_public: str) -> Chosen:
    from histolake.ingestion.simulate import simulate_cohort

    sections = simulate_cohort(target.local_path() / "simulated", seed=seed, tell=tell)
    return Chosen(
        name="simulated",
        data="simulated",
        why=f"no folder of real sections was named (--from or HISTOLAKE_SAMPLE_DIR){no_public}; "
        "four simulated patients with two sections each stand in, and their truth is known",
        sections={section: f"simulated/{section}" for section in sections},
        metadata=sections,
        left_aside=(),
        file=file,
    )
