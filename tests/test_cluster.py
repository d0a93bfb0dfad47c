"""A real Ray cluster of two nodes on this machine; a worker is killed, a node is lost, results are the local ones."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from lib import reproduce
from lib.workbook import artifacts, texts
from lib.workbook.profiles import HOME, ProfileError

REQUIREMENTS = "tests/cluster/requirements.txt"
MISSING = f"Ray is not installed: pip install -r {REQUIREMENTS}"
needs_ray = pytest.mark.skipif(find_spec("ray") is None and not os.environ.get("CI"), reason=MISSING)
SMALL = {"sae_tokens": 8_192, "shard_tokens": 512, "device": "cpu"}
CELLS = (
    "profile, overrides = 'smoke', {}",
    f"import sys; sys.path.insert(0, {str(HOME)!r})\n"
    "from lib.workbook import artifacts; from lib.workbook.profiles import get_profile\n"
    "settings = get_profile(profile, overrides)\n"
    "frames = [artifacts.mppc(settings.pythia, settings.mamba, settings, null=null) for null in (False, True)]",
)


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    nodes.second = nodes.add_node(**node)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def caches(smoke, tmp_path):
    """Cache folders for a run here and one there, in which the text and the models' weights lie already."""
    for name in (smoke.pythia, smoke.mamba):
        artifacts.model_fields(name, smoke)
    texts.load_blocks(smoke, "held_out", 1)
    for cache in ("here", "there"):
        for kind in ("corpus", smoke.pythia, smoke.mamba):
            [found] = [path for path in smoke.cache_dir.glob(f"{kind}-{'?' * 16}") if path.is_dir()]
            shutil.copytree(found, tmp_path / cache / found.name)
    return [tmp_path / cache for cache in ("here", "there")]


@pytest.fixture
def joined(cluster, smoke):
    """The smoke profile on the cluster, of which this process is a driver until the test ends."""
    import ray

    yield smoke.model_copy(update={"ray": cluster.address})
    ray.shutdown()


def command(*options):
    result = CliRunner().invoke(reproduce.app, ["--profile", "smoke", *map(str, options)])
    return result.exit_code, result.output


@pytest.mark.slow
def test_without_ray_it_is_said_how_to_install_it(tmp_path):
    code = "import sys; sys.modules['ray'] = None; from lib import reproduce; reproduce.app(sys.argv[1:])"
    options = ["--profile", "smoke", "--ray", "auto", "--set", f"cache_dir={tmp_path}"]
    run = subprocess.run([sys.executable, "-c", code, *options], cwd=HOME, capture_output=True, text=True)
    assert run.returncode == 2 and (HOME / REQUIREMENTS).is_file()
    assert run.stderr == f"--ray needs Ray, which is not installed; run `pip install -r {HOME / REQUIREMENTS}`.\n"


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("address, reason", [("127.0.0.1:1", "Connection refused"), ("nonsense", "names no port")])
def test_a_cluster_that_is_not_there_is_said_at_once(tmp_path, address, reason):
    began = time.monotonic()
    code, output = command("--ray", address, "--set", f"cache_dir={tmp_path}")
    assert code == 2 and len(output.strip().splitlines()) == 1 and time.monotonic() - began < 30
    assert f"cannot join the Ray cluster '{address}'" in output and reason in output


@needs_ray
@pytest.mark.parametrize("device, expected", [("auto", (10, 8.0, 1)), ("cuda", (10, 8.0, 1)), ("cpu", (2, 32.0, 0))])
def test_a_piece_takes_a_gpu_with_its_share_of_the_cores_or_a_node(smoke, monkeypatch, device, expected):
    from lib.workbook import cluster

    nodes = [{"GPU": 8, "CPU": 64}, {"GPU": 2, "CPU": 32}, {"CPU": 0}, {"GPU": 1, "CPU": 1}]  # the last one is dead
    found = [{"NodeID": str(k), "Alive": k < 3, "Resources": has} for k, has in enumerate(nodes)]
    monkeypatch.setattr(cluster, "_connect", lambda address: None)
    monkeypatch.setattr(cluster.ray, "nodes", lambda: found)
    workers = cluster.RayWorkers(smoke.model_copy(update={"device": device}))
    assert (workers.count, workers.cpus, workers.gpus) == expected


