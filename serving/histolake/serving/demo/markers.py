"""Marker sentences to annotate sections with: each class is a line of gene symbols, strongest first.

For breast, markers that pathologists and single-cell atlases of the tissue know these compartments by; for other organs
compartments that most tissues have. For the simulated cohort its domains, with the genes that its cells were given.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["marker_sentences"]

BREAST = {
    "tumour epithelium": "ERBB2 KRT8 KRT18 KRT19 EPCAM MUC1 CDH1 GRB7",
    "plasma and B cells": "IGKC IGHG1 IGHG3 JCHAIN MZB1 CD79A MS4A1 CD74",
    "stroma": "COL1A1 COL1A2 COL3A1 DCN LUM SPARC FN1 POSTN",
    "adipose": "ADIPOQ FABP4 PLIN1 PLIN4 LPL CD36 CIDEC ADIRF",
}
ANY_TISSUE = {
    "epithelium": "EPCAM KRT8 KRT18 KRT19 CDH1 CLDN4 MUC1",
    "immune": "PTPRC CD74 CD3E CD79A IGKC LYZ CD68",
    "stroma": "COL1A1 COL1A2 COL3A1 DCN LUM SPARC",
    "endothelium": "PECAM1 VWF CDH5 CLDN5 PLVAP KDR",
}
# Domain -> the cell types of the simulation that it is mostly made of.
SIMULATED_DOMAINS = {
    "tumour": ("tumour",),
    "gland": ("luminal",),
    "stroma": ("fibroblast",),
    "adipose": ("adipocyte",),
    "immune": ("t_cell", "b_cell"),
    "necrosis": ("hypoxic",),
}
OF_EACH = 8  # symbols a class


def marker_sentences(organ: str | None, *, simulated: bool) -> Mapping[str, str]:
    """Class -> its marker sentence."""
    if not simulated:
        return BREAST if (organ or "").strip().lower() == "breast" else ANY_TISSUE
    from histolake.ingestion.simulate.expression import MARKERS

    found = {}
    for domain, types in SIMULATED_DOMAINS.items():
        lists = [MARKERS[name].split()[: OF_EACH // len(types)] for name in types]
        found[domain] = " ".join(symbol for listed in lists for symbol in listed)
    return found
