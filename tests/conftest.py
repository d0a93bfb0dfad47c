"""Fixtures that several test files share."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numba
import pytest
import torch
from selenium import webdriver
from transformers import AutoConfig, AutoModelForCausalLM

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, as below: its kernels then run on the CPU
PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if PARALLEL:  # each worker has a core: threads that wait for each other would take those of the others
    torch.set_num_threads(1)
    numba.set_num_threads(1)

from lib.models import hub, recipes
from lib.workbook.profiles import get_profile


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The smoke profile with one cache for the whole test run, both workers' too, so that no test trains twice."""
    run = tmp_path_factory.getbasetemp()
    cache = (run.parent if PARALLEL else run) / "smoke-cache"
    return get_profile("smoke", {"cache_dir": cache, "figures": tmp_path_factory.mktemp("figures")}, device="cpu")


@pytest.fixture(scope="session")
def retrained(smoke, tmp_path_factory):
    """The tables of SAEs trained again, made at smoke, of few settings and little text; read in this session."""
    from lib.workbook import retraining, trials

    few = {"sae_tokens": (1 / 2, 1, 2), "expansion": (1 / 2, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retraining, "REFERENCE", tmp_path_factory.mktemp("retrained"))
        patch.setattr(retraining, "FACTORS", few)
        patch.setattr(trials, "SEEDS", trials.SEEDS[:2])
        small = [f"cache_dir={smoke.cache_dir}", "sae_tokens=4096", "eval_tokens=1024", "device=cpu"]
        retraining.main("smoke", small)
        trials.main("smoke", small)
        yield retraining.REFERENCE


@pytest.fixture(scope="session")
def executed(smoke, retrained, tmp_path_factory):
    """Figures, tables and notebooks of one run of the whole workbook, whose artifacts stay in the cache of `smoke`."""
    from tests import running  # here: it imports most of the library

    figures = tmp_path_factory.mktemp("executed")
    running.execute_all({"cache_dir": str(smoke.cache_dir), "device": "cpu", "figures": str(figures)})
    return figures / "smoke"


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, from Debian's packages or the PATH; keeps the logs of its console and of its network."""
    if not shutil.which("chromedriver"):
        missing = "no Chromium on this computer: apt-get install chromium chromium-driver"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--window-size=1200,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """What drives a browser is slow: the quick tests need none. The longest file, all notebooks, comes first."""
    for item in items:
        if "browser" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != "test_workbook.py")


LLAMA = dict(
    num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=85, max_position_embeddings=128
)  # fmt: skip
SMALL = {  # the settings of small models of families of which the zoo has none
    "gpt2": dict(n_head=4, n_positions=128, tie_word_embeddings=False),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA | {"tie_word_embeddings": False}),
    "falcon_mamba": dict(state_size=16, initializer_range=0.05, use_cache=False),
    "mamba2": dict(num_heads=8, head_dim=8, state_size=16, n_groups=1, chunk_size=32, use_cache=False),
}
recipes.OWN |= {family: lambda r, own=own: own for family, own in SMALL.items()}
LESS_USUAL = {
    "gpt_neox": dict(use_parallel_residual=False),
    "mistral": dict(sliding_window=17),
    "qwen2": dict(use_sliding_window=True, sliding_window=17, max_window_layers=1),
    "qwen3": dict(head_dim=16),
}
"""What a family's models may have and the small ones have not.

Windows are of 17 positions, in all layers or in all but the first; Qwen3's heads are together wider than the stream.
"""


def random_checkpoint(family: str, folder: Path, n_layers: int = 3, **changes) -> Path:
    """A small model of a family, as transformers writes it; every weight is random, biases and norms included.

    `changes` are made to its configuration. The weights are large enough for a token to change the logits.
    """
    recipe = recipes.Recipe(family, n_layers=n_layers, d_model=32, context_length=64)
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **recipe.settings | LESS_USUAL.get(family, {}) | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def fill_hub_cache(cache: Path, repository: str, files: Iterable[tuple[str, Path]], kind: str = "model") -> Path:
    """Lay (name in the repository, file) out as the hub's cache does: blobs by digest, links to them in a snapshot."""
    folder = cache / f"{kind}s--{repository.replace('/', '--')}"
    revision = hub.known(repository, "revision") or hashlib.sha1(repository.encode()).hexdigest()
    for place in ("refs", "blobs", f"snapshots/{revision}"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision)
    for name, path in files:
        blob = folder / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.move(path, blob)
        link = folder / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return folder / "snapshots" / revision
