"""The shelf on which judged slides wait: how much it holds, and who is let in."""

from __future__ import annotations

import asyncio

from histolake.ingestion.shelf import _Keeper


def test_what_does_not_fit_is_not_kept_and_room_comes_back() -> None:
    async def run() -> None:
        keeper = _Keeper(room_bytes=100, ahead=3)
        assert await keeper.keep("a", 60, ["ref a"]) and await keeper.room_bytes() == 40
        assert not await keeper.keep("b", 41, ["ref b"]) and await keeper.held("b") == []
        assert await keeper.keep("c", 40, ["ref c"]) and await keeper.room_bytes() == 0
        assert await keeper.held("a") == ["ref a"]
        await keeper.done("a")
        assert await keeper.room_bytes() == 60 and await keeper.held("a") == []
        assert await keeper.keep("c", 50, ["ref c, read again"]) and await keeper.room_bytes() == 50
        assert await keeper.held("c") == ["ref c, read again"]

    asyncio.run(run())


def test_a_section_waits_until_the_oldest_is_near_and_the_oldest_never_does() -> None:
    async def run() -> None:
        keeper = _Keeper(room_bytes=0, ahead=2)
        order = [f"s{n}" for n in range(6)]
        let_in: list[int] = []

        async def come(place: int) -> None:
            await keeper.wait_for(place)
            let_in.append(place)

        # They come in the wrong order, as tasks may.
        waiting = [asyncio.ensure_future(come(place)) for place in (5, 3, 1, 0, 2, 4)]
        await asyncio.sleep(0)
        for finished in (1, 0, 2, 3):
            for _ in range(5):
                await asyncio.sleep(0)
            await keeper.done(order[finished])
            await keeper.done(order[finished])  # twice is once
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert sorted(let_in) == list(range(6)) and set(let_in[:2]) == {0, 1}
        assert let_in.index(5) > let_in.index(3)

    asyncio.run(run())
