"""What is kept of answers, and that each is made once, whoever leaves meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry, Counter

from model_service.serving import cache
from model_service.serving.cache import Cache
from model_service.serving.slots import Slots


class Kitchen:
    """Makes answers when it is told to, and counts them."""

    def __init__(self, size: int = 1000) -> None:
        self.requests = Counter("x", "", ["cache", "outcome"], registry=CollectorRegistry())
        self.cache = Cache(size, self.requests)
        self.made: list[str] = []
        self.go = asyncio.Event()

    def ask(self, key: str, seconds: float = 60.0, size: int = 10) -> Awaitable[str]:
        async def make() -> str:
            self.made.append(key)
            await self.go.wait()
            return key.upper()

        return self.cache.get("test", key, make, lambda _: size, seconds)

    def counted(self) -> dict[str, float]:
        return {one: self.requests.labels("test", one)._value.get() for one in ("hit", "miss", "joined")}


def scene(play: Callable[[Kitchen], Awaitable[None]], size: int = 1000) -> None:
    async def all_of_it() -> None:
        await play(Kitchen(size))

    asyncio.run(all_of_it())


def test_two_callers_at_once_make_it_once_and_the_next_finds_it() -> None:
    async def play(kitchen: Kitchen) -> None:
        asking = [asyncio.create_task(kitchen.ask("a")) for _ in range(5)]  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        kitchen.go.set()
        assert await asyncio.gather(*asking) == ["A"] * 5
        assert await kitchen.ask("a") == "A"
        assert kitchen.made == ["a"]
        assert kitchen.counted() == {"hit": 1, "miss": 1, "joined": 4}

    scene(play)


def test_who_leaves_takes_nothing_from_who_stays_and_the_last_puts_the_light_out() -> None:
    async def play(kitchen: Kitchen) -> None:
        first, second = (asyncio.create_task(kitchen.ask("a")) for _ in range(2))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        first.cancel()  # the one who began it: gone, or out of time
        await asyncio.sleep(0.01)
        kitchen.go.set()
        assert await second == "A" and first.cancelled()
        kitchen.go.clear()

        last = asyncio.create_task(kitchen.ask("b"))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        (making,) = [flight.task for flight in kitchen.cache._flights.values()]
        last.cancel()
        await asyncio.sleep(0.01)
        assert making.cancelled() and not kitchen.cache._flights
        kitchen.go.set()
        assert await kitchen.ask("b") == "B" and kitchen.made == ["a", "b", "b"]

    scene(play)


def test_a_slot_is_free_once_nobody_waits_for_what_is_made_in_it() -> None:
    async def play(kitchen: Kitchen) -> None:
        slots = Slots(1, 1, 5.0, Counter("y", "", ["reason"], registry=CollectorRegistry()))
        held = asyncio.Event()
        loop = asyncio.get_running_loop()

        def job() -> None:
            asyncio.run_coroutine_threadsafe(held.wait(), loop).result(30)

        async def ask() -> None:
            async with asyncio.timeout(0.05):
                await kitchen.cache.get("test", "slow", lambda: slots.submit(job), lambda _: 1)

        with pytest.raises(TimeoutError):
            await ask()
        await asyncio.sleep(0)
        assert (slots.busy, slots.lost) == (0, 1)
        held.set()

    scene(play)


def test_what_fails_is_not_kept() -> None:
    async def play(kitchen: Kitchen) -> None:
        async def fails() -> str:
            kitchen.made.append("x")
            raise ZeroDivisionError

        for _ in range(2):
            asking = [asyncio.create_task(kitchen.cache.get("test", "x", fails, len)) for _ in range(2)]
            found = await asyncio.gather(*asking, return_exceptions=True)
            assert [type(one) for one in found] == [ZeroDivisionError] * 2
        assert kitchen.made == ["x", "x"]

    scene(play)


def test_it_is_bounded_in_bytes_and_in_number_and_the_longest_unused_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(kitchen: Kitchen) -> None:
        kitchen.go.set()
        for key in ("a", "b", "a", "c"):  # 40 bytes each, there is room for two
            await kitchen.ask(key, size=40)
        assert list(kitchen.cache._kept) == ["a", "c"] and kitchen.cache.held == 80
        assert await kitchen.ask("large", size=101) == "LARGE"  # which would leave no room for any other
        assert list(kitchen.cache._kept) == ["a", "c"] and kitchen.cache.held == 80
        monkeypatch.setattr(cache, "MOST", 3)
        for number in range(10):
            await kitchen.ask(str(number), size=0)
        assert list(kitchen.cache._kept) == ["7", "8", "9"]
        await kitchen.ask("whole", size=100)
        assert list(kitchen.cache._kept) == ["8", "9", "whole"]

    scene(play, size=100)


def test_what_is_of_now_is_made_anew_after_its_time() -> None:
    async def play(kitchen: Kitchen) -> None:
        kitchen.go.set()
        for _ in range(2):
            await kitchen.ask("now", seconds=0.0)
        assert kitchen.made == ["now", "now"] and kitchen.cache.held == 10

    scene(play)
