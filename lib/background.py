"""Work that is done ahead of time by a thread, and processes that do not outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The same items; the next is made by a thread while the one before is in use. Memory: one item more."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield item


def end_with_parent() -> None:
    """In a worker process: end when the process that started it is gone. A killed process takes no leave of its pool,
    whose workers would wait for work for ever. Takes the place of a pool's `initializer`."""

    def wait() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
