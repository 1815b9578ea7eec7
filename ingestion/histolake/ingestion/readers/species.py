"""Which species a source's genes belong to, told by their Ensembl ids, else by the name of the reference genome."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from histolake.ingestion.species import species_name
from histolake.platform.errors import SourceError

__all__ = ["genes_of_one_species", "species_of_genes", "species_present"]

# Prefixes of Ensembl's gene ids, and assemblies as references are named after them.
_PREFIXES = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSSSCG": "pig",
    "ENSMMUG": "macaque",
    "ENSGALG": "chicken",
}
_GENOMES = {
    "human": r"GRCh3[78]|hg19|hg38|T2T-?CHM13",
    "mouse": r"GRCm3[89]|mm9|mm10|mm39",
    "rat": r"mRatBN7|Rnor_|rn[67]",
    "zebrafish": r"GRCz1[01]|danRer1[01]",
}
_ID = re.compile(r"(ENS[A-Z]*G)\d{11}")
MIN_SHARE = 0.05  # of the genes; a reference with a transgene or two of another species is still of one


def species_of_genes(ids: Sequence[str], genomes: Sequence[str]) -> np.ndarray:
    """(G,) str: the species of each gene, "" where neither its id nor its genome tells."""
    by_genome = {genome: _species_of_genome(genome) for genome in set(genomes)}
    told = [
        _PREFIXES.get(match.group(1), "") if (match := _ID.match(gene)) else by_genome[genome]
        for gene, genome in zip(ids, genomes, strict=True)
    ]
    return np.array(told, dtype=str)


def species_present(species_G: np.ndarray) -> tuple[str, ...]:
    """The species that have a share of the genes worth the name, the largest first."""
    names, times = np.unique(species_G[species_G != ""], return_counts=True)
    order = np.argsort(-times, kind="stable")
    return tuple(str(names[i]) for i in order if times[i] >= MIN_SHARE * len(species_G))


def genes_of_one_species(
    ids: Sequence[str], genomes: Sequence[str], stated: str | None, file: str
) -> tuple[str | None, np.ndarray | None]:
    """The species, and (G,) bool which genes are of it; None where all of them are to be kept.

    A section whose reference has several species (a xenograft) is read for one alone, which a person must name: raises
    `SourceError` (`one_species`) where nobody does.
    """
    species_G = species_of_genes(ids, genomes)
    present = species_present(species_G)
    if len(present) < 2:
        return (present[0] if present else None), None
    named = species_name(stated)
    if named in present:
        return named, species_G == named
    raise SourceError(
        f"{file} holds genes of {len(present)} species ({', '.join(present)}); a section is of one. Say which "
        f"(species = {' or '.join(present)}) in the metadata, and the genes of the others are left out.",
        rule="one_species",
        figure=float(len(present)),
        limit=1.0,
        file=file,
    )


def _species_of_genome(genome: str) -> str:
    hits = [species for species, pattern in _GENOMES.items() if re.search(pattern, genome, re.IGNORECASE)]
    return hits[0] if len(hits) == 1 else ""
