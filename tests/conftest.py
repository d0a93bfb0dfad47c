"""Fixtures that several test files share."""

import pytest

from lib.profiles import get_profile


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """The smoke profile with one cache for the whole test run, so that no test trains twice."""
    return get_profile("smoke", cache_dir=tmp_path_factory.mktemp("cache"), device="cpu")
