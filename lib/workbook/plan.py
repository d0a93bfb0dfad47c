"""What a run will take, said before it starts: memory and disk of its stages in closed form, and a coarse time."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from lib.models.machine import GB, existing_folder, free_memory
from lib.mppc.files import feature_bytes
from lib.mppc.uncertainty import N_GROUPS, N_RESAMPLES
from lib.workbook import model_store
from lib.workbook.profiles import Profile
from lib.workbook.sizes import Shape, group_size, sae_parameters, shape_of, training_bytes

FLOAT = 4  # bytes
L0_WITHOUT_TARGET = 64  # where λ does not follow L0, what it will be is not known: the paper's
CHUNK = 2_048  # tokens whose features are dense at a time
CIRCUIT_PASSES = 25  # forward passes over the prompts of notebooks 07 and 08
SPARSE = 100  # a product of two sparse features takes as long as so many of a dense product's
EFFICIENCY = 0.25  # of a dense product's speed; at this, the plan of mini gives the time of a measured whole run
NOTEBOOKS = 120  # seconds that all notebooks take where every artifact is found; measured at mini
PROCESS = 3.3e9  # bytes beside a stage's: Python, its packages, what a notebook's other cells hold; measured at mini
LONG = 7 * 24 * 3600


@dataclass(frozen=True)
class Stage:
    """One stage of a run. Bytes: `memory` at the most, `disk` that stays, `passing` until the stage is done."""

    name: str
    memory: float
    disk: float = 0
    passing: float = 0
    work: float = 0
    """Multiply-adds, as tokens × parameters."""
    on_gpu: bool = True
    """Whether its memory is the GPU's, where one is used."""


@dataclass(frozen=True)
class Room:
    """Bytes that there are, or that a run takes."""

    disk: float
    memory: float
    gpu: float = math.inf


def stages(profile: Profile) -> list[Stage]:
    """All stages of a run from nothing; nothing is measured or loaded."""
    shapes = {name: shape_of(name, profile) for name in profile.model_names}
    found = [stage for shape in shapes.values() for stage in _model(shape, profile)]
    for pair in profile.comparisons.values():
        a, b = (profile.roles[role] for role in (pair.a, pair.b))
        if a and b:
            made = _neurons if pair.of == "neurons" else _matching
            found.append(made(pair.label, shapes[a], shapes[b], profile))
    return [*found, _circuits(list(shapes.values()), profile)]


