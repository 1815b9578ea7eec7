"""Housekeeping genes: which symbols a sentence leaves out because every cell expresses them.

The shipped list is `data/housekeeping_human.txt` (source and terms in the `.md` beside it). On mouse sections it stands
for the mouse genes of the same spelling (Actb) and for those that are the one orthologue of a listed gene (Txn1 for
TXN). Leaving genes out costs something: a listed gene can still tell tissues apart (VIM, CD74; OmiCLIP's own example of
a tumour names ACTB). Whoever needs them gives a list of their own or none.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from histolake.platform.errors import SettingsError
from histolake.platform.storage import Location

__all__ = ["SHIPPED", "housekeeping_symbols", "left_out", "mouse_genes"]

SHIPPED = "shipped"
LIST = "data/housekeeping_human.txt"
MOUSE = "data/ensembl_mouse.csv.gz"


def housekeeping_symbols(setting: str) -> tuple[str, ...]:
    """The symbols that `sentences.housekeeping` names, in capitals, sorted: the shipped list, none for "", or the lines
    of the text file at a path or URI. Raises `SettingsError`."""
    if not setting:
        return ()
    if setting == SHIPPED:
        return _symbols(files("histolake.ingestion").joinpath(LIST).read_text("utf-8").splitlines())
    location = Location.parse(setting)
    if not location.is_file():
        raise SettingsError(
            f"sentences.housekeeping names {setting}, where there is no file; give a text file with one gene symbol a "
            f'line, "{SHIPPED}" for the list that comes with histolake, or "" to leave no gene out.'
        )
    lines = location.read_bytes().decode("utf-8-sig").splitlines()
    found = _symbols(lines)
    odd = next((symbol for symbol in found if len(symbol.split()) > 1 or "," in symbol), None)
    if odd is not None or not found:
        told = f"the line {odd[:60]!r}" if odd else "no symbols"
        raise SettingsError(f"The housekeeping list {setting} holds {told}; write one gene symbol a line.")
    return found


def _symbols(lines: Iterable[str]) -> tuple[str, ...]:
    """Symbols of a list: one a line, `#` begins a comment."""
    words = (line.split("#", 1)[0].strip() for line in lines)
    return tuple(sorted({word.upper() for word in words if word}))


@cache
def left_out(listed: tuple[str, ...], species: str) -> frozenset[str]:
    """What a list means for a species, in capitals: its symbols, and on mouse their one-to-one orthologues too."""
    if species != "mouse" or not listed:
        return frozenset(listed)
    named = set(listed)
    return frozenset(named | {symbol.upper() for _, symbol, human in mouse_genes() if human.upper() in named})


@cache
def mouse_genes() -> tuple[tuple[str, str, str], ...]:
    """The shipped mouse genes: Ensembl id, symbol, and the human symbol where that is its one orthologue, else ""."""
    import gzip

    packed = files("histolake.ingestion").joinpath(MOUSE).read_bytes()
    rows = gzip.decompress(packed).decode().splitlines()
    return tuple((parts[0], parts[1], parts[2]) for parts in (row.split(",") for row in rows))
