"""MPPC on devices against the CPU's. Without a GPU, Triton's kernels run in its interpreter (`conftest.py`)."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from lib.mppc import gpu as mppc_gpu
from lib.mppc.correlation import max_pairwise_correlations
from tests.test_mppc import TOLERANCE, adversarial, assert_exact, sparse

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def on_device(monkeypatch):
    """`max_pairwise_correlations` by Triton, on the GPU if there is one."""
    pytest.importorskip("triton", reason="Triton is made for Linux only")
    place = mppc_gpu.place
    monkeypatch.setattr(mppc_gpu, "place", lambda x, device, by_feature: place(x, DEVICE, by_feature))
    return lambda a, b: max_pairwise_correlations(sparse(*a), sparse(*b), device="cuda")


def test_without_triton_a_gpu_s_matches_are_the_cpu_s(monkeypatch):
    monkeypatch.setattr("lib.mppc.correlation.find_spec", lambda name: None)
    a, b = sparse(adversarial(90, 3, 1)), sparse(adversarial(90, 60, 2))
    for found, expected in zip(max_pairwise_correlations(a, b, device="cuda"), max_pairwise_correlations(a, b)):
        np.testing.assert_array_equal(found.value, expected.value)


def assert_like_cpu(found, a, b):
    """The CPU's correlations to 1e-6 both ways, and its matches, but for those that are as good."""
    for this, cpu, own, other in zip(found, max_pairwise_correlations(sparse(*a), sparse(*b)), (a, b), (b, a)):
        np.testing.assert_allclose(this.value, cpu.value, rtol=0, atol=TOLERANCE)
        assert_exact(this, own, other)


@pytest.mark.parametrize("seed", range(2))
def test_finds_what_the_cpu_finds_on_hard_features(on_device, seed):
    a = [adversarial(150 + seed, width, 10 * seed + width) for width in (1, 9)]
    b = [adversarial(150 + seed, width, 10 * seed + width) for width in (3, 7)]
    assert_like_cpu(on_device(a, b), a, b)


def test_ties_go_to_the_first_layer_and_feature(on_device):
    rng = np.random.default_rng(0)
    x = (rng.exponential(size=(150, 6)) * (rng.random((150, 6)) < 0.2)).astype(np.float32)
    other = (rng.random((150, 6)) < 0.2).astype(np.float32)
    forward, reverse = on_device([x, x], [np.hstack([other, x, x]), x])
    assert (forward.layer == 0).all() and forward.index.tolist() == [*range(6, 12)] * 2
    assert (reverse.layer == 0).all() and reverse.index[6:].tolist() == [*range(6)] * 3


def test_work_is_cut_into_tiles_chunks_and_columns(on_device, monkeypatch):
    """Small limits, so that every loop turns more than once, with rows of B longer than one read."""
    monkeypatch.setattr(mppc_gpu, "L2_BYTES", 2 * 8 * 3 * 73)
    monkeypatch.setattr("lib.mppc.triton_kernels.COLUMNS", 64)
    a, b = [adversarial(90, 3, 1)], [adversarial(90, 60, 2)]
    assert_like_cpu(on_device(a, b), a, b)


def test_a_dead_layer_has_no_matches(on_device):
    alive, dead = np.eye(4, 3, dtype=np.float32), np.zeros((4, 2), np.float32)
    for found, size in zip(on_device([alive], [dead]), (3, 2)):
        assert np.isnan(found.value).all() and (found.index == -1).all() and len(found.index) == size


@pytest.mark.parametrize("name, types", [
    ("add_products", "i32 i32 *i32 *i64 *i64 *i32 *fp32 *i64 *u16 *fp32 i32 *i64 constexpr"),
    ("keep_best", "i32 *i64 *fp64 *fp64 i32 *i64 *i64 constexpr"),
])  # fmt: skip
def test_kernels_compile_for_an_h100(name, types, tmp_path):
    """In a process of its own, without the interpreter: down to the GPU's instructions, without memory for spills."""
    pytest.importorskip("triton", reason="Triton is made for Linux only")
    code = f"""
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lib.mppc import triton_kernels
kernel = triton_kernels.{name}
signature = dict(zip(kernel.arg_names, {types.split()}))
sizes = {{"entries": triton_kernels.ENTRIES, "columns": triton_kernels.COLUMNS}}
constants = {{name: sizes[name] for name, kind in signature.items() if kind == "constexpr"}}
compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
assert compiled.asm["cubin"] and ".local" not in compiled.asm["ptx"]
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_one_item_is_made_ahead_while_the_one_before_is_in_use():
    made = []

    def items():
        for k in range(5):
            made.append(k)
            yield k

    seen = []
    for k in mppc_gpu.ahead(items()):
        seen.append(k)
        assert len(made) <= k + 2
    assert seen == made == [*range(5)]


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise ValueError("no second item")

    found = mppc_gpu.ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="no second item"):
        next(found)
