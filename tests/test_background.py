"""Work ahead of time keeps its order, stays one item ahead, and hands on errors; workers end with their parent."""

import subprocess
import sys
import time

import psutil
import pytest

from lib.background import ahead


def test_one_item_is_made_while_the_one_before_is_in_use():
    made = []

    def items():
        for k in range(5):
            made.append(k)
            yield k

    seen = []
    for k in ahead(items()):
        seen.append(k)
        assert len(made) <= k + 2
    assert seen == made == [*range(5)]


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise ValueError("no second item")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(found)


POOL = """
import time
from concurrent.futures import ProcessPoolExecutor
from lib.background import end_with_parent

with ProcessPoolExecutor(3, initializer=end_with_parent) as pool:
    list(pool.map(time.sleep, [0.2] * 3))
    print(*pool._processes, flush=True)
    time.sleep(60)
"""


def test_workers_end_when_their_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True)
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 3
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while not all(map(_ended, workers)):
        assert time.monotonic() < deadline, "workers wait for a parent that is gone"
        time.sleep(0.05)


def _ended(process: psutil.Process) -> bool:
    """Also one that nobody has taken leave of, as in a container without an init process."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
