"""The public cohorts that can be fetched by name: what they are, where their files lie, what those must hash to.

The facts are data (`cohorts.toml`, which states its sources); this reads and checks them. A section's files lie at
`<base_url>/<Space Ranger version>/<section>/<section>_<file>`, the layout of 10x Genomics' own server, so a mirror is
the same tree behind another `public.base_url`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from histolake.platform.errors import SettingsError, UsageError

__all__ = ["Catalogue", "Cohort", "PublicFile", "PublicSection", "PublicSettings", "find_cohort", "load_catalogue"]

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class PublicSettings:
    """Where public cohorts come from, and what the demo may spend on one."""

    # 10x Genomics' server, or a mirror of it with the same paths (http:// or https://)
    base_url: str = "https://cf.10xgenomics.com/samples/spatial-exp"
    catalogue: str = ""  # file of a list of your own, in the form of cohorts.toml; "" is the one that is installed
    probe: bool = True  # whether the demo may look for a public cohort on the network
    probe_s: float = 3.0  # seconds that looking may take
    parallel: int = 3  # files fetched at once
    timeout_s: float = 30.0  # seconds without a byte until a connection counts as broken
    retries: int = 4  # times a broken connection is taken up again, a file
    retry_wait_s: float = 1.0  # seconds before the first of them; doubled each time
    demo_mb: int = 500  # megabytes, the largest download that the demo begins by itself
    demo_s: float = 300.0  # seconds, the longest that the demo waits for it

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise SettingsError(f"public.base_url is {self.base_url!r}; it is a URL that begins with http(s)://.")
        if not 1 <= self.parallel <= 8:
            raise SettingsError(f"public.parallel is {self.parallel}; it is from 1 to 8, to spare the server.")


@dataclass(frozen=True, kw_only=True)
class PublicFile:
    """One file of a section."""

    name: str  # as it is kept: filtered_feature_bc_matrix.h5, spatial.tar.gz, image.tif
    path: str  # below the base URL
    sha256: str | None = None  # None where no list that we know has one: pinned on first use
    size_bytes: int | None = None  # None where not known

    def url(self, base_url: str) -> str:
        """Where it lies."""
        return f"{base_url.rstrip('/')}/{self.path}"


@dataclass(frozen=True, kw_only=True)
class PublicSection:
    """One section that 10x Genomics publishes."""

    name: str
    title: str
    space_ranger: str
    species: str
    organ: str
    page: str
    technology: str = "Visium"
    disease: str | None = None
    stain: str | None = None  # "H&E"; None where it was not looked up
    files: tuple[PublicFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """What one name fetches: several sections that belong together, or one."""

    name: str
    title: str
    sections: tuple[PublicSection, ...]

    @property
    def files(self) -> list[tuple[PublicSection, PublicFile]]:
        """Every file with its section."""
        return [(section, file) for section in self.sections for file in section.files]


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """Everything that is listed, and the terms it is under."""

    source: str
    licence: str
    licence_url: str
    home: str
    cohorts: Mapping[str, Cohort] = field(default_factory=dict)  # by name: those of several sections, then of one

    def metadata(self, cohort: Cohort, section: PublicSection) -> dict[str, str]:
        """What is known of a section, in the names of the provenance.

        10x Genomics names no donors. The sections of a cohort may be of one donor, so they share a study and have no
        patient: a split then keeps them on one side unless it says that it cuts.
        """
        known = {
            "study": f"10x Genomics, {cohort.title}",
            "organ": section.organ,
            "species": section.species,
            "disease": section.disease or "",
            "technology": section.technology,
            "licence": self.licence,
            "accession": section.page,
            "simulated": "false",
        }
        return {name: value for name, value in known.items() if value}

    def rows(self) -> list[dict[str, Any]]:
        """One flat object a section, for `sample --list`."""
        of = {s.name: c.name for c in self.cohorts.values() if len(c.sections) > 1 for s in c.sections}
        return [
            self._row(cohort.sections[0], of.get(cohort.name))
            for cohort in self.cohorts.values()
            if len(cohort.sections) == 1
        ]

    def _row(self, section: PublicSection, cohort: str | None) -> dict[str, Any]:
        sizes = [file.size_bytes for file in section.files]
        known = sum(size for size in sizes if size is not None)
        pinned = sum(file.sha256 is None for file in section.files)
        return {
            "name": section.name,
            "cohort": cohort,
            "title": section.title,
            "organ": section.organ,
            "species": section.species,
            "disease": section.disease,
            "technology": section.technology,
            "space_ranger": section.space_ranger,
            "stain": section.stain,
            "files": ", ".join(file.name for file in section.files),
            "size_bytes": None if None in sizes else known,
            "known_bytes": known,
            "checksums": "sha256" if not pinned else f"not published for {pinned} of {len(sizes)}: pinned on first use",
            "licence": self.licence,
            "page": section.page,
        }


@cache
def load_catalogue(file: str = "") -> Catalogue:
    """The catalogue that is installed with histolake, or one of your own in the same form (`public.catalogue`)."""
    place = Path(file).expanduser() if file else package_files("histolake.ingestion.public").joinpath("cohorts.toml")
    if not place.is_file():
        raise UsageError(f"public.catalogue names {file}, which is not a file.")
    try:
        return parse_catalogue(place.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{place} is no list of public cohorts: {error!r}.") from error


def parse_catalogue(text: str) -> Catalogue:
    """A catalogue from TOML; raises `UsageError` where names clash or a checksum is none."""
    data = tomllib.loads(text)
    sections = {entry["name"]: _section(entry) for entry in data["section"]}
    groups = {
        entry["name"]: Cohort(
            name=entry["name"], title=entry["title"], sections=tuple(sections[name] for name in entry["sections"])
        )
        for entry in data.get("cohort", ())
    }
    alone = {name: Cohort(name=name, title=section.title, sections=(section,)) for name, section in sections.items()}
    clash = sorted(set(groups) & set(alone))
    if clash or len(sections) != len(data["section"]):
        raise UsageError(f"The catalogue of public cohorts names {clash or 'a section'} twice.")
    return Catalogue(
        source=data["source"],
        licence=data["licence"],
        licence_url=data["licence_url"],
        home=data["home"],
        cohorts={**groups, **alone},
    )


def _section(entry: dict[str, Any]) -> PublicSection:
    name, version = entry["name"], entry["space_ranger"]
    found = []
    for file, known in entry["files"].items():
        sha256 = known.get("sha256")
        if sha256 is not None and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
            raise UsageError(f"The catalogue's sha256 of {name}, {file} is {sha256!r}, which is none.")
        path = f"{version}/{name}/{name}_{file}"
        found.append(PublicFile(name=file, path=path, sha256=sha256, size_bytes=known.get("bytes")))
    about = {key: value for key, value in entry.items() if key not in ("name", "files")}
    return PublicSection(name=name, files=tuple(found), **about)


def find_cohort(catalogue: Catalogue, name: str) -> Cohort:
    """The cohort of a name, in any case of letters. Raises `UsageError` that names what is like it."""
    folded = {known.casefold(): cohort for known, cohort in catalogue.cohorts.items()}
    found = folded.get(name.casefold())
    if found is None:
        like = difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(folded[one].name for one in like)}?" if like else ""
        raise UsageError(f"There is no public cohort {name!r}.{hint} `histolake sample --list` shows what there is.")
    return found
