"""Species: one spelling for each, and what a section's genes say of theirs.

A gene tells a species by the prefix of its Ensembl id (ENSG, ENSMUSG), else by its symbol where only one of the two
shipped vocabularies has it: ACTB is human, Actb is mouse; GENE1 tells nothing. A section whose genes contradict what is
stated, or that mixes two species (a barnyard experiment, a joint reference), is refused: its sentences would mean
nothing. Symbols of species other than human and mouse are not told apart (a rat's look like a mouse's), so their
sections are judged by Ensembl ids alone and must state what they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from histolake.ingestion.housekeeping import mouse_genes
from histolake.platform.errors import SourceError

__all__ = ["check_species", "species_name", "species_of_id", "species_votes"]

MIN_VOTES = 10  # genes that tell a species, below which nothing is concluded
_BY_PREFIX = {
    "ENSG": "human",
    "ENSMUSG": "mouse",
    "ENSRNOG": "rat",
    "ENSDARG": "zebrafish",
    "ENSSSCG": "pig",
    "ENSGALG": "chicken",
    "ENSMMUG": "macaque",
    "ENSMFAG": "cynomolgus macaque",
    "ENSCAFG": "dog",
    "ENSOCUG": "rabbit",
    "ENSBTAG": "cow",
}
_NAMES = {
    "human": ("homo sapiens", "h. sapiens", "hsapiens", "9606", "humans", "grch38", "hg38", "hg19", "grch37"),
    "mouse": ("mus musculus", "m. musculus", "mmusculus", "10090", "mice", "grcm38", "grcm39", "mm10", "mm39"),
    "rat": ("rattus norvegicus", "10116"),
    "zebrafish": ("danio rerio", "7955"),
    "pig": ("sus scrofa", "9823"),
    "chicken": ("gallus gallus", "9031"),
    "macaque": ("rhesus macaque", "rhesus", "macaca mulatta", "9544"),
    "cynomolgus macaque": ("macaca fascicularis", "9541"),
    "dog": ("canis lupus familiaris", "canis familiaris", "9615"),
    "rabbit": ("oryctolagus cuniculus", "9986"),
    "cow": ("bos taurus", "9913"),
}
_SPELLINGS = {spelling: name for name, all_of in _NAMES.items() for spelling in (name, *all_of)}
_ENSEMBL = re.compile(r"(?:[A-Za-z0-9.]+_+)?(ENS[A-Z]*G)\d{11}(?:\..*|_.*)?")
_REFERENCE = re.compile(r"(GRCh3[78]|hg19|hg38|GRCm3[89]|mm10|mm39)_+", re.IGNORECASE)
_BY_SYMBOL = ("human", "mouse")  # the species whose symbols are told apart


def species_name(text: str | None) -> str | None:
    """The catalogue's name of a species: "Homo sapiens", "9606" and "Human" are all human. A name that is not known
    comes back in small letters; None where there is none."""
    if text is None or not text.strip():
        return None
    plain = re.sub(r"[\s_]+", " ", text.strip().lower())
    return _SPELLINGS.get(plain, plain)


def species_votes(symbols: Sequence[str], ensembl_ids: Sequence[str | None] | None) -> Counter[str]:
    """How many genes tell each species; genes that tell none are not counted."""
    only = _symbols_of_one_species()
    votes: Counter[str] = Counter()
    for symbol, ensembl in zip(symbols, ensembl_ids or [None] * len(symbols), strict=True):
        said = species_of_id(ensembl or "") or species_of_id(symbol) or _of_reference(symbol) or only.get(symbol)
        if said is not None:
            votes[said] += 1
    return votes


def species_of_id(name: str) -> str | None:
    """What an Ensembl gene id tells: a species, or its prefix for one that has no name here; None for another name."""
    match = _ENSEMBL.fullmatch(name)
    return _BY_PREFIX.get(match.group(1), match.group(1)) if match else None


def _of_reference(symbol: str) -> str | None:
    match = _REFERENCE.match(symbol)  # Space Ranger writes GRCh38_ACTB where the reference has two genomes
    return _SPELLINGS[match.group(1).lower()] if match else None


@cache
def _symbols_of_one_species() -> dict[str, str]:
    from histolake.platform.lake.genes import vocabulary

    human = set(vocabulary()["symbol"].to_pylist())
    mouse = {symbol for _, symbol, _ in mouse_genes()}
    return dict.fromkeys(human - mouse, "human") | dict.fromkeys(mouse - human, "mouse")


def check_species(
    stated: str | None,
    symbols: Sequence[str],
    ensembl_ids: Sequence[str | None] | None,
    *,
    min_fit: float,
    file: str | None,
) -> str | None:
    """The section's species: the stated one if the genes fit it, the recognised one if none is stated, None if neither
    is known. Raises `SourceError` by rule `species_fits` where less than `min_fit` of the telling genes agree."""
    stated = species_name(stated)
    votes = species_votes(symbols, ensembl_ids)
    if stated is not None and stated not in _BY_SYMBOL:
        votes = _by_id_alone(symbols, ensembl_ids)
    total = sum(votes.values())
    if total < MIN_VOTES:
        return stated
    found, most = votes.most_common(1)[0]
    judged = found if stated is None else stated
    fit = votes[judged] / total
    if fit >= min_fit:
        return judged
    told = ", ".join(f"{n} {name}" for name, n in votes.most_common(3))
    if most / total < min_fit:
        message = (
            f"The genes are of more than one species ({told}); one is needed. Take the genes of one species out of the "
            "counts, or read the data against its reference alone."
        )
    else:
        message = (
            f"The section is said to be {stated}, but its genes are of {found} ({told}). Correct `species`, or give "
            "the counts that belong to the section."
        )
    raise SourceError(message, rule="species_fits", figure=fit, limit=min_fit, file=file)


def _by_id_alone(symbols: Sequence[str], ensembl_ids: Sequence[str | None] | None) -> Counter[str]:
    pairs = zip(symbols, ensembl_ids or [None] * len(symbols), strict=True)
    told = (species_of_id(ensembl or "") or species_of_id(symbol) for symbol, ensembl in pairs)
    return Counter(species for species in told if species is not None)
