"""From a public cohort's name to a cohort that `histolake ingest` takes: shown, fetched, described."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from histolake.ingestion.public.catalogue import MEGABYTE, Cohort, PublicSettings, find_cohort, load_catalogue
from histolake.platform.errors import DownloadError

if TYPE_CHECKING:
    from histolake.ingestion.cohort_file import Chosen
    from histolake.ingestion.public.fetching import Tell

__all__ = ["by_name", "offered", "terms"]

FOLDER = "public"  # below the folder of the cohort's file
BLOCKS = 3  # of a cohort of one section, in the demo

Say = Callable[[str], None]


def terms(cohort: Cohort, settings: PublicSettings) -> list[str]:
    """What a person is told before anything is fetched: what it is, whose, under which terms, from where, how much."""
    catalogue = load_catalogue(settings.catalogue)
    sizes = [file.size_bytes for _, file in cohort.files]
    known = sum(size for size in sizes if size is not None)
    unsummed = [f"{section.name}/{file.name}" for section, file in cohort.files if file.sha256 is None]
    lines = [
        f"{cohort.name}: {cohort.title}",
        f"source: {catalogue.source}; " + ", ".join(dict.fromkeys(section.page for section in cohort.sections)),
        f"licence: {catalogue.licence} ({catalogue.licence_url}); name 10x Genomics when you use it",
        f"from: {settings.base_url}, {len(sizes)} files, "
        + (f"{known / MEGABYTE:.0f} MB" if None not in sizes else "size as the server tells"),
    ]
    if unsummed:
        lines.append(f"no checksum is published here for {', '.join(unsummed)}: pinned on first use (checksums.json)")
    return lines


def by_name(
    name: str, target: Path, file: str, settings: PublicSettings, *, blocks: int, tell: Tell, say: Say
) -> Chosen:
    """Fetch a cohort by its name. Raises `UsageError` where there is none, `DownloadError` where it cannot be had."""
    cohort = find_cohort(load_catalogue(settings.catalogue), name)
    for line in terms(cohort, settings):
        say(line)
    return _chosen(cohort, target, file, settings, f"{cohort.name} was named", blocks, tell, None)


def offered(target: Path, file: str, settings: PublicSettings, *, tell: Tell, say: Say) -> Chosen | str:
    """The smallest public cohort for the demo, or why there is none, in words that go on a sentence.

    One that an earlier run has fetched is taken without asking the network.
    """
    from histolake.ingestion.public.fetching import describe, is_there
    from histolake.ingestion.public.probe import demo_cohorts, smallest_within

    cohorts = demo_cohorts(load_catalogue(settings.catalogue))
    there = [cohort for cohort in cohorts if is_there(cohort, target / FOLDER)]
    if there:
        cohort, why = there[0], f"{there[0].name} was fetched by an earlier run"
    elif not settings.probe:
        return "public.probe is false, so no public cohort was looked for"
    else:
        offer = smallest_within(cohorts, settings)
        if offer.cohort is None:
            return offer.why_none
        cohort = offer.cohort
        why = (
            f"no folder of real sections was named and the network has {cohort.name}, "
            f"the smallest public cohort for it ({offer.size_bytes / MEGABYTE:.0f} MB)"
        )
    for line in terms(cohort, settings):
        say(line)
    blocks = BLOCKS if len(cohort.sections) == 1 else 1
    try:
        return _chosen(cohort, target, file, settings, why, blocks, tell, settings.demo_s)
    except DownloadError as error:
        return f"the public cohort {cohort.name} could not be had: {describe(error)}"


def _chosen(
    cohort: Cohort,
    target: Path,
    file: str,
    settings: PublicSettings,
    why: str,
    blocks: int,
    tell: Tell,
    limit_s: float | None,
) -> Chosen:
    from histolake.ingestion.cohort_file import Chosen
    from histolake.ingestion.public.fetching import fetch

    catalogue = load_catalogue(settings.catalogue)
    folders = fetch(cohort, target / FOLDER, settings, tell=tell, limit_s=limit_s)
    known = {section.name: catalogue.metadata(cohort, section) for section in cohort.sections}
    sections = {name: f"{FOLDER}/{name}" for name in folders}
    aside: list[str] = []
    why = f"{why}; {catalogue.licence}, {catalogue.source}"
    if blocks > 1:
        sections, known, aside = _in_blocks(folders, known, blocks, target)
        why += (
            f"; each section is cut into {blocks} blocks with a gap between them, so that one can be held out: "
            "it is the same tissue, and figures on it are kinder than on another donor's"
        )
    return Chosen(
        name=cohort.name,
        data="real",
        why=why,
        sections=sections,
        metadata=known,
        left_aside=tuple(aside),
        file=file,
    )


def _in_blocks(
    folders: dict[str, Path], known: dict[str, dict[str, str]], count: int, target: Path
) -> tuple[dict[str, str], dict[str, dict[str, str]], list[str]]:
    from histolake.ingestion.public.blocks import GAP_UM, cut_in_blocks

    sections: dict[str, str] = {}
    metadata: dict[str, dict[str, str]] = {}
    aside = []
    for name, folder in folders.items():
        cut = cut_in_blocks(folder, target / FOLDER / "blocks", count)
        for block in cut.folders:
            sections[block.name] = f"{FOLDER}/blocks/{block.name}"
            metadata[block.name] = known[name]
        aside.append(f"{cut.left_out} spots of {name} within {GAP_UM / 2:g} um of a cut between blocks")
    return sections, metadata, aside
