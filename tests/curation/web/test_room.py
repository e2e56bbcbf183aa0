import asyncio
import random

import pytest

from curation.web.room import Room


@pytest.mark.parametrize("announced", [True, False])
def test_the_limit_holds_and_everyone_gets_through(announced: bool) -> None:
    connections = asyncio.Semaphore(15)
    peaks = []

    async def body(room: Room, size: int, order: random.Random) -> None:
        async with connections:
            share = await room.take(10)
            try:
                await asyncio.sleep(order.random() / 1000)
                while share.n_bytes < size:  # of unannounced length: half of what it may need is held while it waits
                    await share.reach(size if announced else min(2 * share.n_bytes, size))
                    peaks.append((room.used, share.in_lane))
                    await asyncio.sleep(order.random() / 1000)
                share.shrink(size // 2)
            finally:
                share.release()
                share.release()

    async def scenario() -> None:
        room, order = Room(300, lane=150), random.Random(7)
        tasks = [asyncio.create_task(body(room, order.randrange(150), order)) for _ in range(300)]
        await asyncio.sleep(0.003)
        for task in order.sample(tasks, 60):
            task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert sum(each is None for each in done) >= 240
        assert max(used for used, _ in peaks) <= 150
        assert max(lane for _, lane in peaks) <= 150
        assert room.used == 0

    asyncio.run(scenario())


def test_bodies_that_hold_half_each_do_not_wait_for_each_other() -> None:
    async def scenario() -> None:
        room = Room(200, lane=100)
        shares = [await room.take(50) for _ in range(2)]  # the room is full
        growing = [asyncio.create_task(share.reach(100)) for share in shares]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert [task.done() for task in growing] == [True, False]
        assert (room.used, shares[0].in_lane) == (100, 50)
        shares[0].release()
        await asyncio.wait_for(growing[1], 1)

    asyncio.run(scenario())


def test_who_holds_a_part_comes_before_who_begins() -> None:
    async def scenario() -> None:
        room = Room(110, lane=10)
        share, other = await room.take(50), await room.take(50)
        begins = asyncio.create_task(room.take(30))
        await asyncio.sleep(0)
        grows = asyncio.create_task(share.reach(90))
        await asyncio.sleep(0)
        other.release()
        await asyncio.wait_for(grows, 1)
        assert not begins.done()
        share.release()
        (await begins).release()
        assert room.used == 0

    asyncio.run(scenario())
