"""Fixtures that several test files share."""

import os

import pytest
import torch

from lib.profiles import get_profile

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported: its kernels then run on the CPU


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The smoke profile with one cache for the whole test run, so that no test trains twice."""
    return get_profile("smoke", cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
