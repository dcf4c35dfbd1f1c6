"""`load --follow`: each source is looked at again and again, or its stream is followed, until a signal ends it.

A thread for each source, so that one that fails, rests or waits holds up no other.
"""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import psycopg

from model_service.contract import Contract
from model_service.errors import ServiceError
from model_service.loader import run, sources

STANDBY_SECONDS = 2.0  # until a copy that stands by asks again whether it is its turn
REST_SECONDS = 300.0  # at most after a failure, or as long as between two looks
GRACE_SECONDS = 5.0  # at the end, for what only waits for a provider


@dataclass
class Follower:
    """One source. `turn` is held while a payload is loaded; `loaded` is called after a round that brought something."""

    contract: Contract
    url: str
    dataset: str
    root: Path
    say: run.Say
    loaded: Callable[[], None]
    ended: threading.Event
    turn: threading.Lock = field(default_factory=threading.Lock)
    outcomes: Counter[str] = field(default_factory=Counter)
    broke: BaseException | None = None
    failures: int = 0
    holder: str = ""

    def __post_init__(self) -> None:
        source, _ = sources.reader(self.contract, self.dataset)
        self.every = 0.0 if getattr(source, "STREAMS", False) else self.contract.poll_seconds(self.dataset)

    def __call__(self) -> None:
        try:
            while not self.ended.wait(self._round()):
                pass
        except BaseException as error:  # it is no failure of a source: all must end
            self.broke = error
            self.ended.set()

    def _round(self) -> float:
        """Loads what there is, or what comes for a while; returns the seconds to wait."""
        try:
            found = run.load_dataset(
                self.contract, self.url, self.dataset, self.root, self.say, until=self.ended, turn=self.turn
            )
            outcomes = Counter(str(result["outcome"]) for result in found)
            self.outcomes += outcomes
            if outcomes["held"]:
                return self._stand_by(str(found[0]["by"]))
            self.holder = ""
            if outcomes["loaded"]:
                self.loaded()
            if outcomes["blocked"]:
                raise ServiceError("a check blocks it: mend what it is about, or the check")
        except (ServiceError, psycopg.Error) as error:
            self.outcomes["failed"] += 1
            self.failures += 1
            wait = min(2.0 ** min(self.failures, 30), max(self.every, REST_SECONDS)) * random.uniform(0.5, 1)  # noqa: S311
            return self._waits(wait, f"failed: {str(error).strip()}; tries again")
        self.failures = 0
        return self._waits(self.every, "looks again") if self.every else 0.0

    def _stand_by(self, holder: str) -> float:
        if holder != self.holder:
            self.holder = holder
            self.say(f"{self.dataset}: stands by, {holder} is at it")
        return STANDBY_SECONDS

    def _waits(self, seconds: float, what: str) -> float:
        if not self.ended.is_set():
            self.say(f"{self.dataset}: {what} at {datetime.now() + timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}")
        return seconds


def follow(
    contract: Contract, url: str, root: Path, say: run.Say, loaded: Callable[[], None]
) -> dict[str, Counter[str]]:
    """Follows every source until SIGTERM or SIGINT; a payload that is being loaded then is loaded to its end.

    Returns outcomes by dataset, as `run.load` names them, and how often each failed. Raises UsageError for options that
    this loader does not know.
    """
    ended, one_at_a_time = threading.Event(), threading.Lock()

    def one_loaded() -> None:
        with one_at_a_time:
            loaded()

    followers = [Follower(contract, url, dataset, root, say, one_loaded, ended) for dataset in contract.source]
    for one in followers:
        say(f"{one.dataset}: {f'looks every {one.every:g} seconds' if one.every else 'follows its stream'}")
    threads = [threading.Thread(target=one, name=one.dataset, daemon=True) for one in followers]
    with _until_signalled(ended, followers, say):
        for thread in threads:
            thread.start()
        ended.wait()
        for one in followers:
            with one.turn:
                pass
        ends = time.monotonic() + GRACE_SECONDS
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
    for one in followers:
        if one.broke:
            raise one.broke
    return {one.dataset: one.outcomes for one in followers}


@contextmanager
def _until_signalled(ended: threading.Event, followers: list[Follower], say: run.Say) -> Iterator[None]:
    """The first SIGTERM or SIGINT asks for the end and says what it waits for; a second one does as always."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def end(number: int, _: object) -> None:
        restore()
        ended.set()  # first: from now on nobody begins
        loading = ", ".join(one.dataset for one in followers if one.turn.locked())
        when = f"once {loading} is loaded" if loading else "at once, nothing is being loaded"
        say(f"{signal.Signals(number).name}: stops {when}")

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        restore()
