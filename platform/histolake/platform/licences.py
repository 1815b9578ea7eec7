"""Licences under one name each: what curators write in a dozen ways, as an SPDX-like identifier to filter on.

The catalogue keeps the text as it was given; `licence_id` is derived from it whenever slides are filtered or shown.
A version is never guessed: "Creative Commons Attribution" is `CC-BY`, not `CC-BY-4.0`. A text that is none of the
common licences has no identifier.
"""

from __future__ import annotations

import re

__all__ = ["licence_id"]

_VERSION = re.compile(r"(?<![\d.])v?(\d\.\d)(?![\d.])")
_CREATIVE = re.compile(r"\bcreative ?commons|\bcc by|\bccby|creativecommons org", re.ASCII)
_OTHERS = (
    (re.compile(r"^(the )?mit( license| licence)?$"), "MIT"),
    (re.compile(r"\bapache\b.*\b2(\.0)?\b"), "Apache-2.0"),
    (re.compile(r"\bartistic\b.*\b2(\.0)?\b"), "Artistic-2.0"),
    (re.compile(r"\bbsd\b.*\b3\b|\b(new|revised) bsd\b"), "BSD-3-Clause"),
    (re.compile(r"\bbsd\b.*\b2\b|\bsimplified bsd\b"), "BSD-2-Clause"),
    (re.compile(r"\bodc[ -]?by\b"), "ODC-BY"),
    (re.compile(r"\bodbl\b|\bopen database licen[sc]e\b"), "ODbL"),
)


def licence_id(text: str | None) -> str | None:
    """The identifier of a licence as people write it, or None where it is none of the common ones.

    `CC BY 4.0`, `Creative Commons Attribution 4.0 International` and `https://creativecommons.org/licenses/by/4.0/`
    are all `CC-BY-4.0`; without a version it is `CC-BY`.
    """
    words = re.sub(r"[\s_/:,()-]+", " ", (text or "").casefold()).strip()
    if not words:
        return None
    if re.search(r"\bcc ?0\b|\bpublicdomain zero\b", words):
        return "CC0-1.0"  # there is no other version
    if _CREATIVE.search(words.replace(".org", " org")):
        return _creative_commons(words)
    return next((name for pattern, name in _OTHERS if pattern.search(words)), None)


def _creative_commons(words: str) -> str | None:
    if not re.search(r"\battribution|\bccby|\bby\b", words):
        return None
    parts = ["CC", "BY"]
    for mark, pattern in (
        ("NC", r"\bnc\b|non ?commercial"),
        ("ND", r"\bnd\b|no ?deriv"),
        ("SA", r"\bsa\b|share ?alike"),
    ):
        if re.search(pattern, words):
            parts.append(mark)
    version = _VERSION.search(words)
    return "-".join([*parts, version.group(1)] if version else parts)
