"""The real models' configurations with random weights: what the `laptop` and `paper` profiles load, without the hub.

Widths and vocabularies are the real ones; the models are less deep, RWKV deep enough to halve its hidden states once.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import fill_hub_cache
from transformers import AutoModelForCausalLM

from lib import models
from lib.circuits import path_patching
from lib.circuits.prompts import induction_prompts
from lib.models import hub, recipes
from lib.models.families import family_of
from lib.workbook import artifacts, model_store
from lib.workbook.profiles import get_profile
from lib.workbook.sizes import config_of, matched_layers

NAMES = [getattr(get_profile("laptop"), field) for field in ("pythia", "mamba", "rwkv")]


DEPTHS = {"gpt_neox": 2, "mamba": 4, "rwkv": 7}


@pytest.fixture(scope="module", autouse=True)
def shallow():
    with pytest.MonkeyPatch.context() as patch:
        for name, known in recipes.CONFIGURATIONS.items():
            settings = known.settings | {"num_hidden_layers": DEPTHS[known.architecture]}
            patch.setitem(recipes.CONFIGURATIONS, name, replace(known, settings=settings))
        yield


@pytest.fixture(scope="module")
def laptop(shallow, tmp_path_factory):
    """The laptop profile at the models' real widths and with little of everything else."""
    return get_profile(
        "laptop", models="random", device="cpu", cache_dir=tmp_path_factory.mktemp("cache"), context_length=128,
        layers=(0,), expansion=2, sae_tokens=1_024, sae_batch_size=256, buffer_tokens=1_024, eval_tokens=128,
        mppc_tokens=512, sae_seeds=(0,), sae_warmup=0,
    )  # fmt: skip


def test_random_models_are_marked_read_local_text_and_leave_real_results_alone(laptop):
    real = get_profile("laptop")
    assert (laptop.meaningful, laptop.corpus) == (False, "docstrings")
    assert laptop.figures_dir != real.figures_dir
    assert get_profile("laptop", models="random").cache_dir != real.cache_dir
    seeds = [model_store.folder_of(name, laptop) for name in (laptop.pythia, laptop.pythia_seed)]
    keys = [artifacts.model_fields(name, laptop)["weights"] for name in (laptop.pythia, laptop.pythia_seed)]
    assert seeds[0] != seeds[1] and keys[0] != keys[1]
    with pytest.raises(models.ModelNotFound, match="no configuration of gpt5 is known"):
        model_store.folder_of("gpt5", laptop)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_plain_transformers(name, laptop):
    tokens = torch.randint(2, 50_000, (2, 24), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(model_store.folder_of(name, laptop), dtype=torch.float32).eval()
    expected = plain(tokens, use_cache=False).logits
    torch.testing.assert_close(model_store.load(name, laptop)(tokens), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_filled_cache_of_the_hub_is_used(name, laptop, tmp_path, monkeypatch):
    copies = shutil.copytree(model_store.folder_of(name, laptop), tmp_path / "copies")
    snapshot = fill_hub_cache(tmp_path / "hub", name, [(path.name, path) for path in sorted(copies.iterdir())])
    monkeypatch.setattr(hub, "CACHE", tmp_path / "hub")
    real = laptop.model_copy(update={"models": "pretrained"})
    assert model_store.hub_names(real)[0] == NAMES[0] and not model_store.hub_names(laptop)
    assert Path(model_store.folder_of(name, real)) == snapshot
    tokens = torch.arange(2, 26)[None]
    torch.testing.assert_close(model_store.load(name, real)(tokens), model_store.load(name, laptop)(tokens))


@pytest.mark.slow
def test_features_of_the_real_sizes_are_correlated(laptop):
    to_mamba, to_pythia = artifacts.mppc(laptop.pythia, laptop.mamba, laptop)
    assert len(to_mamba) == len(to_pythia) == 2 * 768  # one layer each: Mamba's at the same depth
    assert to_mamba.mppc.notna().any() and to_mamba.mppc.dropna().between(-1, 1 + 1e-6).all()
    layers = {
        name: matched_layers(config_of(name, laptop).num_hidden_layers, laptop)
        for name in (laptop.pythia, laptop.mamba, laptop.rwkv)
    }
    assert list(layers.values()) == [[0], [1], [3]]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_path_patching_s_last_position_is_the_model_s(name, laptop):
    """All blocks of the real widths, RWKV's halving of its hidden states included."""
    model = model_store.load(name, laptop)
    p = induction_prompts(8, 50_000, seed=0, n_samples=2)
    architecture = family_of(model)
    cache = architecture.run(p.clean)
    rows = cache["blocks.0.hook_in"][:, -1][None]
    for layer in range(models.n_layers(model)):
        rows = architecture.step(
            cache, layer, rows, architecture.mixer_output(cache, layer, architecture.inputs(cache, layer))
        )
    expected = path_patching.clean_logits(model, p.clean, p.target)
    torch.testing.assert_close(architecture.logits_of(rows, p.target)[0], expected, atol=1e-4, rtol=1e-4)
