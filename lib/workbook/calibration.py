"""How fast a machine is at what the stages do: measured in half a minute here, or taken from a data sheet."""

from __future__ import annotations

import platform
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numba import get_num_threads
from transformers import AutoModelForCausalLM

from lib.models import scans
from lib.mppc.correlation import max_pairwise_correlations
from lib.mppc.features import SparseFeatures, index_dtype
from lib.sae.autoencoder import SparseAutoencoder
from lib.sae.dense_step import gpu_step
from lib.sae.sparse_step import SparseStep
from lib.sae.training import MOMENTS
from lib.workbook import stages
from lib.workbook.model_store import device_of
from lib.workbook.profiles import Profile
from lib.workbook.sizes import config_of, shape_of
from lib.workbook.stages import Stage

clock = time.perf_counter  # seconds


@dataclass(frozen=True)
class Machine:
    """Speeds as they are reached, per second; `factors`: time of a kind of stage over what the speeds alone give."""

    name: str
    flops: float
    double_flops: float
    bandwidth: float
    multiply_adds: float
    factors: dict[str, float] = field(default_factory=dict)

    def seconds(self, stage: Stage) -> float:
        """Time of a stage, taken as the sum of what it computes and what it moves."""
        spent = stage.flops / self.flops + stage.double_flops / self.double_flops
        spent += stage.moved / self.bandwidth + stage.multiply_adds / self.multiply_adds
        return spent * self.factors.get(stage.kind, 1)


UTILISATION = 0.4
# NVIDIA's data sheet of the H100 SXM: float32, float64 on tensor cores, HBM3. A multiply-add reads 6 bytes. An SAE step
# on a GPU is five products in bfloat16 (989e12) where the plan counts one in float32, and the same traffic.
H100 = Machine("H100 SXM", *(UTILISATION * peak for peak in (67e12, 67e12, 3.35e12, 3.35e12 / 6)), {"sae": 0.45})


def hardware() -> str:
    """The processor, its cores and memory, and a GPU if there is one, as the machine itself says."""
    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)[1].strip()
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    memory = psutil.virtual_memory().total / 2**30
    return f"{psutil.cpu_count(logical=False) or psutil.cpu_count()} cores {cpu}, {amx}, {memory:.0f} GiB{gpu}"


def measure(profile: Profile) -> Machine:
    """Short measurements at the profile's shapes, on the device that it runs on; about half a minute for `paper`."""
    device, d_model = device_of(profile), shape_of(profile.pythia, profile).d_model
    flops = 2 * 1024 * d_model * 8192 / _best(_product(1024, d_model, 8192, torch.float32, device))
    double_flops = 2 * 1024**3 / _best(_product(1024, 1024, 1024, torch.float64, device))
    block = torch.ones(1 << 25, device=device)  # 128 MB
    bandwidth = 2 * 4 * len(block) / _best(_synchronised(block.clone, device))
    machine = Machine(hardware(), flops, double_flops, bandwidth, 1.0)
    machine = replace(machine, multiply_adds=_multiply_adds(profile, d_model, device))
    samples = {name: _forward(name, profile, device) for name in (profile.pythia, profile.mamba, profile.rwkv) if name}
    factors = {done.kind: spent / machine.seconds(done) for done, spent in samples.values()}
    for done, spent in (_sae_step(profile, d_model, device), _encoding(profile, d_model, device)):
        factors[done.kind] = spent / machine.seconds(done)
    return replace(machine, factors=factors | {"circuits": factors.get("mamba", factors["gpt_neox"])})


def _best(run: Callable[[], object], repeats: int = 2) -> float:
    """Seconds of the best run after a first one: other programs may be busy."""
    run()
    spent = []
    for _ in range(repeats):
        began = clock()
        run()
        spent.append(clock() - began)
    return min(spent)


def _synchronised(run: Callable[[], object], device: str) -> Callable[[], object]:
    """The same, waiting until a GPU is done."""
    return run if device == "cpu" else lambda: (run(), torch.cuda.synchronize())


