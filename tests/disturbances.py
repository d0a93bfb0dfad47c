"""The experiments of ``python -m tests.robustness``: each returns a row of its table; exit code 1 if one fails."""

from __future__ import annotations

import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path

import pandas as pd
import psutil

from lib.workbook.profiles import HOME
from tests.robustness import (
    KILLS_PER_NOTEBOOK,
    NOTEBOOKS,
    QUICK,
    TABLE,
    TOLERANCE,
    Place,
    command,
    differences,
    finish,
    kernel_of,
    kill_at_random,
    kill_in_new_stage,
    said_last,
    small_disk,
    start,
    wait_for,
)  # fmt: skip

THIRD = next(path for path in NOTEBOOKS if path.stem.startswith("03"))
Row = dict[str, object]
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
ROUNDING = 1e-6  # of float32 logits: effects in models of random weights are no larger
OLDER_PROCESSOR = {  # what torch, its libraries and numba read; with the first, `lib.models.fast_dtype` is float32
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "",
}  # fmt: skip


def undisturbed(root: Path) -> tuple[Place, dict[str, float]]:
    """A run of all notebooks that nothing disturbs, and the seconds of each."""
    place = Place(root / "undisturbed")
    return place, {notebook.stem: finish(notebook, place) for notebook in NOTEBOOKS}


def killed(root: Path, calm: Place, seconds: dict[str, float]) -> Row:
    """SIGKILL at random moments of every notebook; each is then run to its end."""
    rng = random.Random(0)

    def kills(notebook: Path, place: Place) -> Iterator[list[str] | None]:
        for _ in range(KILLS_PER_NOTEBOOK):
            yield kill_at_random(notebook, place, seconds[notebook.stem], rng)

    return _killed("SIGKILL at random moments", kills, root, calm)


def killed_in_stages(root: Path, calm: Place, _) -> Row:
    """SIGKILL in every kind of stage, as soon as it has begun; each notebook is then run to its end."""
    known = set()

    def kills(notebook: Path, place: Place) -> Iterator[list[str]]:
        while (half := kill_in_new_stage(notebook, place, known)) is not None:
            known.update(half)
            yield half

    return _killed("SIGKILL in every kind of stage", kills, root, calm)


def _killed(event: str, kills: Callable[[Path, Place], Iterable[list[str] | None]], root: Path, calm: Place) -> Row:
    """A row about killed notebooks: `kills` gives what was half built each time, or None where it was too late."""
    place = calm.copy(root / "killed", ("corpus",)) if QUICK else Place(root / "killed")
    found = []
    for notebook in NOTEBOOKS:
        found += [half or ["nothing"] for half in kills(notebook, place) if half is not None]
        finish(notebook, place)
    differ = differences(calm, place)
    building = ", ".join(f"{kind} {n}" for kind, n in Counter(kind for half in found for kind in half).most_common())
    n_files = len(calm.digests())
    what = f"resumed; {n_files - len(differ)} of {n_files} files equal byte for byte; half built: {building}"
    return _row(f"{event}, all processes", len(found), what, -9, not differ, differ)


def threads(root: Path, calm: Place, _) -> Row:
    """The same on one thread."""
    place = Place(root / "one_thread")
    for notebook in NOTEBOOKS:
        finish(notebook, place, threads=1)
    return _about_equal("1 thread instead of 2", calm, place)


def older_processor(root: Path, calm: Place, _) -> Row:
    """The same with instructions of 2013 only: no AMX, no bf16, no AVX-512."""
    place = Place(root / "older")
    run_all = f"for notebook in NOTEBOOKS: finish(notebook, Place(Path({str(place.root)!r})))"
    code = f"from pathlib import Path; from tests.robustness import NOTEBOOKS, Place, finish\n{run_all}"
    subprocess.run([sys.executable, "-c", code], cwd=HOME, env={**os.environ, **OLDER_PROCESSOR}, check=True)
    return _about_equal("no AMX, no bf16, no AVX-512", calm, place)


def _about_equal(event: str, calm: Place, place: Place) -> Row:
    """A row about a run whose numbers may differ within the tolerance, and whose words and verdicts may not."""
    tables = {t.name: (pd.read_csv(t), pd.read_csv(place.figures / t.name)) for t in sorted(calm.figures.glob("*.csv"))}
    apart = {
        f"{name}: {column}": _apart(a[column], b[column]) for name, (a, b) in tables.items() for column in a.columns
    }
    equal, worst = sum(a.equals(b) for a, b in tables.values()), max(x for x in apart.values() if x < math.inf)
    wrong = [f"{column} by {x:.2g}" for column, x in apart.items() if x > TOLERANCE]
    what = f"{equal} of {len(tables)} tables equal, the others to {worst:.1g} of a column's largest number"
    what += "; verdicts equal" * (not wrong)
    return _row(event, 1, what, 0, not wrong, wrong)


