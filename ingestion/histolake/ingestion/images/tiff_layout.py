"""What a TIFF file says of itself: whether it is whole, and which of its pages are the picture.

A slide's TIFF holds more than the slide: reduced copies (as further pages or as sub-pages), a label, a photograph. The
picture is the largest page that can be decoded here; its levels are the pages of the same shape. An OME-TIFF says
in XML which pages belong together, also where each colour is a page of its own.

Offsets are checked against the file's length page by page, because libtiff and OpenSlide read over the end of a
truncated file, or pass its last pages over, without an error.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from histolake.ingestion.images.files import ImageFile

__all__ = ["TIFF_MAGIC", "Level", "Picture", "find_picture", "is_tiff", "missing_bytes", "stack_in"]

TIFF_MAGIC = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}

NEXT_TAGS = {330, 34665, 34853}  # sub-pages, EXIF and GPS: offsets of further directories
SEGMENTS = {273: 279, 324: 325}  # StripOffsets: StripByteCounts, TileOffsets: TileByteCounts
HAMAMATSU = 65420  # an NDPI file holds offsets of 64 bits in a classic TIFF, in a way of its own
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NUMBERS = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}

SEGMENT_PX = 16 << 20  # a strip or tile above this is left to a decoder that streams
RGB, GREY, YCBCR = 2, 1, 6
JPEG = 7
# none, LZW, JPEG, deflate (two numbers), PackBits, JPEG 2000 (Aperio's in RGB, and the general), Zstandard, WebP
DECODED = {1, 5, 7, 8, 32946, 32773, 33005, 34712, 50000, 50001}
SAME_SHAPE = 0.02  # a level's sides are the picture's over one factor, to this fraction (they are rounded)


def is_tiff(file: ImageFile) -> bool:
    """Whether the bytes begin like a TIFF or a BigTIFF."""
    return file.head[:4] in TIFF_MAGIC


def missing_bytes(path: Path) -> str | None:
    """What lies beyond the end of a TIFF file, in words; None where the file is whole."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        try:
            for what, end in _ends(stream, size):
                if end > size:
                    return f"{what} would end at byte {end}, the file ends at {size}"
        except struct.error:
            return f"the file ends at byte {size} within its list of pages"
    return None


def _ends(stream: BinaryIO, size: int) -> Iterator[tuple[str, int]]:
    """Where each page's directory and pixels end."""
    order, big = TIFF_MAGIC[stream.read(4)]
    if not big and size >= 1 << 32:  # more than a classic TIFF can hold
        yield from _hamamatsu_ends(stream)
        return
    stream.seek(8 if big else 4)
    (first,) = struct.unpack(order + ("Q" if big else "I"), stream.read(8 if big else 4))
    waiting, seen = [first], set()
    while waiting:
        offset = waiting.pop()
        if offset == 0 or offset in seen:
            continue
        seen.add(offset)
        yield "a page", offset + 2
        if offset + 2 > size:
            return
        stream.seek(offset)
        (count,) = struct.unpack(order + ("Q" if big else "H"), stream.read(8 if big else 2))
        data = stream.read(count * (20 if big else 12))
        tags = {tag: entry for tag, *entry in _entries(data, order, big)}
        if HAMAMATSU in tags:
            yield from _hamamatsu_ends(stream)
            return
        (following,) = struct.unpack(order + ("Q" if big else "I"), stream.read(8 if big else 4))
        waiting += [following, *(at for tag in NEXT_TAGS & set(tags) for at in _values(stream, order, big, tags[tag]))]
        for offsets, counts in SEGMENTS.items():
            if offsets in tags and counts in tags:
                starts, lengths = (_values(stream, order, big, tags[tag]) for tag in (offsets, counts))
                yield "its pixels", max((a + n for a, n in zip(starts, lengths, strict=False) if n), default=0)


def _hamamatsu_ends(stream: BinaryIO) -> Iterator[tuple[str, int]]:
    """The same for an NDPI file, whose offsets tifffile knows how to read."""
    import tifffile

    stream.seek(0)
    try:
        with tifffile.TiffFile(stream, is_ndpi=True) as tiff:
            if not len(tiff.pages):
                raise struct.error("no page is there")
            for page in tiff.pages:
                if not isinstance(page, tifffile.TiffPage):
                    page = page.aspage()
                yield "its pixels", max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    except tifffile.TiffFileError as error:
        raise struct.error(str(error)) from error