@needs_ray
@pytest.mark.slow
def test_a_failure_there_is_one_sentence_here(joined, tmp_path, monkeypatch):
    from lib.workbook import cluster

    workers = cluster.RayWorkers(joined)
    assert (workers.count, workers.cpus, workers.gpus) == (2, 1, 0)
    (tmp_path / "seed00_layer00").mkdir()
    piece = (joined.mamba, joined, tmp_path, 0, [], tmp_path / "features")
    with pytest.raises(cluster.ClusterError) as caught:
        list(workers.each(artifacts.capture, {"shards 0 to 3": piece}, "features of smoke-mamba"))
    assert str(caught.value) == (
        "features of smoke-mamba, shards 0 to 3, failed on the cluster: FileNotFoundError: "
        f"{tmp_path / 'seed00_layer00'} is no SAE folder: cfg.json is missing."
    )
    with pytest.raises(ProfileError, match="has no GPU"):
        cluster.RayWorkers(joined.model_copy(update={"device": "cuda"}))
    monkeypatch.setattr(cluster, "_sees", lambda path: False)
    with pytest.raises(ProfileError, match=f"does not see {joined.cache_dir}; .* --set cache_dir"):
        cluster.check(joined)


def when(happens, act):
    """Do `act` in another thread once `happens()` gives something that is true; returns what was done it to."""
    done = []

    def watch():
        deadline = time.monotonic() + 1_200
        while not done and time.monotonic() < deadline:
            if found := happens():
                act(found)
                done.append(found)
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    return done


def piece_at_work():
    """A process of the cluster in which a piece is worked on."""
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::_work_on"):
            return process


def run_here(cache):
    """With one thread, as a piece there: sums of floats depend on how they are shared out."""
    notebook = "\n".join(CELLS).replace("{}", repr(SMALL | {"cache_dir": str(cache)}))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", notebook], cwd=HOME, env=environment, check=True, capture_output=True)


def files_of_artifacts(cache):
    return {path.parent.name: json.loads(path.read_text())["files"] for path in cache.glob("*/manifest.json")}


@needs_ray
@pytest.mark.slow
def test_a_run_that_loses_a_worker_and_a_node_ends_with_the_local_artifacts(cluster, caches, tmp_path):
    """Through the command line and the process of a notebook; byte for byte."""
    here, there = caches
    run_here(here)
    (tmp_path / "notebooks").mkdir()
    cells = [new_code_cell(CELLS[0], metadata={"tags": ["parameters"]}), *map(new_code_cell, CELLS[1:])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "00_one.ipynb")
    folders = {"cache_dir": there, "figures": tmp_path / "figures"}
    settings = [f"{field}={value}" for field, value in (SMALL | folders).items()]
    options = ["--profile", "smoke", "--ray", cluster.address, "--notebooks", str(tmp_path / "notebooks")]
    options += [word for setting in settings for word in ("--set", setting)]
    training = lambda: any(there.glob("saes-*.partial/checkpoint/groups.json")) and piece_at_work()  # noqa: E731
    killed = when(training, psutil.Process.kill)
    capturing = lambda: any(there.glob("features-*.partial/checkpoint/layer_*/shard_*.safetensors"))  # noqa: E731
    lost = when(capturing, lambda _: cluster.remove_node(cluster.second, allow_graceful=False))
    run = subprocess.run([sys.executable, "-m", "lib.reproduce", *options], cwd=HOME, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert killed and lost
    found, expected = files_of_artifacts(there), files_of_artifacts(here)
    assert {name.rpartition("-")[0] for name in expected} > {"saes", "features", "mppc"}
    assert found == expected
