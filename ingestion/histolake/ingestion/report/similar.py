"""Sections that are likely the same: what the ingest noted, and images whose hashes are close, cohort against lake.

A perceptual hash says how a picture looks, not what it is: two sections of one block may come near each other without
being copies, and simulated sections of one kind look alike. So these are pairs to look at, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from histolake.ingestion.duplicates import containment
from histolake.ingestion.report.facts import Likeness, Section

__all__ = ["NEAR_BITS", "find_alike", "hamming"]

NEAR_BITS = 8  # hashes that differ in no more are listed as near, or in what the settings call near if that is more
MOST = 60  # pairs listed at most, the nearest first
BLOCK = 1024  # hashes compared at once


def find_alike(sections: Sequence[Section], lake_slides: pa.Table, near_bits: int = NEAR_BITS) -> list[Likeness]:
    """Pairs of look-alikes with at least one section of the cohort, the likeliest first.

    `lake_slides` are all published slides of the version (`slide_id`, `image_hash`, `profile_sketch`).
    """
    found: dict[frozenset[str], Likeness] = {}
    known = sorted(lake_slides["slide_id"].to_pylist(), key=len, reverse=True)
    bits = _bits_apart(sections, lake_slides, near_bits)
    for section in sections:
        if section.refusal is not None and section.refusal.rule.startswith("duplicate"):
            noted = [str(name) for name in section.row.get("look_alikes") or ()]
            other = noted[0] if noted else _named_in(section.refusal.reason, known, section.slide_id)
            if other is not None:
                pair = frozenset((section.slide_id, other))
                found[pair] = Likeness(
                    one=section.slide_id, other=other, why=section.refusal.reason, bits=bits.get(pair), refused=True
                )
    for section in sections:
        for other in section.row.get("look_alikes") or ():
            pair = frozenset((section.slide_id, str(other)))
            found.setdefault(
                pair,
                Likeness(
                    one=section.slide_id,
                    other=str(other),
                    why="The ingest noted that their content is likely the same.",
                    bits=bits.get(pair),
                ),
            )
    for pair, apart in sorted(bits.items(), key=lambda item: item[1]):
        if pair not in found and len(found) < MOST:
            one, other = _ordered(pair, sections)
            why = "Their images look the same." if apart == 0 else "Their images look much the same."
            found[pair] = Likeness(one=one, other=other, why=why, bits=apart)
    return _with_shared(list(found.values())[:MOST], lake_slides)


def _with_shared(found: Sequence[Likeness], lake_slides: pa.Table) -> list[Likeness]:
    """The same, with the share of spots that two published slides have in common, from the sketches of their spots."""
    sketches = dict(
        zip(lake_slides["slide_id"].to_pylist(), lake_slides["profile_sketch"].to_pylist(), strict=True)
        if len(found)
        else ()
    )
    made = []
    for likeness in found:
        one, other = (sketches.get(slide_id) or [] for slide_id in (likeness.one, likeness.other))
        both = [containment(one, other), containment(other, one)]
        shares = [share for share, hashes in both if hashes]
        made.append(replace(likeness, shared=max(shares)) if shares and not likeness.refused else likeness)
    return made


def hamming(one: str, other: str) -> int:
    """How many bits of two hexadecimal hashes differ."""
    return (int(one, 16) ^ int(other, 16)).bit_count()


def _bits_apart(sections: Sequence[Section], lake_slides: pa.Table, near_bits: int) -> dict[frozenset[str], int]:
    """Pairs of near hashes: cohort against lake, in blocks; a row of the lake beside a block costs a popcount."""
    mine = [(s.slide_id, str(s.row["image_hash"])) for s in sections if s.row.get("image_hash")]
    theirs = [
        (str(slide_id), str(value))
        for slide_id, value in zip(
            lake_slides["slide_id"].to_pylist(), lake_slides["image_hash"].to_pylist(), strict=True
        )
        if value
    ]
    near: dict[frozenset[str], int] = {}
    if not mine or not theirs:
        return near
    other_LW = _words([value for _, value in theirs])
    for start in range(0, len(mine), BLOCK):
        block = mine[start : start + BLOCK]
        one_BW = _words([value for _, value in block])
        if one_BW.shape[1] != other_LW.shape[1]:
            continue
        apart_BL = np.bitwise_count(one_BW[:, None, :] ^ other_LW[None, :, :]).sum(axis=2)
        places = np.argwhere(apart_BL <= near_bits)
        nearest = np.argsort(apart_BL[tuple(places.T)], kind="stable")[: MOST * len(block)]
        for i, j in places[nearest]:
            pair = frozenset((block[i][0], theirs[j][0]))
            if len(pair) == 2:
                near[pair] = min(near.get(pair, near_bits), int(apart_BL[i, j]))
    return near


def _words(hashes: Sequence[str]) -> np.ndarray:
    """Hexadecimal hashes as 64-bit words, (hashes, words)."""
    width = -(-max(len(value) for value in hashes) // 16)
    numbers = [int(value, 16) for value in hashes]
    mask = (1 << 64) - 1
    return np.array([[(n >> (64 * w)) & mask for w in range(width)] for n in numbers], dtype=np.uint64)


def _named_in(sentence: str, known: Sequence[str], own: str) -> str | None:
    """The slide that a sentence names; longer names first, so that no name is found inside another."""
    return next((slide_id for slide_id in known if slide_id != own and slide_id in sentence), None)


def _ordered(pair: frozenset[str], sections: Sequence[Section]) -> tuple[str, str]:
    mine = {section.slide_id for section in sections}
    one, other = sorted(pair, key=lambda slide_id: (slide_id not in mine, slide_id))
    return one, other
