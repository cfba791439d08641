"""List, watch and act: what the stand-ins for programs that need real machines have in common."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from kubernetes import client, watch
from urllib3.exceptions import HTTPError

Object = dict[str, Any]
Key = tuple[str, str]
"""Namespace (empty for cluster-scoped kinds) and name."""

_RETRY_S = 1.0
_WATCH_S = 300

log = logging.getLogger(__name__)


def key_of(item: Object) -> Key:
    """Key of an object in its informer."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def allowing(status: int, call: Callable[..., Any], *args: Any) -> None:
    """Make a call whose refusal with ``status`` means that its work is already done."""
    try:
        call(*args)
    except client.ApiException as error:
        if error.status != status:
            raise


class Informer:
    """A cache of one kind of object: lists, then watches, and lists again whenever the watch breaks.

    ``listing`` is a list call of the Kubernetes client. ``changed(object)`` is called for every object that
    appeared, changed or went (with its last state seen), after the cache is up to date.
    """

    def __init__(
        self, api: client.ApiClient, listing: Callable[..., Any], changed: Callable[[Object], None]
    ) -> None:
        self._api = api
        self._listing = listing
        self._changed = changed
        self._items: dict[Key, Object] = {}
        self._stream: watch.Watch | None = None

    def get(self, key: Key) -> Object | None:
        """The object as last seen."""
        return self._items.get(key)

    def all(self) -> list[Object]:
        """All objects as last seen."""
        return list(self._items.copy().values())

    def run(self, stop: threading.Event) -> None:
        """Work until ``stop`` is set and `close` is called."""
        while not stop.is_set():
            try:
                self._follow(self._list(), stop)
            except (client.ApiException, HTTPError) as error:
                if not stop.is_set():
                    log.warning("watch: %s", error)
                    stop.wait(_RETRY_S)

    def close(self) -> None:
        """End the watch in progress."""
        if self._stream is not None:
            with contextlib.suppress(OSError):
                self._stream.stop()  # type: ignore[no-untyped-call]

    def _list(self) -> str:
        found = self._api.sanitize_for_serialization(self._listing())  # type: ignore[no-untyped-call]
        items = {key_of(o): o for o in found["items"]}
        gone = [o for k, o in self._items.items() if k not in items]
        self._items = dict(items)
        for item in (*items.values(), *gone):
            self._changed(item)
        return str(found["metadata"]["resourceVersion"])

    def _follow(self, version: str, stop: threading.Event) -> None:
        self._stream = watch.Watch()  # type: ignore[no-untyped-call]
        events = self._stream.stream(  # type: ignore[no-untyped-call]
            self._listing, resource_version=version, timeout_seconds=_WATCH_S
        )
        for event in events:
            item = event["raw_object"]
            if event["type"] == "DELETED":
                self._items.pop(key_of(item), None)
            else:
                self._items[key_of(item)] = item
            self._changed(item)
            if stop.is_set():
                return


class StandIn:
    """Plays a program's part: `step` is called for each object that is due, and again where it fails.

    A subclass makes its informers in ``__init__``, lets them put objects into ``due``, and has a ``step``.
    """

    def __init__(self) -> None:
        self.due: queue.SimpleQueue[Object] = queue.SimpleQueue()
        self.informers: Sequence[Informer] = ()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def step(self, item: Object) -> None:
        """Look at an object (as it was when it became due) and do what is to be done now."""
        raise NotImplementedError

    def start(self) -> None:
        """Work in threads of this process."""
        loops = [lambda i=i: i.run(self._stop) for i in self.informers]
        for loop in (*loops, self._run):
            thread = threading.Thread(target=loop, name=type(self).__name__, daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Stop working."""
        self._stop.set()
        for thread in self._threads:
            while thread.is_alive():
                for informer in self.informers:  # again: one may have been about to watch
                    informer.close()
                thread.join(0.05)

    def join(self) -> None:
        """Wait until it is stopped."""
        self._stop.wait()

    def _run(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Empty):
                self._try(self.due.get(timeout=0.5))

    def _try(self, item: Object) -> None:
        try:
            self.step(item)
        except Exception as error:  # whatever one object provokes, the others are still served
            if getattr(error, "status", None) not in (404, 409):  # of an object that just changed
                log.warning("%s/%s", *key_of(item), exc_info=error)
            timer = threading.Timer(_RETRY_S, self.due.put, [item])
            timer.daemon = True
            timer.start()