def _product(n: int, k: int, m: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    a, b = torch.ones(n, k, dtype=dtype, device=device), torch.ones(k, m, dtype=dtype, device=device)
    return _synchronised(lambda: a @ b, device)


@torch.no_grad()
def _forward(name: str, profile: Profile, device: str) -> tuple[Stage, float]:
    """Two blocks of a model with random weights, over at most 2,048 tokens."""
    scans.install()
    config = config_of(name, profile)
    config.num_hidden_layers, config.vocab_size, config.use_cache = 2, 64, False
    shape = replace(shape_of(name, profile), n_layers=2, vocabulary=64)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).eval()
    rows = max(1, min(profile.batch_blocks, 2_048 // profile.context_length))
    tokens = torch.zeros(rows, profile.context_length, dtype=torch.long, device=device)
    spent = _best(_synchronised(lambda: model(tokens), device))
    return stages.forward(shape, tokens.numel(), profile.model_copy(update={"batch_blocks": rows})), spent


def _sae(profile: Profile, d_model: int, x: torch.Tensor) -> SparseAutoencoder:
    """An SAE of which about as many features are active on `x` as the profile aims at."""
    sae = SparseAutoencoder(d_model, profile.expansion * d_model).to(x.device)
    with torch.no_grad():
        pre = (x[:64] @ sae.W_enc).flatten()
        sae.b_enc -= pre.kthvalue(int(len(pre) * (1 - stages.l0_of(profile) / sae.d_sae))).values
    return sae


def _sae_step(profile: Profile, d_model: int, device: str) -> tuple[Stage, float]:
    x = torch.randn(profile.sae_batch_size, d_model, device=device)
    sae = _sae(profile, d_model, x)
    adam = torch.optim.Adam(sae.parameters(), lr=0.0, fused=device == "cuda")
    for p in sae.parameters():
        adam.state[p] = {"step": torch.zeros((), device=device), **{m: torch.zeros_like(p) for m in MOMENTS}}
    threads = get_num_threads() if device == "cpu" else 1  # each trains SAEs of its own
    step = SparseStep(len(x), d_model, sae.d_sae, parallel=False) if device == "cpu" else gpu_step
    spent = _best(_synchronised(lambda: step(sae, adam, x, 2.0), device))
    return stages.sae_steps(d_model, len(x), profile), spent / threads


@torch.no_grad()
def _encoding(profile: Profile, d_model: int, device: str) -> tuple[Stage, float]:
    x = torch.randn(1_024, d_model, device=device)
    sae = _sae(profile, d_model, x)
    spent = _best(_synchronised(lambda: sae.encode(x).nonzero(), device))
    return stages.encoding(d_model, len(x), profile), spent


def _multiply_adds(profile: Profile, d_model: int, device: str) -> float:
    """Multiply-adds per second of MPPC for one pair of layers: what more tokens take, beside the sweeps."""
    d_sae, l0 = profile.expansion * d_model, round(stages.l0_of(profile))
    few, many = 2_000, 2_000 + max(50_000, int(4e8 / l0**2))
    pair = [random_features(many, d_sae, l0, seed) for seed in (0, 1)]
    spent = [_best(lambda: max_pairwise_correlations(*([x.head(n)] for x in pair), device=device), 1) for n in (few, many)]
    return (many - few) * l0**2 / max(spent[1] - spent[0], 1e-9)


def random_features(n_tokens: int, d_sae: int, l0: int, seed: int) -> SparseFeatures:
    """`l0` features on each token, one of each of `l0` equal ranges of features."""
    rng, width = np.random.default_rng(seed), d_sae // l0
    columns = rng.integers(0, width, (n_tokens, l0)) + np.arange(l0) * width
    values = rng.exponential(size=n_tokens * l0).astype(np.float32) + np.float32(1e-3)
    ends = np.arange(n_tokens + 1, dtype=np.int64) * l0
    return SparseFeatures(ends, columns.ravel().astype(index_dtype(d_sae)), values, (n_tokens, d_sae))
