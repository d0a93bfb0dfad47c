"""What this computer has of what the workbook wants: lines that start with [ok], [missing] or [optional]."""

from __future__ import annotations

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from lib import models
from lib.models import hub, recipes
from lib.models.safe_weights import read_header
from lib.workbook import model_store, needs, origins, plan, texts
from lib.workbook.profiles import HOME, Profile, ProfileError

ADD_ONS = {  # import name → how it is installed, what it is for
    "mamba_ssm": ("pip install --no-build-isolation mamba-ssm", "Mamba's scan on a GPU"),
    "causal_conv1d": ("pip install --no-build-isolation causal-conv1d", "Mamba's convolution on a GPU"),
    "triton": ("pip install triton", "matching features on a GPU"),
    "ray": ("pip install -r tests/cluster/requirements.txt", "many computers"),
}


def check(profile: Profile) -> list[str]:
    """One line per thing that the profile needs ([ok], [missing]) or could use ([ok], [optional]), with what to do."""
    lines = (_python, _packages, _text, _models, _tokenizers, _processor, _gpu, _room, _folders, _add_ons, _browser)
    return [line for group in lines for line in group(profile)]


def _line(good: bool, text: str, otherwise: str, required: bool = True) -> str:
    return f"[ok] {text}" if good else f"[{'missing' if required else 'optional'}] {text}: {otherwise}"


def _python(_: Profile) -> Iterator[str]:
    yield _line(sys.version_info >= (3, 11), f"Python {platform.python_version()}", "install Python 3.11 or newer")


def _packages(_: Profile) -> Iterator[str]:
    absent, other = needs.package_faults()
    if absent:
        yield f"[missing] {', '.join(absent)}: {needs.INSTALL}"
    if other:
        yield f"[optional] {', '.join(other)}: numbers may differ a little; {needs.INSTALL}"
    if not absent and not other:
        yield f"[ok] {len(needs.pinned())} pinned packages"


def _text(profile: Profile) -> Iterator[str]:
    if profile.corpus == "docstrings":
        about = f"text: {texts.DOCUMENTATION.relative_to(HOME)}"
        yield _line(texts.DOCUMENTATION.is_file(), about, "it belongs to the workbook; get the file again")
        return
    files = len(origins.cached_text(profile))
    if files:
        yield f"[ok] text: {files} files of {hub.OPENWEBTEXT} in the hub's cache{_origin(hub.OPENWEBTEXT, profile)}"
    else:
        about = f"text: {hub.OPENWEBTEXT} is streamed, {texts.gigabytes_streamed(profile):.1f} GB at most{_origin(hub.OPENWEBTEXT, profile)}"
        yield _line(not (why := hub.unreachable()), about, f"{why}; {hub.how_to_get(hub.OPENWEBTEXT)}")


def _models(profile: Profile) -> Iterator[str]:
    for name in dict.fromkeys(profile.model_names):
        if name in model_store.hub_names(profile):
            size = hub.facts().gigabytes_at_most.get(name)
            about = f"model {name} is downloaded" + (f", {size:.2f} GB at most" if size else "")
            here = origins.is_here(name, profile)
            why = None if here else hub.unreachable()
            yield f"[ok] model {name}{_origin(name, profile)}" if here else _line(not why, about, f"{why}; {hub.how_to_get(name)}")
        else:
            yield _shipped(name)


def _tokenizers(profile: Profile) -> Iterator[str]:
    """Of the models that are here and were trained; nothing is fetched."""
    remote = [name for name in model_store.hub_names(profile) if not origins.is_here(name, profile)]
    if profile.corpus != "docstrings" and profile.pythia in remote:
        return  # it cuts the text
    for name in dict.fromkeys(profile.model_names):
        if name in remote or not model_store.is_available(name) or model_store.has_random_weights(name, profile):
            continue
        try:
            model_store.require_tokenizer(name, profile)
        except ProfileError as error:
            yield f"[missing] a tokenizer for both: {error}"


def _origin(repository: str, profile: Profile) -> str:
    return f", {about}" if (about := origins.describe(repository, profile)) else ""


def _shipped(name: str) -> str:
    train = f"run python -m lib.zoo {name}"
    if not model_store.is_available(name):
        return f"[missing] model {name}: {train}"
    weights = recipes.MODELS / name / hub.WEIGHTS
    try:
        read_header(weights) if weights.exists() else None  # random weights are made on the spot
    except ValueError as error:
        return f"[missing] model {name}: {error} Get the file again, or {train}"
    return f"[ok] model {name}"


def _processor(profile: Profile) -> Iterator[str]:
    amx, bf16 = torch.cpu._is_amx_tile_supported(), torch.cpu._is_avx512_bf16_supported()
    has = " and ".join(name for name, there in (("AMX", amx), ("bf16", bf16)) if there)
    threads = f"{torch.get_num_threads()} threads"
    yield _line(amx or bf16, f"CPU with {has}, {threads}" if has else f"CPU, {threads}",
                "neither AMX nor bf16 instructions, so products in float32, slower", required=False)  # fmt: skip


def _gpu(profile: Profile) -> Iterator[str]:
    device = model_store.device_of(profile)
    yield f"[ok] runs on {device}, products in {str(models.fast_dtype(device)).removeprefix('torch.')}"
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        yield f"[ok] GPU {about.name}, {about.total_memory / needs.GB:.0f} GB"
    else:
        yield "[optional] GPU: none that torch can use; the profiles smoke and mini need none, paper is far too slow without"


def _room(profile: Profile) -> Iterator[str]:
    takes, has = plan.needed(plan.stages(profile)), plan.available(profile)
    helps = {
        "disk": f"make room in {needs.existing_folder(profile.cache_dir)} or take --set cache_dir=FOLDER",
        "memory": "close other programs or take a smaller profile",
    }
    for kind, how in helps.items():
        free, wanted = (getattr(room, kind) / needs.GB for room in (has, takes))
        yield _line(free >= wanted, f"{free:.0f} GB of {kind} free, {wanted:.1f} needed by the plan", how)


def _folders(profile: Profile) -> Iterator[str]:
    for what, folder in (("cache", profile.cache_dir), ("figures", profile.figures_dir)):
        yield _line(needs.writable(folder), f"{what} folder can be written to", f"allow writing in {folder}, or choose another")


def _add_ons(_: Profile) -> Iterator[str]:
    for module, (command, use) in ADD_ONS.items():
        yield _line(bool(find_spec(module)), f"{module}, for {use}", f"`{command}`", required=False)


def _browser(_: Profile) -> Iterator[str]:
    there = shutil.which("chromedriver") and (shutil.which("chromium") or shutil.which("google-chrome"))
    how = "`apt-get install chromium chromium-driver`, or Chrome and its chromedriver"
    yield _line(bool(there), "Chromium, for the tests in a browser", how, required=False)
