"""The process in which NVML lives: a request a line on stdin, answers as lines of JSON on stdout.

Every line of an answer carries the number of its request, so that what a client gave up waiting for is not taken
for what it asks later. Events come by themselves, without a number. It ends with its stdin, also while a call hangs.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from vmtenancy.devices.nvml import Answers, Nvml, NvmlError, is_error
from vmtenancy.devices.nvml_facts import address_of

#: More GPUs than any node has.
_MOST: Final = 64
_EVENT_WAIT_MS: Final = 60_000
_TIMED_OUT: Final = {"error": 10}
#: An event set that answers at once with nothing, or fails, is asked no more often than this.
_EVENT_PAUSE_S: Final = 1.0

Tell = Callable[[Answers], None]
Lines = Iterator[Answers]


def main() -> None:
    """Serve until stdin ends."""
    # Libraries may print: they get stderr, and the answers a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    lock = threading.Lock()

    def tell(line: Answers) -> None:
        text = json.dumps(line)
        with lock:
            answers.write(text + "\n")
            answers.flush()

    requests: queue.SimpleQueue[Answers] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)  # a call that hangs would keep any other way of ending from its end

    threading.Thread(target=listen, daemon=True).start()
    worker = Worker(tell)
    tell({"ready": True})
    while True:
        request = requests.get()
        number = request["number"]
        for line in worker.answer(request):
            tell({"number": number, **line})
        tell({"number": number, "done": True})


class Worker:
    """Keeps NVML initialised between requests; where it fails as a whole it is tried anew at the next one."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._nvml: Nvml | None = None
        self._events: threading.Thread | None = None

    def answer(self, request: Answers) -> Lines:
        """The lines of one answer."""
        try:
            self._nvml = self._nvml or Nvml()
        except NvmlError as error:
            yield {"failed": error.code, "message": str(error)}
            return
        last, skip = frozenset(request["last"]), frozenset(request["skip"])
        if request["ask"] == "samples":
            yield from self._samples(self._nvml, skip)
        else:
            yield from self._facts(self._nvml, last, skip)

    def _facts(self, nvml: Nvml, last: frozenset[str], skip: frozenset[str]) -> Lines:
        """Facts GPU by GPU. Those that were in the way before (`last`) come last, so that they hold up no other."""
        system = nvml.system()
        yield {"system": system}
        indexes = [index for index in _indexes(system["count"]) if f"#{index}" not in skip]
        opened: dict[str, Any] = {}
        for index in sorted(indexes, key=lambda index: f"#{index}" in last):
            yield {"reading": f"#{index}"}
            handle, about = nvml.open(index)
            address = address_of(about.get("pci"))
            if handle is None or address is None or address in opened:
                yield {"device": about}
            elif address not in skip:
                opened[address] = handle, about
        for address in sorted(opened, key=lambda address: address in last):
            yield {"reading": address}
            handle, about = opened[address]
            ancestors = [
                [other, nvml.ancestor(handle, opened[other][0])]
                for other in opened
                if other != address and other not in last
            ]
            yield {"device": about | nvml.device(handle) | {"ancestors": ancestors}}
        if is_error(system["count"]) or (indexes and not opened):
            self._nvml = None  # the driver may have been loaded anew: begin anew too
        elif self._events is None or not self._events.is_alive():
            self._watch(nvml, {address: handle for address, (handle, _) in opened.items()})

    def _samples(self, nvml: Nvml, skip: frozenset[str]) -> Lines:
        for index in _indexes(nvml.ask("nvmlDeviceGetCount")):
            if f"#{index}" in skip:
                continue
            yield {"reading": f"#{index}"}
            handle, about = nvml.open(index)
            address = address_of(about.get("pci"))
            if handle is not None and address and address not in skip:
                yield {"reading": address}
                yield {"sample": nvml.sample(handle) | {"address": address}}

    def _watch(self, nvml: Nvml, handles: dict[str, Any]) -> None:
        events = nvml.watch(handles)
        if events is None:
            return

        def wait() -> None:
            while True:
                began = time.monotonic()
                event = events.wait(_EVENT_WAIT_MS)
                if not is_error(event):
                    self._tell({"event": event})
                elif event != _TIMED_OUT:
                    return  # the next request for facts begins anew
                elif time.monotonic() - began < _EVENT_PAUSE_S:
                    threading.Event().wait(_EVENT_PAUSE_S)

        self._events = threading.Thread(target=wait, daemon=True)
        self._events.start()


def _indexes(count: Any) -> range:
    """Of the GPUs that NVML counts, as far as the number can be one."""
    return range(min(count, _MOST)) if isinstance(count, int) else range(0)


if __name__ == "__main__":
    main()
