import asyncio

from curation.web.throttle import Throttle


def run_window(throttle: Throttle, congested: float, full: bool = True) -> float:
    """A window of requests of which so many show congestion; returns the limit that follows."""

    async def scenario() -> None:
        n = max(32, int(throttle.limit)) + 1
        if full:
            held = [await throttle.__aenter__() for _ in range(int(throttle.limit))]
            waits = asyncio.create_task(throttle.__aenter__())
            await asyncio.sleep(0)
            assert not waits.done()
            for _ in held:
                await throttle.__aexit__()
            await waits
            await throttle.__aexit__()
        for i in range(n):
            throttle.note(congested=i < congested * n)

    asyncio.run(scenario())
    assert throttle.in_flight == 0
    return throttle.limit


def test_it_grows_while_it_is_used_and_nothing_is_congested() -> None:
    throttle = Throttle(1000)
    limits = [run_window(throttle, 0.02) for _ in range(30)]
    assert limits == sorted(limits)
    assert limits[0] > 64
    assert limits[-1] == 1000


def test_it_does_not_grow_unused() -> None:
    throttle = Throttle(1000)
    assert run_window(throttle, 0.0, full=False) == 64


def test_congestion_takes_it_back_but_not_to_nothing() -> None:
    throttle = Throttle(1000)
    grown = [run_window(throttle, 0.0) for _ in range(5)][-1]
    assert run_window(throttle, 0.5) < grown
    assert [run_window(throttle, 1.0) for _ in range(20)][-1] == 8
    assert run_window(Throttle(4), 1.0) == 4


def test_a_waiter_that_gives_up_leaves_its_turn_to_the_next() -> None:
    async def scenario() -> None:
        throttle = Throttle(1)
        await throttle.__aenter__()
        first, second = (asyncio.create_task(throttle.__aenter__()) for _ in range(2))
        await asyncio.sleep(0)
        await throttle.__aexit__()
        first.cancel()  # its turn has come, but it is gone
        await asyncio.wait_for(second, 1)
        await throttle.__aexit__()
        assert throttle.in_flight == 0

    asyncio.run(scenario())
