"""``python -m tests.hub_rehearsal``: lib/README.md's commands for `laptop`, word for word, against a local hub.

The server holds the four repositories as they lie on the hub, at their real shapes, with random weights, and a text.
Everything happens in a copy of the workbook; it takes about 5 GB of disk and 6 GB of memory.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from hub_server import NAMES, TEXT_REVISION, Repository, documents, lay_out, repository_of, serving, write_text

from lib.models import hub
from lib.workbook.profiles import HOME

FEW = (
    "device=cpu,context_length=64,layers=5,expansion=4,sae_tokens=4096,sae_batch_size=64,buffer_tokens=2048,sae_warmup=0,"
    "untrained_tokens=1024,eval_tokens=1024,mppc_tokens=2048,neuron_tokens=1024,circuit_samples=2,circuit_distances=8"
)
COMMAND = "python -m lib.reproduce --profile laptop"


def download_commands() -> str:
    """The block of commands in lib/README.md that fill the hub's cache."""
    blocks = re.findall(r"```bash\n(.*?)```", (HOME / "lib" / "README.md").read_text(), re.DOTALL)
    return next(block for block in blocks if block.startswith("hf download"))


def rehearse(place: Path, models: dict[str, str], settings: str, notebooks: Sequence[str]) -> None:
    """Serve models (repository → what `lay_out` takes), then run lib/README.md's commands; raises where one fails."""
    repositories = {}
    for repository, name in models.items():
        lay_out(name, place / "made")
        repositories[repository] = repository_of(repository, place / "made")
        shutil.rmtree(place / "made")
    text = write_text(place / "text", documents(count=3_000, words=40))
    files = {name: path.read_bytes() for name, path in text}
    repositories[hub.OPENWEBTEXT] = Repository({TEXT_REVISION: files}, TEXT_REVISION, "dataset")
    workbook = place / "workbook"
    for part in ("lib", "notebooks", "data"):
        shutil.copytree(HOME / part, workbook / part, ignore=shutil.ignore_patterns("cache", "__pycache__"))
    shutil.copy(HOME / "requirements.txt", workbook)
    with serving(repositories) as (env, _):
        if set(NAMES) <= set(models):
            run(download_commands(), workbook, env | {"HF_HOME": str(place / "filled")})
            check = run(
                f"{COMMAND} --check", workbook, {"HF_HOME": str(place / "filled"), "HF_HUB_OFFLINE": "1"}, may_fail=True
            )
            assert len(re.findall(r"^\[ok\] (?:model|text)", check, re.M)) == 5, check
        only = " ".join(f"--only {number}" for number in notebooks)
        run(f"{COMMAND} {only} --set {settings}", workbook, env | {"HF_HOME": str(place / "fetched")})


def run(command: str, folder: Path, env: dict[str, str], may_fail: bool = False) -> str:
    """Run shell commands with this Python first on the PATH, echoing what they say."""
    print("$", command, flush=True)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env={**os.environ, **env, "PATH": path}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    print(done.stdout, flush=True)
    if done.returncode and not may_fail:
        raise SystemExit(f"exit code {done.returncode}: {command}")
    return done.stdout


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        rehearse(Path(scratch), dict(zip(NAMES, NAMES)), FEW, ("00", "01", "02", "03"))
