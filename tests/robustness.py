"""The workbook killed, starved of disk and memory, damaged, cut off. ``python -m tests.robustness [NAME …]``

Every experiment compares what it leaves behind with an undisturbed run and adds a row to
``figures/robustness/table_robustness.csv``. As root, disks of a few megabytes are mounted; otherwise those experiments
are left out, with a word.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numba
import psutil
import torch

from lib import plots  # noqa: F401
from lib.circuits import ioi  # noqa: F401
from lib.plots import circuits as circuit_plots, complexity as complexity_plots, spaces as space_plots  # noqa: F401
from lib.sae import training as sae_training  # noqa: F401
from lib.workbook import explorer, kernels, outputs, retraining, two_names  # noqa: F401
from lib.workbook.notebooks import code_cells, find_notebooks
from lib.workbook.profiles import HOME

TABLE = HOME / "figures" / "robustness" / "table_robustness.csv"
QUICK = bool(os.environ.get("ROBUSTNESS_QUICK"))  # notebook 03 alone, and the table in ROBUSTNESS_ROOT
NOTEBOOKS = find_notebooks(HOME / "notebooks", ["03"] if QUICK else [])
SETTINGS = {
    "sae_tokens": 8_192,
    "untrained_tokens": 1_024,
    "judge_features": 20,
    "circuit_samples": 2,
}  # of smoke, smaller still
KILLS_PER_NOTEBOOK = 3
TOLERANCE = 0.02  # of a table's number between two ways of computing it, relative to the column's largest


@dataclass(frozen=True)
class Place:
    """Where a run keeps its artifacts and figures."""

    root: Path

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def figures(self) -> Path:
        return self.root / "figures" / "smoke"

    def copy(self, root: Path, kinds: tuple[str, ...] = ("",)) -> Place:
        """A place that begins with this one's artifacts of some kinds."""
        other = Place(root)
        other.cache.mkdir(parents=True)
        for artifact in self.artifacts():
            if artifact.name.startswith(kinds):
                shutil.copytree(artifact, other.cache / artifact.name)
        return other

    def artifacts(self) -> list[Path]:
        return sorted(
            path for path in self.cache.iterdir() if (path / "manifest.json").is_file() and path.suffix != ".partial"
        )

    def half_built(self) -> list[str]:
        return sorted({path.name.rpartition("-")[0] for path in self.cache.glob("*.partial")})

    def digests(self) -> dict[str, str]:
        """Digest of every file of every artifact but its manifest, and of every table."""
        files = [p for a in self.artifacts() for p in a.rglob("*") if p.is_file() and p.name != "manifest.json"]
        files += [p for kind in ("csv", "parquet") for p in self.figures.glob(f"*.{kind}")]
        return {p.relative_to(self.root).as_posix(): _digest(p) for p in files}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differences(a: Place, b: Place) -> list[str]:
    """Files that are in one place only, or differ."""
    one, other = a.digests(), b.digests()
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# ------------------------------------------------------------------------------- a notebook's code as a process


def _execute(notebook: Path, place: Place, threads: int) -> None:
    os.setsid()
    log = os.open(place.root / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    torch.set_num_threads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    matplotlib.use("Agg")
    outputs.save_figure = lambda *_: None  # tables and artifacts are compared, not pictures
    for module in (plots, circuit_plots, complexity_plots, space_plots):
        for name in (name for name in getattr(module, "__all__", dir(module)) if name.startswith("fig_")):
            setattr(module, name, lambda *_, **__: None)
    sae_training.CHECKPOINT_SECONDS = 0.5  # so that trainings of seconds are resumed, too, and not begun again
    scope = {"display": lambda *_: None, "__name__": "__main__"}
    for cell in code_cells(notebook):
        exec(compile(cell.source, notebook.name, "exec"), scope)
        if "parameters" in cell.metadata.get("tags", []):
            folders = {"cache_dir": str(place.cache), "figures": str(place.figures.parent)}
            scope |= {"profile": "smoke", "overrides": folders | SETTINGS}


def start(notebook: Path, place: Place, threads: int = 2):
    """All code cells of a notebook under smoke, in one process of its own group."""
    place.root.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_execute, args=(notebook, place, threads))
    process.start()
    return process


def finish(notebook: Path, place: Place, threads: int = 2) -> float:
    """Run a notebook to its end; its seconds. Raises RuntimeError with the log's end if it fails."""
    began = time.monotonic()
    process = start(notebook, place, threads)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{notebook.name} failed:\n" + (place.root / "log.txt").read_text()[-2000:])
    return time.monotonic() - began


def kill_at_random(notebook: Path, place: Place, seconds: float, rng: random.Random) -> list[str] | None:
    """SIGKILL to the whole process group at a random moment; what was half built then, or None if it was too late."""
    process = start(notebook, place)
    process.join(rng.uniform(0.05, 0.8) * seconds)
    return _kill(process, place)


def kill_in_new_stage(notebook: Path, place: Place, known: Container[str]) -> list[str] | None:
    """The same as soon as an artifact of a kind that is not known yet is begun; None if the notebook has none."""
    process = start(notebook, place)
    while process.is_alive() and all(kind in known for kind in place.half_built()):
        time.sleep(0.002)
    return _kill(process, place)


def _kill(process, place: Place) -> list[str] | None:
    if process.exitcode is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return place.half_built()


# ---------------------------------------------------------------------------------------- the real command line


@contextmanager
def command(place: Place, *options: str, **env: str) -> Iterator[subprocess.Popen]:
    """``python -m lib.reproduce`` at work in a place; killed at the end if it still runs."""
    always = ["--profile", "smoke", "--set", f"cache_dir={place.cache}"]
    always += [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from lib.reproduce import app; app()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *always, *options],
        cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True, env={**os.environ, **env},
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(happened: Callable[[], object], seconds: float = 300) -> object:
    """The first true answer; raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := happened():
            return answer
        time.sleep(0.02)
    raise TimeoutError("what was waited for did not happen")


def kernel_of(process: subprocess.Popen) -> psutil.Process | None:
    """The kernel at work, a copy of a process that the run has begun (`lib.workbook.kernels`)."""
    sources = [child for child in psutil.Process(process.pid).children() if kernels.IMPORT_AND_COPY in child.cmdline()]
    return next((kernel for source in sources for kernel in source.children()), None)


def said_last(text: str, words: str) -> str:
    """The line of an output that holds the words, or the output's end."""
    return next((line.strip() for line in reversed(text.splitlines()) if words in line), text[-300:])


@contextmanager
def small_disk(root: Path, megabytes: int) -> Iterator[Path]:
    """A real file system of so many megabytes; only root can have one."""
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


if __name__ == "__main__":
    from tests.disturbances import main

    main()