def _apart(a: pd.Series, b: pd.Series) -> float:
    """How far two columns are apart, in the first one's largest number; infinite where words differ."""
    if len(a) != len(b) or not a.isna().equals(b.isna()):
        return math.inf
    if all(c.dtype.kind in "iuf" for c in (a, b)):
        return (
            max(float((a - b).abs().max()) - ROUNDING, 0.0) / (float(a.abs().max()) or 1.0) if a.notna().any() else 0.0
        )
    return 0.0 if all(_same_words(str(x), str(y)) for x, y in zip(a, b)) else math.inf


def _same_words(a: str, b: str) -> bool:
    """Equal but for the numbers in them, which may differ by one in the last digit that both show, or by rounding."""
    if NUMBER.sub("#", a) != NUMBER.sub("#", b):
        return False
    pairs = [(Decimal(x), Decimal(y)) for x, y in zip(NUMBER.findall(a), NUMBER.findall(b))]
    steps = (Decimal(10) ** max(x.as_tuple().exponent, y.as_tuple().exponent) for x, y in pairs)
    return all(abs(x - y) <= max(step, Decimal(ROUNDING)) for (x, y), step in zip(pairs, steps))


def damaged(root: Path, calm: Place, _) -> Row:
    """The largest file of every artifact of notebook 03 cut short, changed, or lost; then it is run again."""
    place = calm.copy(root / "damaged", ("corpus",))
    finish(THIRD, place)
    artifacts = place.artifacts()
    for k, artifact in enumerate(artifacts):
        file = max((path for path in artifact.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        content = file.read_bytes()
        [
            lambda: os.truncate(file, len(content) // 2),
            lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
            file.unlink,
        ][k % 3]()
    (place.root / "log.txt").unlink()
    finish(THIRD, place)
    log = (place.root / "log.txt").read_text()
    missed = [artifact.name for artifact in artifacts if f"The artifact {artifact.name} is damaged" not in log]
    differ = _other_than(calm, place)
    said = "`The artifact … is damaged (…); building it again.`"
    noticed = f"{len(artifacts) - len(missed)} of {len(artifacts)}"
    what = f"{noticed} noticed and built again, equal byte for byte: {said}"
    return _row(
        "artifact truncated, altered, incomplete", len(artifacts), what, 0, not missed and not differ, missed + differ
    )


def two_at_once(root: Path, calm: Place, _) -> Row:
    """Two processes run the same notebook on one cache."""
    place = calm.copy(root / "two", ("corpus",))
    both = [start(THIRD, place), start(THIRD, place)]
    for process in both:
        process.join()
    log = (place.root / "log.txt").read_text()
    differ = _other_than(calm, place)
    waited = "Another process is building" in log
    what = "one waits for the other: `Another process is building …`; artifacts equal byte for byte"
    return _row("two runs at once on one cache", 2, what, max(p.exitcode for p in both), waited and not differ, differ)


def interrupted(root: Path, calm: Place, _) -> Row:
    """Ctrl-C while SAEs are trained; then the run is finished."""
    place = calm.copy(root / "interrupted", ("corpus",))
    with command(place, "--only", "03") as run:
        wait_for(lambda: place.half_built())
        time.sleep(1)
        kernel = kernel_of(run)
        run.send_signal(signal.SIGINT)
        out = run.communicate(timeout=60)[0]
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE, 30)
    return _ended("Ctrl-C", place, calm, run.returncode, out, "Stopped", 130)


def full_disk(root: Path, calm: Place, _) -> Row:
    """The disk fills up while SAEs are trained; room is made and the run finished."""
    with small_disk(root / "full", 300) as disk:
        place = calm.copy(disk / "run", ("corpus",))
        with command(place, "--only", "03") as run:
            wait_for(lambda: any("saes" in kind for kind in place.half_built()))
            free = shutil.disk_usage(disk).free
            (disk / "filler").write_bytes(b"\0" * (free - 4096))
            out = run.communicate()[0]
        (disk / "filler").unlink()
        return _ended("disk full", place, calm, run.returncode, out, "disk is full", 1)


def read_only(root: Path, calm: Place, _) -> Row:
    with small_disk(root / "ro", 100) as disk:
        place = Place(disk)
        os.system(f"mount -o remount,ro {disk}")
        with command(place, "--only", "03") as run:
            out = run.communicate()[0]
    words = said_last(out, "cannot be written").replace(str(root), "…")
    return _row(
        "read-only folder", 1, f"`{words}`", run.returncode, run.returncode == 2 and "cannot be written" in words
    )


def out_of_memory(root: Path, calm: Place, _) -> Row:
    """The kernel may have no more memory than it has when it begins to train SAEs; then the run is finished."""
    place = calm.copy(root / "memory", ("corpus",))
    with command(place, "--only", "03") as run:
        wait_for(lambda: any("saes" in kind for kind in place.half_built()))
        kernel = kernel_of(run)
        limit = kernel.memory_info().vms
        resource.prlimit(kernel.pid, resource.RLIMIT_AS, (limit, limit))
        out = run.communicate()[0]
    return _ended("worker out of memory (limited)", place, calm, run.returncode, out, "too little memory", 1)


def worker_killed(root: Path, calm: Place, _) -> Row:
    """What the system does to a process that takes too much memory; then the run is finished."""
    place = calm.copy(root / "oom", ("corpus",))
    with command(place, "--only", "03") as run:
        wait_for(lambda: any("saes" in kind for kind in place.half_built()))
        kernel_of(run).kill()
        out = run.communicate()[0]
    return _ended("worker killed by the system", place, calm, run.returncode, out, "kernel died", 1)


def no_network(root: Path, calm: Place, _) -> Row:
    with command(Place(root / "offline"), "--profile", "laptop", HF_HOME=str(root / "empty")) as run:
        out = run.communicate()[0]
    good = run.returncode == 2 and out.count("hf download") == 5 and "Traceback" not in out
    said = out.splitlines()[0].replace(str(root), "…").partition("; and")[0]
    return _row(
        "no network, profile laptop, nothing downloaded", 1, f"`{said}; …` and five commands", run.returncode, good
    )


def _ended(event: str, place: Place, calm: Place, code: int, out: str, words: str, expected: int) -> Row:
    """A row about a run that a disturbance ended: whether it said `words`, and a second run ends like the calm one."""
    shutil.rmtree(place.figures, ignore_errors=True)
    finish(THIRD, place)
    differ = _other_than(calm, place)
    said = said_last(out, words)
    shown = said.replace(str(place.cache), "data/cache/smoke")
    held = code == expected and words in said and not differ
    return _row(event, 1, f"`{shown}`; run again: equal byte for byte", code, held, differ)


def _other_than(calm: Place, place: Place) -> list[str]:
    """Files of a place that the calm run does not have like this; it may have more."""
    wanted = calm.digests()
    return [name for name, digest in place.digests().items() if wanted.get(name) != digest]


def _row(event: str, times: int, what: str, code: int, held: bool, why: list[str] | None = None) -> Row:
    if not held:
        print(f"DOES NOT HOLD: {event}: {what}, exit code {code}, {(why or [])[:20]}", flush=True)
    return {
        "disturbance": event,
        "times": times,
        "what happens": what,
        "exit code": code,
        "holds": "yes" if held else "no",
    }


EXPERIMENTS = (
    killed, killed_in_stages, worker_killed, interrupted, out_of_memory,
    full_disk, read_only, damaged, two_at_once, no_network,
    threads, older_processor,
)  # fmt: skip


def main() -> None:
    """Run the experiments named on the command line (all), one after the other, and keep each row at once."""
    known = {experiment.__name__: experiment for experiment in EXPERIMENTS}
    if unknown := [name for name in sys.argv[1:] if name not in known]:
        sys.exit(f"no experiment {unknown[0]!r}; there are {', '.join(known)}.")
    chosen = [known[name] for name in sys.argv[1:]] or list(EXPERIMENTS)
    if os.geteuid() != 0:
        print("Not root: no small disks, so `full_disk` and `read_only` are left out.")
        chosen = [e for e in chosen if e not in (full_disk, read_only)]
    root = Path(os.environ.get("ROBUSTNESS_ROOT") or tempfile.mkdtemp())
    table = root / TABLE.name if QUICK else TABLE
    calm, seconds = _kept_or_new(root)
    rows = pd.read_csv(table).to_dict("records") if table.exists() else []
    for experiment in chosen:
        began = time.monotonic()
        for leftover in root.iterdir():
            if leftover != calm.root and leftover.is_dir():
                shutil.rmtree(leftover)
        row = experiment(root, calm, seconds)
        print(f"{experiment.__name__}: {row['holds']}, {time.monotonic() - began:.0f} s", flush=True)
        rows = [old for old in rows if old["disturbance"] != row["disturbance"]] + [row]
        table.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(table, index=False)
    print(pd.DataFrame(rows).to_string(index=False))
    sys.exit(any(row["holds"] != "yes" for row in rows))


def _kept_or_new(root: Path) -> tuple[Place, dict[str, float]]:
    """The undisturbed run of an earlier call in the same ROBUSTNESS_ROOT, or a new one."""
    kept = root / "undisturbed" / "seconds.csv"
    if not kept.exists():
        _, seconds = undisturbed(root)
        pd.Series(seconds, name="seconds").to_csv(kept)
    return Place(kept.parent), pd.read_csv(kept, index_col=0).seconds.to_dict()
