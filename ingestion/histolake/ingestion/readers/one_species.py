"""Sections whose reference genome has several species (a xenograft, a barnyard): read for one alone, which a person
names.

A gene's species is told by its Ensembl id, else by the genome that the matrix names for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from histolake.ingestion.species import species_name, species_of_id
from histolake.platform.errors import SourceError

__all__ = ["genes_of_one_species"]

MIN_SHARE = 0.05  # of the genes; a reference with a transgene or two of another species is still of one
_ASSEMBLY = re.compile(r"[A-Za-z]+\d+")


def genes_of_one_species(
    ids: Sequence[str], genomes: Sequence[str], stated: str | None, file: str
) -> tuple[str | None, np.ndarray | None]:
    """The species, and (G,) bool which genes are of it; None in place of the latter where all of them are to be kept.

    Raises `SourceError` (`one_species`) where there are several and `stated` is none of them.
    """
    by_genome = {genome: _species_of_genome(genome) for genome in set(genomes)}
    told = [species_of_id(gene) or by_genome[genome] for gene, genome in zip(ids, genomes, strict=True)]
    species_G = np.array(told, dtype=str)
    names, times = np.unique(species_G[species_G != ""], return_counts=True)
    present = [str(names[i]) for i in np.argsort(-times, kind="stable") if times[i] >= MIN_SHARE * len(species_G)]
    if len(present) < 2:
        return (present[0] if present else None), None
    if species_name(stated) in present:
        return species_name(stated), species_G == species_name(stated)
    raise SourceError(
        f"{file} holds genes of {len(present)} species ({', '.join(present)}); a section is of one. Say which "
        f"(species = {' or '.join(present)}) in the metadata, and the genes of the others are left out.",
        rule="one_species",
        figure=float(len(present)),
        limit=1.0,
        file=file,
    )


def _species_of_genome(genome: str) -> str:
    """The species of a reference such as GRCh38-2020-A; "" for a name that is no assembly."""
    match = _ASSEMBLY.match(genome)
    name = species_name(match.group()) if match else None
    return name if match and name and name != match.group().lower() else ""
