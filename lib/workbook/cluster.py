"""The pieces of a stage as tasks of a Ray cluster; Ray (docs.ray.io) is an optional install, used nowhere else.

All nodes have the workbook, its Python packages and the cache folder at the same paths, on a shared file system. Ray
sends functions and results between nodes pickled: the cluster is one that you trust.
"""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.workbook.profiles import HOME, Profile, ProfileError
from lib.workbook.workers import Workers

try:
    import ray
    from ray import exceptions as ray_errors
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError:
    ray = None

log = logging.getLogger("workbook.cluster")

REQUIREMENTS = HOME / "tests" / "cluster" / "requirements.txt"
RETRIES = 3  # of a piece whose worker or node died
PATIENCE = 60.0  # seconds without news after which it is asked whether any node is left
DEAD_ADDRESS_SECONDS = 10.0


class ClusterError(RuntimeError):
    """A piece that could not be finished on the cluster, said in one sentence."""


class RayWorkers(Workers):
    """A Ray cluster. A piece takes one GPU and its share of the node's cores, or, without GPUs, all cores of a node.

    Raises `ProfileError` where Ray is not installed, the cluster cannot be reached, or it has nothing to work with.
    """

    def __init__(self, profile: Profile) -> None:
        _connect(profile.ray)
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        has_gpus = any(resources.get("GPU", 0) >= 1 for resources in nodes.values())
        if profile.device == "cuda" and not has_gpus:
            raise ProfileError(f"the Ray cluster {profile.ray} has no GPU; start nodes that have, or set device=cpu.")
        self.gpus = int(has_gpus and profile.device != "cpu")
        slots = {node: int(r.get("GPU", 0)) if self.gpus else 1 for node, r in nodes.items()}
        cpus = {node: r.get("CPU", 0) / slots[node] for node, r in nodes.items() if slots[node] and r.get("CPU", 0)}
        if not cpus:
            raise ProfileError(f"the Ray cluster {profile.ray} has no node with free cores; start its workers first.")
        self.nodes, self.cpus = list(cpus), min(cpus.values())
        self.count = sum(slots[node] for node in cpus)
        self.pieces = 2 * self.count

    def each(self, work: Callable[..., Any], pieces: Mapping[str, tuple], what: str) -> Iterator[Any]:
        """Results of `work(*piece)`, in the order of the pieces, as they are ready.

        A piece whose worker or node dies is worked on again, up to `RETRIES` times. Raises `ClusterError` for a piece
        that failed; those that are still being worked on are stopped.
        """
        stored = {id(x): ray.put(x) for piece in pieces.values() for x in piece}  # what pieces share is sent once
        task = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=RETRIES)(_work_on)
        names = {
            task.remote(work, max(1, int(self.cpus)), *(stored[id(x)] for x in piece)): name
            for name, piece in pieces.items()
        }
        waiting, in_order, results = list(names), list(names), {}
        try:
            with tqdm(total=len(names), desc=f"{what} on the cluster", unit="piece", mininterval=5) as bar:
                while waiting:
                    done, waiting = ray.wait(waiting, timeout=PATIENCE)
                    if not done:
                        self._warn_if_none_is_left()
                    for ref in done:
                        results[ref] = _result(ref, f"{what}, {names[ref]}")
                        bar.update()
                    while in_order and in_order[0] in results:
                        yield results.pop(in_order.pop(0))
        finally:
            for ref in waiting:
                ray.cancel(ref, force=True)

    def _warn_if_none_is_left(self) -> None:
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(r.get("CPU", 0) >= self.cpus and r.get("GPU", 0) >= self.gpus for r in alive):
            log.warning("No node of the cluster is left that can go on; waiting for one.")


def check(profile: Profile) -> None:
    """Raise `ProfileError` unless the cluster of `profile.ray` is there and its nodes see the same cache folder."""
    workers = RayWorkers(profile)
    profile.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=profile.cache_dir, prefix=".seen-by-all-") as file:
        for node in workers.nodes:
            on_node = NodeAffinitySchedulingStrategy(node, soft=False)
            looking = ray.remote(num_cpus=0, scheduling_strategy=on_node)(_sees).remote(file.name)
            try:
                seen = ray.get(looking)
            except ray_errors.RayError as error:
                reason = f"a node of the cluster cannot run the workbook in {HOME}: {_reason(error)}"
                raise ProfileError(reason) from None
            if not seen:
                raise ProfileError(
                    f"a node of the cluster does not see {profile.cache_dir}; the cache folder must be shared by all "
                    "nodes: choose one with --set cache_dir=FOLDER."
                )
    ray.shutdown()


def _connect(address: str) -> None:
    """Join the cluster as a driver; once per process."""
    if ray is None:
        raise ProfileError(f"--ray needs Ray, which is not installed; run `pip install -r {REQUIREMENTS}`.")
    if ray.is_initialized():
        return
    logging.getLogger("ray.widgets").setLevel(logging.ERROR)  # it misses packages that only its own displays need
    path = os.pathsep.join(filter(None, [str(HOME), os.environ.get("PYTHONPATH")]))
    try:
        if address != "auto":
            _require_listener(address)
        ray.init(
            address, runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, logging_level=logging.ERROR
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ProfileError(
            f"cannot join the Ray cluster {address!r} ({reason}); run on one of its nodes, with auto or HOST:PORT."
        ) from None


def _require_listener(address: str) -> None:
    """Ray itself tries a wrong address for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise ValueError("it names no port")
    socket.create_connection((host, int(port)), timeout=DEAD_ADDRESS_SECONDS).close()


def _work_on(work: Callable[..., Any], threads: int, *piece: Any) -> Any:
    """What a task runs: the piece, with as many threads as it was promised cores."""
    import numba
    import torch

    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    return work(*piece)


def _sees(path: str) -> bool:
    return Path(path).exists()


def _result(ref: ray.ObjectRef, what: str) -> Any:
    try:
        return ray.get(ref)
    except ray_errors.RayTaskError as error:
        raise ClusterError(f"{what}, failed on the cluster: {_reason(error)}") from None
    except (ray_errors.WorkerCrashedError, ray_errors.OutOfMemoryError, ray_errors.NodeDiedError):
        raise ClusterError(
            f"{what}: its worker died {RETRIES + 1} times, most often of too little memory; take larger nodes or a "
            "smaller profile."
        ) from None
    except ray_errors.RayError as error:
        raise ClusterError(f"{what}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The error that the user's code raised, or Ray's own, in a line."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines() or ["no message"]
    return f"{type(cause).__name__}: {lines[0]}"
