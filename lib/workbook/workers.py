"""Where the pieces of a stage are worked on: here, one after the other, or on a cluster (`lib.workbook.cluster`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lib.workbook.profiles import Profile

T = TypeVar("T")


class Workers:
    """What works on pieces, which do not depend on each other: this process, unless a subclass says otherwise.

    A piece that is worked on twice, after a worker's death, leaves the same behind: what it writes lies in the cache
    folder, in a place of its own.
    """

    count: int = 1
    """How many pieces are worked on at a time."""
    pieces: int = 1
    """How many pieces a stage that can be cut anywhere is cut into; more than `count`: a lost one costs less."""

    def each(self, work: Callable[..., Any], pieces: Mapping[str, tuple], what: str) -> Iterator[Any]:
        """Results of `work(*piece)`, in the order of the pieces; their names and `what` they make are for messages."""
        return (work(*piece) for piece in pieces.values())


def workers_of(profile: Profile) -> Workers:
    """The cluster that `profile.ray` names, or this process."""
    if profile.ray is None:
        return Workers()
    from lib.workbook.cluster import RayWorkers  # Ray is an optional install

    return RayWorkers(profile)


def split(items: Sequence[T], n_parts: int) -> list[Sequence[T]]:
    """At most `n_parts` runs of neighbours, of nearly equal length, none empty."""
    n_parts = max(1, min(n_parts, len(items)))
    ends = [len(items) * k // n_parts for k in range(n_parts + 1)]
    return [items[start:stop] for start, stop in zip(ends, ends[1:])]
