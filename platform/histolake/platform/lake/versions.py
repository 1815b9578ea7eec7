"""Names for versions, and the floor below which versions were expired.

Both are properties of the Delta table `catalog/slides`, so they come with the metadata of an open table, and each
change is a Delta commit of its own that conflicts with every other: a tag can never be set on a version while an expiry
of it is decided. Because the lake's version is that table's version, it counts up by a tag; the slides stay the same.

A tag's note lies in `tags/<name>.json`, not in the table: a note is free text, and text in a table's log could not be
forgotten.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from histolake.platform.errors import UsageError, VersionError
from histolake.platform.storage import Location

if TYPE_CHECKING:
    from histolake.platform.lake.lake import Lake

__all__ = ["Tag", "floor_of", "named_in", "notes_naming", "remove_tag", "resolve", "set_tag", "tags", "tags_of"]

TAGS = "histolake.tags"  # JSON: name -> {"version", "when"}
FLOOR = "histolake.expired_before"  # versions below it cannot be read again
NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A name for a version."""

    name: str
    version: int
    when: str  # it was set, ISO 8601
    note: str = ""


def tags_of(properties: Mapping[str, str]) -> dict[str, Tag]:
    """The tags, by name, without their notes."""
    held: dict[str, dict[str, Any]] = json.loads(properties.get(TAGS, "{}"))
    return {name: Tag(name=name, **entry) for name, entry in sorted(held.items())}


def floor_of(properties: Mapping[str, str]) -> int:
    """The oldest version that can be read."""
    return int(properties.get(FLOOR, "0"))


def resolve(version: int | str | None, newest: int, properties: Mapping[str, str], uri: str) -> int:
    """The number of a version that is given by number, as text, or by a tag's name; the newest if none is given.

    Raises `VersionError` for one that is not there, or was expired.
    """
    if version is None:
        return newest
    if isinstance(version, str) and not version.isdecimal():
        known = tags_of(properties)
        if version not in known:
            named = f"its tags are {', '.join(known)}" if known else "it has no tags"
            raise VersionError(f"{uri} has no version {version!r}; {named}, and a version may be given by its number.")
        version = known[version].version
    number, floor = int(version), floor_of(properties)
    if not 0 <= number <= newest:
        raise VersionError(f"{uri} has no version {number}; it has {floor} to {newest}.")
    if number < floor:
        raise VersionError(f"Version {number} of {uri} was expired; {floor} to {newest} can be read.")
    return number


def tags(lake: Lake) -> list[Tag]:
    """The tags of a lake, by name, with their notes."""
    return [
        Tag(name=tag.name, version=tag.version, when=tag.when, note=_read_note(_note(lake, tag.name)))
        for tag in tags_of(lake.catalog.properties()).values()
    ]


def set_tag(lake: Lake, name: str, version: int | str | None = None, *, note: str = "", move: bool = False) -> Tag:
    """Give a version (the newest, if none is given) a name. A tag that names another version stays unless `move`.

    Raises `UsageError` or `VersionError`.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a tag: write a letter, then up to 63 letters, digits, dots, dashes or underscores."
        )
    set_at = datetime.now(UTC).isoformat()
    chosen: list[Tag] = []

    def change(newest: int, properties: dict[str, str]) -> dict[str, str]:
        held = tags_of(properties)
        mine = held.get(name)
        if mine is not None and mine.when == set_at:  # our commit succeeded though it was answered with an error
            chosen[:] = [mine]
            return {}
        number = resolve(version, newest, properties, lake.uri)
        if mine is not None and mine.version != number and not move:
            raise UsageError(f"The tag {name} names version {mine.version}; --move lets it name {number}.")
        if mine is not None and mine.version == number:
            chosen[:] = [mine]
            return {}
        chosen[:] = [Tag(name=name, version=number, when=set_at)]
        return {TAGS: _text({**held, name: chosen[0]})}

    lake.catalog.change_properties(change, {"did": "tagged", "name": name})
    if note:
        _note(lake, name).write_bytes(json.dumps({"note": note}).encode())
    elif chosen[0].when == set_at:
        _note(lake, name).delete()  # it was said of another version
    return Tag(name=name, version=chosen[0].version, when=chosen[0].when, note=_read_note(_note(lake, name)))


def remove_tag(lake: Lake, name: str) -> Tag:
    """Take a name away; the version stays. Raises `VersionError` where there is none."""
    removed: list[Tag] = []

    def change(newest: int, properties: dict[str, str]) -> dict[str, str]:
        held = tags_of(properties)
        if name not in held and not removed:
            raise VersionError(f"{lake.uri} has no tag {name!r}; `histolake lake tag` lists them.")
        if name not in held:  # our commit succeeded though it was answered with an error
            return {}
        removed[:] = [held.pop(name)]
        return {TAGS: _text(held) if held else ""}

    lake.catalog.change_properties(change, {"did": "untagged", "name": name})
    _note(lake, name).delete()
    return removed[0]


def notes_naming(lake: Lake, names: Iterable[str]) -> list[str]:
    """The tags whose note names one of these."""
    files = [place for place in lake.root.join("tags").list() if place.suffix == ".json"]
    return [place.name.removesuffix(".json") for place in files if named_in(_read_note(place), names)]


def named_in(text: str, names: Iterable[str]) -> bool:
    """Whether a text holds one of these names as a word by itself."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)


def _text(held: Mapping[str, Tag]) -> str:
    return json.dumps({tag.name: {"version": tag.version, "when": tag.when} for tag in held.values()})


def _note(lake: Lake, name: str) -> Location:
    return lake.root.join("tags", f"{name}.json")


def _read_note(place: Location) -> str:
    try:
        return str(json.loads(place.read_bytes())["note"])
    except FileNotFoundError:
        return ""
