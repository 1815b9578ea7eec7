"""Gene sentences: symbols by falling expression."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["SentenceSettings"]


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """What a gene sentence holds."""

    length: int = 50  # symbols a sentence (OmiCLIP)
