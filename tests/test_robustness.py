"""A quick part of ``python -m tests.robustness``: notebook 03 killed, interrupted, nothing writable."""

import math
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from lib.workbook import texts
from lib.workbook.notebooks import ADVICE, advice
from lib.workbook.profiles import HOME
from tests.disturbances import _apart
from tests.robustness import Place

EXPERIMENTS = ["killed_in_stages", "interrupted", *(["read_only"] if os.geteuid() == 0 else [])]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL and SIGINT")
def test_notebook_03_survives(tmp_path, smoke):
    texts.document_tokens(smoke, "train")  # made once for all tests
    for artifact in smoke.cache_dir.glob("corpus-*[0-9a-f]"):
        shutil.copytree(artifact, Place(tmp_path / "undisturbed").cache / artifact.name)
    env = {**os.environ, "ROBUSTNESS_QUICK": "1", "ROBUSTNESS_ROOT": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-m", "tests.robustness", *EXPERIMENTS], cwd=HOME, env=env, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    table = pd.read_csv(tmp_path / "table_robustness.csv").set_index("disturbance")
    assert len(table) == len(EXPERIMENTS) and (table.holds == "yes").all()
    assert table.times.iloc[0] >= 3 and table["exit code"]["Ctrl-C"] == 130


@pytest.mark.parametrize("a, b, apart", [
    (["holds"], ["holds"], 0.0), (["holds"], ["does not hold"], math.inf), (["r 0.08, p 0.28"], ["r 0.1, p 0.3"], 0.0),
    (["r −0.08"], ["no r"], math.inf), ([1.0, 4.0], [1.1, 4.0], 0.025),
    ([1e-6], [2e-6], 0.0), ([1.0], [math.nan], math.inf),
    (["slope 0.41, 8,192 of them"], ["slope 0.42, 8,192 of them"], 0.0), (["slope 0.41"], ["slope 0.43"], math.inf),
    (["-8.05e-07"], ["-7.79e-07"], 0.0), (["8.05e-05"], ["7.79e-05"], math.inf), (["+0.25"], ["-0.25"], math.inf),
    (["−3%"], ["3%"], math.inf), (["2 pairs"], ["4 pairs"], math.inf),
    ([1.0], [1.0, 2.0], math.inf), ([math.nan], [math.nan], 0.0), ([True], [True], 0.0), ([True], [False], math.inf),
])  # fmt: skip
def test_how_far_two_columns_are_apart(a, b, apart):
    assert _apart(pd.Series(a), pd.Series(b)) == pytest.approx(apart, abs=1e-5)


@pytest.mark.parametrize("error", [
    OSError(28, "No space left on device", "x"), OSError("4096 requested and 0 written"),
    MemoryError("Unable to allocate 9 TiB"), PermissionError(13, "Permission denied"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
])  # fmt: skip
def test_errors_of_the_system_come_with_advice(error):
    said = advice(str(error))
    assert said.count("\n") == 1 and said.strip().partition(" What was finished")[0] in ADVICE.values()
    assert advice("ValueError: no") == ""
