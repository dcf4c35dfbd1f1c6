"""Ends a process that cannot help itself any more, so that what restarts it (compose, Kubernetes) gives a sound one.

A run of the model is interrupted between two nodes of its graph. One that never gets there holds its thread for ever:
one of a bounded number, or the event loop itself, and then not even a probe is answered.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

from model_service.serving.slots import Slots

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
HUNG_SECONDS = 10.0  # beyond a request's time: what hangs for so long does not come back
EXIT = 70  # EX_SOFTWARE of sysexits.h


def start(slots: Mapping[str, Slots], seconds: float, last: Callable[[], None]) -> None:
    """Has a thread end the process when this loop, or all threads of one of `slots`, hang for longer than a request's
    `seconds` and HUNG_SECONDS; `last` is done before.

    It counts its own turns, not time: a process that was suspended as a whole does not hang.
    """
    loop, most = asyncio.get_running_loop(), (seconds + HUNG_SECONDS) / TICK_SECONDS

    def watch() -> None:
        turned = threading.Event()
        turned.set()
        hanging = dict.fromkeys(("event loop", *slots), 0)
        while max(hanging.values()) < most:
            time.sleep(TICK_SECONDS)
            sound = {kind: one.lost < one.capacity for kind, one in slots.items()} | {"event loop": turned.is_set()}
            hanging = {kind: 0 if sound[kind] else count + 1 for kind, count in hanging.items()}
            if turned.is_set():
                turned.clear()
                try:
                    loop.call_soon_threadsafe(turned.set)
                except MemoryError:  # it is asked again at the next tick
                    turned.set()
                except RuntimeError:  # it has ended
                    return
        what = max(hanging, key=hanging.__getitem__)
        log.critical("%s: hangs for %g seconds, so this process ends, to be started again", what, most * TICK_SECONDS)
        try:
            last()
        finally:
            os._exit(EXIT)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
