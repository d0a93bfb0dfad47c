"""What is wrong before long work starts, a sentence each: packages, text, models, tokenizers, room, folders.

`check` looks at everything and says what to do; the functions `check_…` stop a run.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from lib import models, packages
from lib.models import hub, recipes
from lib.models.machine import GB, existing_folder, writable
from lib.models.safe_weights import read_header
from lib.workbook import model_store, origins, plan, texts
from lib.workbook.profiles import HOME, Profile, ProfileError

ADD_ONS = {  # import name → how it is installed, what it is for
    "mamba_ssm": ("pip install --no-build-isolation mamba-ssm", "Mamba's scan on a GPU"),
    "causal_conv1d": ("pip install --no-build-isolation causal-conv1d", "Mamba's convolution on a GPU"),
    "triton": ("pip install triton", "matching features on a GPU"),
    "ray": ("pip install -r tests/cluster/requirements.txt", "many computers"),
}


class CannotRun(Exception):
    """Why a run cannot start, in one sentence."""


def check(profile: Profile) -> list[str]:
    """One line per thing that the profile needs ([ok], [missing]) or could use ([ok], [optional]), with what to do."""
    groups = (_packages, _text, _models, _tokenizers, _device, _room, _folders, _add_ons)
    return [line for group in groups for line in group(profile)]


# ------------------------------------------------------------------------------------------- before a run


def check_packages(requirements: Path = packages.REQUIREMENTS) -> None:
    """Say so where a package has another version than the pinned one."""
    _, other = packages.faults(requirements)
    if other:
        print(f"Numbers may differ from the pinned ones: {', '.join(other)}.", file=sys.stderr)


def check_room(profile: Profile) -> None:
    """Raise `CannotRun` where nothing can be written, or not half of the planned disk or memory is there.

    Raises `ModelNotFound` for a model whose size is not known.
    """
    for folder in (profile.cache_dir, profile.figures_dir):
        if not writable(folder):
            raise CannotRun(
                f"{folder} cannot be written to; allow it, or choose another cache folder with --set cache_dir=FOLDER."
            )
    takes, has = plan.needed(plan.stages(profile)), plan.available(profile)
    needs = f"profile {profile.name!r} needs at least"
    if has.disk < takes.disk / 2:
        raise CannotRun(
            f"{profile.cache_dir} has {has.disk / GB:.1f} GB free and {needs} {takes.disk / 2 / GB:.1f}; "
            "make room or choose another folder with --set cache_dir=FOLDER."
        )
    if has.memory < takes.memory / 2:
        raise CannotRun(
            f"{has.memory / GB:.1f} GB of memory are free and {needs} {takes.memory / 2 / GB:.1f}; "
            "close other programs or take a smaller profile; --plan says what for."
        )


def check_hub(profile: Profile) -> None:
    """Fetch and record what comes from the hub; raise `CannotRun`, naming all that is missing, where that cannot be.

    Raises `ModelNotFound` or `TextNotFound` where the hub answers and does not give what is asked for.
    """
    names = [name for name in model_store.hub_names(profile) if not origins.is_here(name, profile)]
    text = profile.corpus == "openwebtext" and not origins.cached_text(profile)
    if (names or text) and (why := hub.unreachable()):
        lacking = [*names, *([hub.OPENWEBTEXT] if text else [])]
        commands = "".join(f"\n    {hub.command(name)}" for name in lacking)
        raise CannotRun(f"not in {hub.CACHE}: {', '.join(lacking)}; and {why}. With a network, run{commands}")
    if text:
        print(f"{hub.OPENWEBTEXT} is streamed as it is read, {texts.gigabytes_streamed(profile):.1f} GB at most.")
    for name in model_store.hub_names(profile):
        origins.model_folder(name, profile)
    if profile.corpus == "openwebtext":
        origins.text_revision(profile)


def check_judge(profile: Profile) -> None:
    """Raise `CannotRun` for a language model that cannot be asked to judge."""
    if profile.judge_model and not os.environ.get("OPENAI_API_KEY"):
        raise CannotRun("to judge by a language model, set OPENAI_API_KEY (and OPENAI_BASE_URL for another endpoint).")


def check_tokenizers(profile: Profile) -> None:
    """Raise what `model_store.require_tokenizer` does: `ProfileError` where a model was trained with another one."""
    for name in profile.circuit_models:
        model_store.require_tokenizer(name, profile)


# ------------------------------------------------------------------------------------------- for reading


def _line(good: bool, text: str, otherwise: str, required: bool = True) -> str:
    return f"[ok] {text}" if good else f"[{'missing' if required else 'optional'}] {text}: {otherwise}"


def _packages(_: Profile) -> Iterator[str]:
    yield _line(sys.version_info >= (3, 11), f"Python {platform.python_version()}", "install Python 3.11 or newer")
    _, other = packages.faults()  # those that are missing have stopped the command
    about, how = f"{len(packages.pinned())} pinned packages", f"numbers may differ a little; {packages.INSTALL}"
    yield _line(not other, ", ".join(other) or about, how, required=False)


def _text(profile: Profile) -> Iterator[str]:
    if profile.corpus == "docstrings":
        about = f"text: {texts.DOCUMENTATION.relative_to(HOME)}"
        yield _line(texts.DOCUMENTATION.is_file(), about, "it belongs to the workbook; get the file again")
    elif files := len(origins.cached_text(profile)):
        yield f"[ok] text: {files} files of {hub.OPENWEBTEXT} in the hub's cache{_origin(hub.OPENWEBTEXT, profile)}"
    else:
        about = f"text: {hub.OPENWEBTEXT} is streamed, {texts.gigabytes_streamed(profile):.1f} GB at most"
        about += _origin(hub.OPENWEBTEXT, profile)
        yield _line(not (why := hub.unreachable()), about, f"{why}; {hub.how_to_get(hub.OPENWEBTEXT)}")


def _models(profile: Profile) -> Iterator[str]:
    for name in profile.circuit_models:
        if name not in model_store.hub_names(profile):
            yield _shipped(name)
        elif origins.is_here(name, profile):
            yield f"[ok] model {name}{_origin(name, profile)}"
        else:
            size = hub.facts().gigabytes_at_most.get(name)
            about = f"model {name} is downloaded" + (f", {size:.2f} GB at most" if size else "")
            yield _line(not (why := hub.unreachable()), about, f"{why}; {hub.how_to_get(name)}")


def _shipped(name: str) -> str:
    train = f"run python -m lib.zoo {name}"
    if not model_store.is_available(name):
        return f"[missing] model {name}: {train}"
    weights = recipes.MODELS / name / hub.WEIGHTS
    try:
        read_header(weights) if weights.exists() else None  # random weights are made on the spot
    except ValueError as error:
        return f"[missing] model {name}: {error} Get the file again{f', or {train}' if name in recipes.RECIPES else ''}"
    return f"[ok] model {name}"


def _tokenizers(profile: Profile) -> Iterator[str]:
    """Of the models that are here and were trained; nothing is fetched."""
    remote = [name for name in model_store.hub_names(profile) if not origins.is_here(name, profile)]
    if profile.corpus != "docstrings" and profile.pythia in remote:
        return  # it cuts the text
    for name in profile.circuit_models:
        if name in remote or not model_store.is_available(name) or model_store.has_random_weights(name, profile):
            continue
        try:
            model_store.require_tokenizer(name, profile)
        except ProfileError as error:
            yield f"[missing] a tokenizer for both: {error}"


def _origin(repository: str, profile: Profile) -> str:
    return f", {about}" if (about := origins.describe(repository, profile)) else ""


def _device(profile: Profile) -> Iterator[str]:
    found = {"AMX": torch.cpu._is_amx_tile_supported(), "bf16": torch.cpu._is_avx512_bf16_supported()}
    has = " and ".join(name for name, there in found.items() if there)
    about = f"CPU{' with ' if has else ''}{has}, {torch.get_num_threads()} threads"
    slower = "neither AMX nor bf16 instructions, so products in float32, slower"
    yield _line(bool(has), about, slower, required=False)
    device = model_store.device_of(profile)
    yield f"[ok] runs on {device}, products in {str(models.fast_dtype(device)).removeprefix('torch.')}"
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        yield f"[ok] GPU {gpu.name}, {gpu.total_memory / GB:.0f} GB"
    else:
        needs = "the profiles smoke and mini need none, paper is far too slow without"
        yield f"[optional] GPU: none that torch can use; {needs}"


def _room(profile: Profile) -> Iterator[str]:
    takes, has = plan.needed(plan.stages(profile)), plan.available(profile)
    helps = {
        "disk": f"make room in {existing_folder(profile.cache_dir)} or take --set cache_dir=FOLDER",
        "memory": "close other programs or take a smaller profile",
    }
    for kind, how in helps.items():
        free, wanted = (getattr(room, kind) / GB for room in (has, takes))
        yield _line(free >= wanted, f"{free:.0f} GB of {kind} free, {wanted:.1f} needed by the plan", how)


def _folders(profile: Profile) -> Iterator[str]:
    for what, folder in (("cache", profile.cache_dir), ("figures", profile.figures_dir)):
        how = f"allow writing in {folder}, or choose another"
        yield _line(writable(folder), f"{what} folder can be written to", how)


def _add_ons(_: Profile) -> Iterator[str]:
    for module, (command, use) in ADD_ONS.items():
        yield _line(bool(find_spec(module)), f"{module}, for {use}", f"`{command}`", required=False)
    there = shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))
    how = "`apt-get install chromium chromium-driver`, or Chrome and its chromedriver"
    yield _line(bool(there), "Chromium, for the tests in a browser", how, required=False)
