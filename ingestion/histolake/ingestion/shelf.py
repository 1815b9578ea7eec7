"""Judged slides between the worker that read them and those that write them.

An actor of its own holds references to the slides in Ray's object store, which workers on one machine map without a
copy. A reference in a row of a dataset would not do: Ray counts it only where it sees it, and keeps for ever what was
pickled into a row.

What waits is bounded twice. Slides are kept as long as they fit into `ROOM` of the object store; one for which there is
no room, or that is lost with its node, is read again by those who write it. And a new section is let in to be
read only when it is less than so many sections after the oldest that is not whole yet, or reading would run ahead of
writing and all the room would go to slides that are wanted last.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from histolake.ingestion.handover import PackedSlide, pack
from histolake.ingestion.slide import Slide

__all__ = ["Shelf", "put_up"]

ROOM = 0.6  # of the object store


@dataclass(frozen=True)
class Shelf:
    """The shelf as workers and the driver see it: safe to send. One that has died holds nothing and lets all in."""

    _keeper: Any

    def wait_for(self, place: int) -> None:
        """Return when the section at this place of the order may be read."""
        self._ask("wait_for", place)

    def keep(self, slide_id: str, slide: Slide) -> bool:
        """Keep a judged slide if there is room for it; whether it was kept."""
        import ray

        packed = pack(slide, self._ask("room_bytes") or 0)
        return packed is not None and bool(self._ask("keep", slide_id, packed.nbytes, [ray.put(packed)]))

    def slide(self, slide_id: str) -> PackedSlide | None:
        """The slide, or None where it was not kept or is lost."""
        import ray

        held = self._ask("held", slide_id)
        try:
            return ray.get(held[0]) if held else None
        except ray.exceptions.ObjectLostError:
            return None

    def done(self, slide_id: str) -> None:
        """The section is whole, or refused: let go of its slide, and let another one in. Does not wait."""
        self._keeper.done.remote(slide_id)

    def is_first(self, what: str) -> bool:
        """Whether nobody has asked this of the same before."""
        return bool(self._ask("is_first", what))

    def take_down(self) -> None:
        """End it."""
        import ray

        ray.kill(self._keeper)

    def _ask(self, what: str, *given: Any) -> Any:
        import ray

        try:
            return ray.get(getattr(self._keeper, what).remote(*given))
        except ray.exceptions.RayActorError:
            return None


def put_up(ahead: int) -> Shelf:
    """Start a shelf that lets sections in which are less than `ahead` after the oldest that is not whole."""
    import ray

    room_bytes = int(ray.cluster_resources().get("object_store_memory", 0) * ROOM)
    actor = ray.remote(_Keeper).options(num_cpus=0, max_concurrency=1000)
    return Shelf(actor.remote(room_bytes, ahead))


class _Keeper:
    """The actor."""

    def __init__(self, room_bytes: int, ahead: int) -> None:
        self._room_bytes = room_bytes
        self._ahead = ahead
        self._held: dict[str, tuple[int, list[Any]]] = {}
        self._done: set[str] = set()
        self._asked: set[str] = set()
        self._changed = asyncio.Condition()

    async def wait_for(self, place: int) -> None:
        # Those before the oldest open section are done, so that it is always let in itself.
        async with self._changed:
            await self._changed.wait_for(lambda: place < len(self._done) + self._ahead)

    async def is_first(self, what: str) -> bool:
        known = what in self._asked
        self._asked.add(what)
        return not known

    async def room_bytes(self) -> int:
        return self._room_bytes

    async def keep(self, slide_id: str, size: int, held: list[Any]) -> bool:
        self._drop(slide_id)  # it was read twice, because its first reader died
        if size > self._room_bytes:
            return False
        self._held[slide_id] = (size, held)
        self._room_bytes -= size
        return True

    async def held(self, slide_id: str) -> list[Any]:
        return self._held[slide_id][1] if slide_id in self._held else []

    async def done(self, slide_id: str) -> None:
        async with self._changed:
            self._drop(slide_id)
            self._done.add(slide_id)
            self._changed.notify_all()

    def _drop(self, slide_id: str) -> None:
        size, _ = self._held.pop(slide_id, (0, []))
        self._room_bytes += size