def _entries(data: bytes, order: str, big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """(tag, type, count, the bytes of its value or of its offset) of a directory."""
    size, head = (20, order + "HHQ") if big else (12, order + "HHI")
    for at in range(0, len(data), size):
        entry = data[at : at + size]
        yield *struct.unpack(head, entry[: struct.calcsize(head)]), entry[struct.calcsize(head) :]


def _values(stream: BinaryIO, order: str, big: bool, entry: list[Any]) -> tuple[int, ...]:
    kind, count, value = entry
    if kind not in NUMBERS:
        return ()
    length = SIZES[kind] * count
    if length > len(value):
        stream.seek(struct.unpack(order + ("Q" if big else "I"), value)[0])
        value = stream.read(length)
    return struct.unpack(f"{order}{count}{NUMBERS[kind]}", value[:length])


@dataclass(frozen=True)
class Level:
    """One size of the picture: a page that holds all its colours, or a page for each of them."""

    pages: tuple[Any, ...]  # tifffile's pages

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height."""
        return self.pages[0].imagewidth, self.pages[0].imagelength


@dataclass(frozen=True)
class Picture:
    """The levels of the slide, the largest first, and how many bits of each sample are used."""

    levels: tuple[Level, ...]
    bits: int  # 8 or up to 16

    @property
    def is_tiled(self) -> bool:
        """Whether a region can be read without the rest of its rows."""
        return bool(self.levels[0].pages[0].is_tiled)


def find_picture(tiff: Any) -> Picture | None:
    """The picture in an open `tifffile.TiffFile`, or None where it must be decoded by something else."""
    return _ome_picture(tiff) if tiff.is_ome else _plain_picture(tiff)


def stack_in(tiff: Any) -> str | None:
    """What an OME-TIFF holds in place of a picture in colour, in words; None where it may be a picture."""
    if not tiff.is_ome or not tiff.series:
        return None
    series = max(tiff.series, key=lambda series: series.keyframe.imagewidth * series.keyframe.imagelength)
    sizes = dict(zip(series.axes, series.shape, strict=True))
    planes = {axis: n for axis, n in sizes.items() if axis not in "YXS" and n > 1}
    return ", ".join(f"{n} planes along {axis}" for axis, n in planes.items()) if planes not in ({}, {"C": 3}) else None


def _ome_picture(tiff: Any) -> Picture | None:
    """The largest image of an OME-TIFF: (Y, X), (Y, X, samples), or one page a colour."""
    found = []
    for series in tiff.series:
        levels = [_ome_level(level) for level in series.levels]
        if levels and levels[0] is not None:
            found.append([level for level in levels if level is not None])
    return _picture(max(found, key=lambda levels: _area(levels[0]))) if found else None


def _ome_level(series: Any) -> Level | None:
    sizes = dict(zip(series.axes, series.shape, strict=True))
    stacked = {axis: n for axis, n in sizes.items() if axis not in "YXSC" and n > 1}
    pages = tuple(series.pages)
    if stacked or None in pages or len(pages) not in (1, 3):
        return None
    keyframe = series.keyframe
    pages = tuple(page if getattr(page, "is_tiled", None) is not None else page.aspage() for page in pages)
    if len(pages) == 3 and keyframe.samplesperpixel != 1:
        return None
    return Level(pages) if all(_decodable(page) for page in pages) else None


def _plain_picture(tiff: Any) -> Picture | None:
    pages = [page for page in tiff.pages if getattr(page, "imagewidth", 0)]
    decodable = [Level((page,)) for page in pages if _decodable(page)]
    if not decodable:
        return None
    base = max(decodable, key=_area)
    if any(_area(Level((page,))) > _area(base) for page in pages):
        return None  # the largest page is the picture, and it cannot be decoded here
    below = [Level((page,)) for page in base.pages[0].pages or () if _decodable(page)]
    smaller = [level for level in [*decodable, *below] if level.pages[0].is_tiled and _reduced(level, base)]
    return _picture([base, *smaller])


def _picture(levels: list[Level]) -> Picture:
    levels = sorted(levels, key=_area, reverse=True)
    kept = [levels[0]] + [b for a, b in pairwise(levels) if b.size_px != a.size_px]
    page = kept[0].pages[0]
    return Picture(tuple(kept), page.bitspersample)


def _area(level: Level) -> int:
    return level.size_px[0] * level.size_px[1]


def _reduced(level: Level, base: Level) -> bool:
    across, down = (b / a for a, b in zip(level.size_px, base.size_px, strict=True))
    return across > 1.2 and abs(across / down - 1) < SAME_SHAPE


def _decodable(page: Any) -> bool:
    """Whether a page's pixels are colours or greys of 8 or 16 bits in segments that can be decoded one by one."""
    photometrics = {RGB, GREY} | ({YCBCR} if page.compression == JPEG else set())
    segment_px = page.tilewidth * page.tilelength
    if not page.is_tiled:
        segment_px = page.imagewidth * min(page.rowsperstrip, page.imagelength)
    return (
        page.dtype is not None
        and page.dtype.name in ("uint8", "uint16")
        and page.bitspersample in (8, 16)
        and page.samplesperpixel in (1, 3, 4)
        and page.photometric in photometrics
        and page.compression in DECODED
        and segment_px <= SEGMENT_PX
    )
