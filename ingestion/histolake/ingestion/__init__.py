"""Files in, pairs out: readers, quality rules, sentences, niches, patches, and the pipeline around them.

Names are loaded when they are first used, so that `histolake --help` and a plain import stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histolake.ingestion.discover import Candidate, find_sections
    from histolake.ingestion.duplicates import DuplicateSettings
    from histolake.ingestion.genes import GeneSettings
    from histolake.ingestion.outcome import Outcome
    from histolake.ingestion.pipeline import ingest, ingest_settings, plan
    from histolake.ingestion.quality import QualitySettings
    from histolake.ingestion.readers import SlideReader, Source
    from histolake.ingestion.sentences import SentenceSettings, gene_sentences
    from histolake.ingestion.simulate import simulate_cohort
    from histolake.ingestion.slide import Slide, SlideImage, SlideMetadata
    from histolake.ingestion.tiling import PatchSettings, tile

__all__ = [
    "Candidate",
    "DuplicateSettings",
    "GeneSettings",
    "Outcome",
    "PatchSettings",
    "QualitySettings",
    "SentenceSettings",
    "Slide",
    "SlideImage",
    "SlideMetadata",
    "SlideReader",
    "Source",
    "find_sections",
    "gene_sentences",
    "ingest",
    "ingest_settings",
    "plan",
    "simulate_cohort",
    "tile",
]

_HOME = {
    "Candidate": "discover",
    "DuplicateSettings": "duplicates",
    "GeneSettings": "genes",
    "Outcome": "outcome",
    "PatchSettings": "tiling",
    "QualitySettings": "quality",
    "SentenceSettings": "sentences",
    "Slide": "slide",
    "SlideImage": "slide",
    "SlideMetadata": "slide",
    "SlideReader": "readers",
    "Source": "readers",
    "find_sections": "discover",
    "ingest": "pipeline",
    "ingest_settings": "pipeline",
    "plan": "pipeline",
    "gene_sentences": "sentences",
    "simulate_cohort": "simulate",
    "tile": "tiling",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"histolake.ingestion.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
