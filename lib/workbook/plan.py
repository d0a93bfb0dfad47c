"""What a run will take, said before it starts: operations, memory, disk and time of every stage."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lib.workbook.calibration import H100, UTILISATION, Machine
from lib.workbook.model_store import device_of
from lib.workbook.needs import GB, existing_folder
from lib.workbook.profiles import DATA, Profile, get_profile
from lib.workbook.progress import clock
from lib.workbook.sizes import free_memory, shape_of
from lib.workbook.stages import Stage, dense_multiply_adds, l0_of, pairs, stages

FIRST_RUN = DATA / "reference" / "first_run_seconds.json"
REFERENCE_MACHINE = DATA / "reference" / "machine.json"
NOTEBOOKS = 210  # seconds that all notebooks take where every artifact is found; measured at mini
LONG = 7 * 24 * 3600


@dataclass(frozen=True)
class Room:
    """Bytes that there are, and that a run takes."""

    disk: float
    memory: float
    gpu: float = math.inf
    """Of a GPU's own memory, where one is used."""


def needed(found: list[Stage]) -> Room:
    """The disk of what stays and of the most that passes, the memory of the largest stage."""
    disk = sum(stage.disk for stage in found) + max(stage.passing for stage in found)
    return Room(disk, max(stage.memory for stage in found))


def available(profile: Profile) -> Room:
    """What is free; artifacts that are there already count as free, as they are found again."""
    kept = sum(path.stat().st_size for path in profile.cache_dir.rglob("*") if path.is_file())
    disk = shutil.disk_usage(existing_folder(profile.cache_dir)).free + kept
    device = device_of(profile)
    return Room(disk, free_memory("cpu"), math.inf if device == "cpu" else free_memory(device))


def seconds(found: list[Stage], machine: Machine) -> float:
    """Time of all stages and of the notebooks around them."""
    return NOTEBOOKS + sum(map(machine.seconds, found))


def warnings(profile: Profile, found: list[Stage], machine: Machine) -> list[str]:
    """What will not do, a sentence each."""
    takes, has = needed(found), available(profile)
    said = []
    if takes.disk > has.disk:
        said.append(
            f"Disk will not do: {takes.disk / GB:.0f} GB are needed and {profile.cache_dir} has {has.disk / GB:.0f}; "
            "make room, take --set cache_dir=FOLDER, or store features in --set feature_dtype=float16."
        )
    on_gpu = [stage for stage in found if stage.kind != "bootstrap"]
    said += _too_large("Memory", found, has.memory) or _too_large("The GPU's memory", on_gpu, has.gpu)
    if (spent := seconds(found, machine)) > LONG:
        said.append(f"Time will hardly do: {spent / 86400:.0f} days on this machine; take a GPU or smaller sae_tokens.")
    return said


def _too_large(what: str, found: list[Stage], free: float) -> list[str]:
    """A sentence about the stages that take more memory than is free, if there are any."""
    large = [stage for stage in found if stage.memory > free]
    if not large:
        return []
    most = max(large, key=lambda stage: stage.memory)
    return [
        f"{what} will not do: {most.memory / GB:.0f} GB are needed for \"{most.name}\" and {free / GB:.0f} are free, "
        f"too few for {len(large)} stages. Smaller mppc_tokens, buffer_tokens or batch_blocks take less."
    ]


def calibration_check() -> str:
    """How far off such a plan is: the plan of mini for the machine on which a whole run of it was timed."""
    planned = seconds(stages(get_profile("mini")), load_machine(REFERENCE_MACHINE))
    measured = sum(json.loads(FIRST_RUN.read_text())["mini"].values())
    return (
        f"Times are estimates, good to a factor of two: for a whole run of mini this plan says {clock(planned)} where "
        f"{clock(measured)} were measured. Other programs that run now make this machine's times longer."
    )


def show(profile: Profile, machine: Machine, console: Console | None = None) -> None:
    """Print the plan: a line per stage, the sums, what will not do, and how sure it is."""
    found = stages(profile)
    table = Table(title=f"Plan of {profile.name}", caption=f"This machine: {machine.name}", show_footer=True)
    takes = needed(found)
    table.add_column("stage", footer="all, notebooks included")
    columns = {
        "operations": f"{sum(stage.operations for stage in found):.1e}", "memory": f"{takes.memory / GB:.1f} GB",
        "disk": f"{takes.disk / GB:.1f} GB", "this machine": _spell(seconds(found, machine)),
        "H100 SXM": _spell(seconds(found, H100)),
    }  # fmt: skip
    for name, footer in columns.items():
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for stage in found:
        amounts = f"{stage.operations:.1e}", f"{stage.memory / GB:.1f} GB", f"{(stage.disk + stage.passing) / GB:.1f} GB"
        table.add_row(stage.name, *amounts, *(_spell(each.seconds(stage)) for each in (machine, H100)))
    console = console or Console(width=120)
    console.print(table)
    for line in [*_notes(profile), *warnings(profile, found, machine)]:
        console.print(line, highlight=False)


def _notes(profile: Profile) -> list[str]:
    label, other = next(iter(pairs(profile).items()))
    a, b = (shape_of(name, profile) for name in (profile.pythia, other))
    dense = dense_multiply_adds(a, b, profile.mppc_tokens, profile)
    sparse = profile.mppc_tokens * l0_of(profile) ** 2 * a.sae_layers * b.sae_layers
    return [
        f"MPPC of Pythia and {label}: {sparse:.1e} multiply-adds for both directions, with {l0_of(profile):g} features "
        f"firing per token; {dense:.1e} ({2 * dense:.1e} operations) as dense products.",
        f"H100 SXM: {UTILISATION:.0%} of the data sheet's peaks, an estimate; nothing was measured on one here. "
        "Interpretation (06) and feature spaces (10) are not counted beyond the captured features.",
        calibration_check(),
    ]


def _spell(spent: float) -> str:
    """Seconds as a clock shows them, or days."""
    return clock(spent) if spent < 2 * 86400 else f"{spent / 86400:,.1f} days"


def load_machine(path: Path) -> Machine:
    """A machine that was written down."""
    return Machine(**json.loads(path.read_text()))