def _model(shape: Shape, profile: Profile) -> Iterator[Stage]:
    """Training, evaluating and reading the SAEs of one model."""
    name, d_sae = shape.name.rpartition("/")[2], profile.expansion * shape.d_model
    seeds = len(profile.sae_seeds) if shape.name == profile.pythia else 1
    n_saes, weights, sae = seeds * shape.sae_layers, FLOAT * shape.parameters, sae_parameters(shape.d_model, profile)
    at_once = group_size(shape.sae_layers, shape.d_model, seeds, profile)
    batch = profile.batch_blocks * profile.context_length
    reading = weights + FLOAT * batch * shape.d_model * shape.sae_layers
    encoding = n_saes * sae / 2  # the decoder is multiplied with active features only
    blocks = shape.n_layers * shape.block_parameters
    work = profile.sae_tokens * (blocks * -(-shape.sae_layers // at_once) + encoding)
    training = at_once * training_bytes(shape.d_model, seeds, profile) + FLOAT * 6 * profile.sae_batch_size * d_sae
    checkpoints = 2 * 3 * seeds * at_once * FLOAT * sae  # weights and Adam's moments; the last until the next is whole
    yield Stage(f"{name}: {n_saes} SAEs trained", reading + training, n_saes * FLOAT * sae, checkpoints, work)
    work = profile.eval_tokens * shape.parameters * (1 + (seeds + 1) * shape.sae_layers)
    logits = 3 * FLOAT * batch * shape.vocabulary
    yield Stage(f"{name}: SAEs evaluated", weights + seeds * at_once * FLOAT * sae + logits, work=work)
    work = profile.mppc_tokens * (seeds * blocks + encoding)
    memory = reading + FLOAT * (shape.sae_layers * sae + 3 * CHUNK * d_sae)
    active = profile.target_l0 or L0_WITHOUT_TARGET
    disk = n_saes * feature_bytes(profile.mppc_tokens, active, d_sae, profile.feature_dtype)
    yield Stage(f"{name}: features captured", memory, disk, work=work)


def _matching(label: str, a: Shape, b: Shape, profile: Profile) -> Stage:
    """MPPC in both directions, its null, and 1,000 resamples of the documents."""
    tokens, l0 = profile.mppc_tokens, profile.target_l0 or L0_WITHOUT_TARGET
    work = 2 * SPARSE * tokens * l0**2 * a.sae_layers * b.sae_layers
    memory = tokens * l0 * (8 * a.sae_layers + 6) + tokens * l0 * 8
    features = [profile.expansion * shape.sae_layers * shape.d_model for shape in (a, b)]
    resampled = FLOAT * N_RESAMPLES * sum(features)
    return Stage(f"MPPC, {label}", max(memory, _resampling(max(features))), resampled, work=work)


def _neurons(label: str, a: Shape, b: Shape, profile: Profile) -> Stage:
    """Dense products between all layers' neurons, and again for the null."""
    a_all, b_all = (shape.sae_layers * shape.n_neurons for shape in (a, b))
    memory = 30 * a.n_neurons * b.n_neurons + _resampling(max(a_all, b_all))
    disk, arrays = FLOAT * N_RESAMPLES * (a_all + b_all), FLOAT * profile.neuron_tokens * (a_all + b_all)
    work = 2 * profile.neuron_tokens * a_all * b_all
    return Stage(label, memory, disk, arrays, work, on_gpu=False)


def _circuits(shapes: list[Shape], profile: Profile) -> Stage:
    """Path patching (notebooks 07, 08), as so many passes over the induction prompts."""
    lengths = [distance + 3 for distance in profile.circuit_distances]
    kept = 6 * FLOAT * profile.circuit_samples * max(lengths) * max(s.n_layers * s.d_model for s in shapes)
    parameters = [shape.parameters for shape in shapes]
    work = CIRCUIT_PASSES * profile.circuit_samples * sum(lengths) * sum(parameters)
    return Stage("circuits", kept + FLOAT * max(parameters), work=work)


def _resampling(n_features: int) -> int:
    """Memory of one direction's sums over groups of documents and of what is resampled from them."""
    return n_features * (5 * 8 * N_GROUPS + FLOAT * N_RESAMPLES)


# ----------------------------------------------------------------------------------- what there is, what will not do


def needed(found: list[Stage]) -> Room:
    """The disk of what stays and of the most that passes; the memory of the largest stage, on a GPU and off it."""
    disk = sum(stage.disk for stage in found) + max(stage.passing for stage in found)
    memory, gpu = (max(stage.memory for stage in found if stage.on_gpu or not only) for only in (False, True))
    return Room(disk, PROCESS + memory, gpu)


def available(profile: Profile) -> Room:
    """What is free; artifacts that are there already count as free, as they are found again."""
    kept = sum(path.stat().st_size for path in profile.cache_dir.rglob("*") if path.is_file())
    disk = shutil.disk_usage(existing_folder(profile.cache_dir)).free + kept
    device = model_store.device_of(profile)
    return Room(disk, free_memory("cpu"), math.inf if device == "cpu" else free_memory(device))


def seconds(found: list[Stage], rate: float) -> float:
    """Coarse time of a run on a machine whose dense product does `rate` multiply-adds per second."""
    return NOTEBOOKS + sum(stage.work for stage in found) / (EFFICIENCY * rate)


def warnings(profile: Profile, found: list[Stage], rate: float) -> list[str]:
    """What will not do, a sentence each."""
    takes, has, said = needed(found), available(profile), []
    if takes.disk > has.disk:
        said.append(
            f"Disk will not do: {takes.disk / GB:.0f} GB are needed and {profile.cache_dir} has {has.disk / GB:.0f}; "
            "make room, take --set cache_dir=FOLDER, or store features in --set feature_dtype=float16."
        )
    for what, wanted, free in (("Memory", takes.memory, has.memory), ("The GPU's memory", takes.gpu, has.gpu)):
        if wanted > free:
            said.append(
                f"{what} will not do: {wanted / GB:.0f} GB are needed and {free / GB:.0f} are free; "
                "smaller mppc_tokens, buffer_tokens or batch_blocks take less."
            )
    if (spent := seconds(found, rate)) > LONG:
        said.append(f"Time will hardly do: {spent / 86400:.0f} days on this machine; take a GPU or smaller sae_tokens.")
    return said


def show(profile: Profile, rate: float, console: Console) -> None:
    """Print the plan: a line per stage, the sums, how sure it is, and what will not do."""
    found = stages(profile)
    takes = needed(found)
    table = Table(title=f"Plan of {profile.name}", show_footer=True)
    table.add_column("stage", footer="all, notebooks included")
    footers = f"{takes.memory / GB:.1f} GB", f"{takes.disk / GB:.1f} GB", _clock(seconds(found, rate))
    for name, footer in zip(("memory", "disk", "time, coarse"), footers):
        table.add_column(name, footer=footer, justify="right", no_wrap=True)
    for stage in found:
        disk = f"{(stage.disk + stage.passing) / GB:.1f} GB"
        table.add_row(stage.name, f"{stage.memory / GB:.1f} GB", disk, _clock(stage.work / (EFFICIENCY * rate)))
    console.print(table)
    console.print(
        f"Times are coarse, tokens × parameters at {EFFICIENCY:.0%} of the speed that one product reached here "
        f"({rate:.1e} multiply-adds per second): expect up to three times as much or as little. "
        f"The sum has {PROCESS / GB:.1f} GB of memory for a notebook's process beside its stages. "
        "Interpretation (06) and feature spaces (10) are counted as if their results were kept already.",
        highlight=False,
    )
    for line in warnings(profile, found, rate):
        console.print(line, highlight=False)


def _clock(spent: float) -> str:
    """Seconds as h:mm:ss, or days."""
    return str(timedelta(seconds=round(spent))) if spent < 2 * 86400 else f"{spent / 86400:,.1f} days"
