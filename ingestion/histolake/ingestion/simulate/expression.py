"""Simulated expression: cell types with marker genes, mixed in each spot, counted with noise.

Axes: N spots, T cell types, D domains, G genes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from histolake.ingestion.simulate.anatomy import DOMAINS

__all__ = ["CELL_TYPES", "Programme", "draw_counts", "make_programme", "mix_cells", "patient_programme"]

# Genes that pathologists and single-cell atlases of the breast know these cells by.
MARKERS = {
    "tumour": "ERBB2 GRB7 KRT8 KRT18 KRT19 EPCAM MUC1 CDH1 MKI67 TOP2A CCND1 ESR1 GATA3 TFF1 TFF3 AGR2 S100A14 CLDN4",
    "luminal": "SCGB2A2 LTF PIP KRT15 KRT7 ELF5 SLPI KIT PROM1 AZGP1 WFDC2 ALDH1A3 KRT14 KRT5 ACTA2 OXTR",
    "fibroblast": "COL1A1 COL1A2 COL3A1 DCN LUM FN1 SPARC POSTN BGN FBLN1 MMP2 THY1 PDGFRB VCAN SFRP2 COL6A3",
    "adipocyte": "ADIPOQ PLIN1 PLIN4 FABP4 LPL CIDEC LEP G0S2 CD36 PPARG AQP7 ADIRF GPD1 LIPE",
    "t_cell": "CD3D CD3E CD2 TRAC IL7R CCL5 CD8A GZMK LTB TRBC1 CXCR4 CD69 NKG7 CD52",
    "b_cell": "MS4A1 CD79A CD19 IGHM IGKC IGHG1 JCHAIN MZB1 CD37 BANK1 CXCL13 CR2 TNFRSF13C XBP1",
    "macrophage": "CD68 CD163 LYZ C1QA C1QB C1QC APOE MARCO SPP1 TYROBP CD14 AIF1 FCER1G MS4A6A",
    "endothelial": "PECAM1 VWF CDH5 CLDN5 PLVAP ENG KDR EMCN RAMP2 EGFL7 AQP1 TIE1",
    "hypoxic": "CA9 VEGFA NDRG1 SLC2A1 ADM LDHA PGK1 BNIP3 ENO1 ANKRD37 P4HA1 HILPDA ANGPTL4 EGLN3",
}
CELL_TYPES = tuple(MARKERS)
COMMON = (
    "ACTB ACTG1 GAPDH B2M TMSB4X TMSB10 FTL FTH1 EEF1A1 TPT1 UBC UBB PFN1 CFL1 MYL6 SERF2 FAU RACK1 EEF2 NACA "
    "RPL13 RPL10 RPL3 RPLP1 RPLP0 RPS6 RPS18 RPS27 RPS2 RPSA MT-CO1 MT-CO2 MT-ND4 MT-ATP6 MT-CYB"
)
N_GENES = 760

_MIX = {  # what a domain is made of, in the order of CELL_TYPES
    "tumour": (0.74, 0.02, 0.08, 0.00, 0.04, 0.01, 0.06, 0.04, 0.01),
    "gland": (0.04, 0.60, 0.22, 0.01, 0.02, 0.01, 0.03, 0.06, 0.01),
    "stroma": (0.03, 0.02, 0.70, 0.02, 0.05, 0.02, 0.06, 0.10, 0.00),
    "adipose": (0.00, 0.01, 0.08, 0.76, 0.01, 0.01, 0.05, 0.08, 0.00),
    "immune": (0.03, 0.01, 0.05, 0.00, 0.43, 0.37, 0.08, 0.03, 0.00),
    "necrosis": (0.16, 0.00, 0.03, 0.00, 0.02, 0.00, 0.21, 0.01, 0.57),
}
_DEPTH = {"tumour": 6500, "gland": 5500, "stroma": 4600, "adipose": 3000, "immune": 7000, "necrosis": 3000}  # counts
_DISPERSION = 6.0  # of the negative binomial; higher is closer to Poisson
_CONCENTRATION = 45.0  # of the mixtures around their domain's mean
_PLAIN = re.compile(r"[A-Z][A-Z0-9]{2,6}")
_NOT_CODING = re.compile(
    r"(LINC|MIR|RNU|SNOR|RNA|OR\d|TRAV|TRBV|TRGV|TRDV|IGH|IGK|IGL|RPL|RPS|RN7|SCARNA).*|.*(P\d*|AS\d?)$"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Programme:
    """Which genes there are, and each cell type's share of counts for them."""

    symbols: list[str]
    profile_TG: np.ndarray  # rows sum to 1


def make_programme(rng: np.random.Generator, vocabulary: list[str]) -> Programme:
    """The genes of the cohort: markers, genes common to all cells, and others drawn from the vocabulary."""
    named = [g for words in MARKERS.values() for g in words.split()] + COMMON.split()
    pool = sorted({g for g in vocabulary if _PLAIN.fullmatch(g) and not _NOT_CODING.fullmatch(g)} - set(named))
    others = rng.choice(np.array(pool), N_GENES - len(named), replace=False).tolist()
    symbols = sorted([*named, *others])
    place = {gene: i for i, gene in enumerate(symbols)}
    base_G = rng.lognormal(0.0, 0.9, len(symbols))
    base_G[[place[g] for g in COMMON.split()]] *= 14.0
    base_G[[place[g] for words in MARKERS.values() for g in words.split()]] *= 0.12
    profile_TG = base_G * rng.lognormal(0.0, 0.45, (len(CELL_TYPES), len(symbols)))
    for t, words in enumerate(MARKERS.values()):
        markers = [place[g] for g in words.split()]
        profile_TG[t, markers] = rng.lognormal(3.1, 0.6, len(markers))
    return Programme(symbols=symbols, profile_TG=profile_TG / profile_TG.sum(axis=1, keepdims=True))


def patient_programme(rng: np.random.Generator, programme: Programme) -> Programme:
    """The same genes as one patient expresses them."""
    own_TG = programme.profile_TG * rng.lognormal(0.0, 0.3, len(programme.symbols))
    return Programme(symbols=programme.symbols, profile_TG=own_TG / own_TG.sum(axis=1, keepdims=True))


def mix_cells(rng: np.random.Generator, domains_ND: np.ndarray) -> np.ndarray:
    """Cell-type shares of each spot, (N, T): its domains' means, with the spread that real spots have."""
    mean_NT = domains_ND @ np.array([_MIX[name] for name in DOMAINS])
    drawn_NT = rng.standard_gamma(np.maximum(mean_NT, 1e-3) * _CONCENTRATION)
    return drawn_NT / drawn_NT.sum(axis=1, keepdims=True)


def draw_counts(
    rng: np.random.Generator, programme: Programme, domains_ND: np.ndarray, mix_NT: np.ndarray, depth: float, poor: int
) -> np.ndarray:
    """Counts (N, G), negative binomial around each spot's mixture; `poor` spots at random lose nearly all of theirs."""
    n = len(mix_NT)
    depth_N = depth * (domains_ND @ np.array([_DEPTH[name] for name in DOMAINS])) * rng.lognormal(0.0, 0.22, n)
    if poor:
        depth_N[rng.choice(n, poor, replace=False)] = rng.uniform(50, 140, poor)
    mean_NG = depth_N[:, None] * (mix_NT @ programme.profile_TG)
    return rng.poisson(mean_NG * rng.standard_gamma(_DISPERSION, mean_NG.shape) / _DISPERSION)
