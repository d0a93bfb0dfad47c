"""The real models' configurations with random weights: what the `laptop` and `paper` profiles find in the hub's cache.

The numbers are those of the models' config.json on the hub.
"""

import pytest
import torch
from conftest import fill_hub_cache
from transformers import (
    AutoModelForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM, MambaConfig, MambaForCausalLM, RwkvConfig, RwkvForCausalLM,
)  # fmt: skip

from lib import models, path_patching, pipeline
from lib.architectures import architecture_of
from lib.profiles import get_profile
from lib.prompts import induction_prompts

COMMON = {"hidden_size": 768, "bos_token_id": 0, "eos_token_id": 0}
CONFIGURATIONS = {
    "EleutherAI/pythia-160m": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(
            **COMMON, vocab_size=50_304, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3_072,
            max_position_embeddings=2_048, rotary_pct=0.25, use_parallel_residual=True, tie_word_embeddings=False,
        )
    ),
    "state-spaces/mamba-130m-hf": lambda: MambaForCausalLM(
        MambaConfig(**COMMON, vocab_size=50_280, num_hidden_layers=24, state_size=16, conv_kernel=4, expand=2)
    ),
    "RWKV/rwkv-4-169m-pile": lambda: RwkvForCausalLM(
        RwkvConfig(**COMMON, vocab_size=50_277, num_hidden_layers=12, context_length=1_024, rescale_every=6)
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The hub's cache with all three under their names on the hub, in fp16; their snapshots."""
    root = tmp_path_factory.mktemp("real")
    found = {}
    for name, build in CONFIGURATIONS.items():
        torch.manual_seed(0)
        build().half().save_pretrained(root / name)
        files = [(path.name, path) for path in sorted((root / name).iterdir())]
        found[name] = fill_hub_cache(root / "hub", name, files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models.hub, "CACHE", root / "hub")
        yield found


@pytest.fixture(scope="module")
def laptop(folders, tmp_path_factory):
    """The laptop profile with these models; the text is the docstrings, as OpenWebText needs the network."""
    return get_profile(
        "laptop", pythia_seed="EleutherAI/pythia-160m", device="cpu", corpus="docstrings",
        cache_dir=tmp_path_factory.mktemp("cache"), context_length=128, layers=(5,), expansion=2, sae_tokens=1_024,
        sae_batch_size=256, buffer_tokens=1_024, eval_tokens=128, mppc_tokens=512, sae_seeds=(0,), sae_warmup=0,
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_logits_are_those_of_plain_transformers(name, folders, laptop):
    tokens = torch.randint(2, 50_000, (2, 24), generator=torch.Generator().manual_seed(0))
    plain = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32).eval()
    expected = plain(tokens, use_cache=False).logits
    torch.testing.assert_close(models.load(name, laptop)(tokens), expected, atol=1e-4, rtol=1e-4)


def test_features_of_the_real_sizes_are_correlated(laptop):
    to_mamba, to_pythia = pipeline.mppc(laptop.pythia, laptop.mamba, laptop)
    assert len(to_mamba) == len(to_pythia) == 2 * 768  # one layer each: Mamba's at the same depth
    assert to_mamba.mppc.notna().any() and to_mamba.mppc.dropna().between(-1, 1 + 1e-6).all()
    layers = {name: pipeline.layers_of(models.load(name, laptop), laptop) for name in (laptop.pythia, laptop.mamba, laptop.rwkv)}
    assert list(layers.values()) == [[5], [11], [5]]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_path_patching_s_last_position_is_the_model_s(name, folders, laptop):
    """All blocks of the real sizes, RWKV's halving of its hidden states included."""
    model = models.load(name, laptop)
    p = induction_prompts(8, 50_000, seed=0, n_samples=2)
    architecture = architecture_of(model)
    cache = architecture.run(p.clean)
    rows = cache["blocks.0.hook_in"][:, -1][None]
    for layer in range(models.n_layers(model)):
        rows = architecture.step(cache, layer, rows, architecture.read(cache, layer, architecture.inputs(cache, layer)))
    expected = path_patching.clean_logits(model, p.clean, p.target)
    torch.testing.assert_close(architecture.logits_of(rows, p.target)[0], expected, atol=1e-4, rtol=1e-4)
