"""The hub: found in its cache, fetched from a server that speaks its protocol, or one sentence that says what to do."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import datasets
import hub_rehearsal
import pytest
import torch
from conftest import fill_hub_cache
from hub_server import (
    NAMES,
    OTHER,
    SMALL,
    TEXT_REVISION,
    Repository,
    documents,
    lay_out,
    repository_of,
    revision,
    serving,
    write_text,
)
from safetensors.torch import load_file, save

from lib import corpus, models
from lib.models import hub
from lib.workbook import checks, model_store, origins, texts
from lib.workbook.checks import CannotRun
from lib.workbook.profiles import HOME, get_profile
from lib.workbook.store import sha256_of

MAMBA, RWKV = NAMES[2:]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The four repositories as they lie on the hub, at small widths: name → folder."""
    folder = tmp_path_factory.mktemp("made")
    for name in SMALL:
        lay_out(name, folder / name)
    return {repository: folder / name for repository, name in zip(NAMES, SMALL)}


def files_of(folder, scratch):
    """Copies of a folder's files, by their names, to be laid into a cache."""
    shutil.copytree(folder, scratch)
    return [(path.name, path) for path in sorted(scratch.iterdir())]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and a hub that is not there."""
    monkeypatch.setattr(hub, "CACHE", tmp_path / "hub")
    monkeypatch.setattr(hub, "unreachable", lambda: "the hub says: no network")
    return tmp_path / "hub"


def fill(cache, scratch, made):
    for repository, folder in made.items():
        fill_hub_cache(cache, repository, files_of(folder, scratch / folder.name))
    fill_hub_cache(cache, hub.OPENWEBTEXT, write_text(scratch / "text", documents(count=120)), "dataset")


def laptop(tmp_path, **more):
    return get_profile("laptop", cache_dir=tmp_path / "artifacts", device="cpu", **more)


def test_all_that_is_missing_is_named_with_the_command_that_gets_it(cache, tmp_path, made):
    with pytest.raises(CannotRun) as caught:
        checks.check_hub(laptop(tmp_path))
    said = str(caught.value)
    assert all(name in said for name in (*NAMES, hub.OPENWEBTEXT)) and "no network" in said
    pinned = f"hf download EleutherAI/pythia-160m --revision {revision('EleutherAI/pythia-160m')}"
    assert f'{pinned} --include "*.json" --include "*.safetensors"' in said
    assert 'hf download RWKV/rwkv-4-169m-pile --include "*.json" --include "pytorch_model.bin"' in said
    text = f"hf download {hub.OPENWEBTEXT} --repo-type dataset --revision {TEXT_REVISION}"
    assert f'{text} --include "plain_text/train-0000*"' in said
    fill(cache, tmp_path, made)
    (hub.cached_model(RWKV) / hub.PICKLE).rename(tmp_path / "away")
    with pytest.raises(CannotRun, match="^not in .*: RWKV/rwkv-4-169m-pile; and") as caught:
        checks.check_hub(laptop(tmp_path))
    assert "pythia" not in str(caught.value)
    (tmp_path / "away").rename(hub.cached_model(RWKV, ("config.json",)) / hub.PICKLE)
    checks.check_hub(laptop(tmp_path))
    shutil.rmtree(cache / "models--RWKV--rwkv-4-169m-pile")  # its safetensors are the workbook's own by now
    checks.check_hub(laptop(tmp_path))


def test_mini_and_smoke_ask_no_hub(cache):
    for name in ("smoke", "mini"):
        checks.check_hub(get_profile(name))
        assert model_store.hub_names(get_profile(name)) == []


def test_text_is_read_from_the_cache_in_order_and_kept(cache, tmp_path, made):
    fill(cache, tmp_path, made)
    profile = laptop(tmp_path, context_length=16)
    blocks = texts.load_blocks(profile, "held_out", 100)
    first = next(text for text in documents(count=120) if corpus.split_of(text) == "held_out")
    tokenizer = texts.load_tokenizer(profile)
    assert blocks.tokens[0, 1:].tolist() == tokenizer(first)["input_ids"][:15] and blocks.n_positions >= 100
    shutil.rmtree(cache / "datasets--Skylion007--openwebtext")
    assert (texts.load_blocks(profile, "held_out", 100).tokens == blocks.tokens).all()
    with pytest.raises(hub.TextNotFound, match="hf download Skylion007/openwebtext --repo-type dataset"):
        texts.load_blocks(profile, "held_out", 50)


def test_a_pickled_model_of_the_hub_loads_without_a_profile(cache, tmp_path, made):
    fill(cache, tmp_path, made)
    model = models.load(RWKV)
    pickled = torch.load(made[RWKV] / hub.PICKLE, weights_only=True)
    torch.testing.assert_close(model.original_model.head.weight.detach(), pickled["head.weight"].float())
    assert model.cfg.model_name == RWKV and len(model.tokenizer)
    assert not (hub.cached_model(RWKV) / hub.WEIGHTS).exists()  # nothing is written into the hub's cache


def test_a_text_that_ends_too_early_is_said(cache, tmp_path, caplog, made):
    fill(cache, tmp_path, made)
    blocks = texts.load_blocks(laptop(tmp_path, context_length=16), "held_out", 10_000)
    assert f"The text ends after {blocks.n_positions} of 10000 tokens" in caplog.text


def run(home, *options, code=None, **env):
    """The command line, or Python code, as a user's process with its own HF_HOME."""
    command = [sys.executable, *(("-c", code) if code else ("-m", "lib.reproduce", *options))]
    return subprocess.run(
        command, cwd=HOME, capture_output=True, text=True, env={**os.environ, "HF_HOME": str(home), **env}
    )


LOAD = f"""
import os
from lib.workbook import model_store, texts
from lib.workbook.profiles import get_profile
profile = get_profile("laptop", context_length=16, cache_dir=os.environ["HF_HOME"] + "/c")
print(model_store.load({NAMES[2]!r}, profile).cfg.n_layers, len(texts.load_blocks(profile, "train", 200)))
"""


@pytest.mark.slow
def test_offline_with_a_filled_cache_it_runs(tmp_path, made):
    fill(tmp_path / "hub", tmp_path, made)
    there = run(tmp_path, "--profile", "laptop", "--check", "--set", f"cache_dir={tmp_path / 'c'}", HF_HUB_OFFLINE="1")
    lacking = [line for line in there.stdout.splitlines() if line.startswith("[missing]")]
    assert all("needed by the plan" in line for line in lacking), there.stderr  # of room, if the machine is busy
    assert there.returncode == bool(lacking)
    assert [line for line in there.stdout.splitlines() if "model" in line] == [f"[ok] model {name}" for name in NAMES]
    assert "[ok] text: 2 files of Skylion007/openwebtext" in there.stdout
    loaded = run(tmp_path, code=LOAD, HF_HUB_OFFLINE="1")
    assert loaded.stdout.split()[0] == "4", loaded.stderr


@pytest.mark.slow
def test_offline_without_a_cache_the_check_fails(tmp_path):
    absent = run(tmp_path, "--profile", "laptop", "--check", "--set", f"cache_dir={tmp_path / 'c'}", HF_HUB_OFFLINE="1")
    lines = [line for line in absent.stdout.splitlines() if line.startswith("[missing]")]
    assert absent.returncode == 1 and len(lines) == 5
    assert all("hf download" in line for line in lines)


# --------------------------------------------------------------------------------------- with a server


@pytest.fixture
def repositories(tmp_path, made):
    """What the server holds: the four models, and the text at the known revision with a newer main branch."""
    found = {name: repository_of(name, folder) for name, folder in made.items()}
    texts = {start: write_text(tmp_path / str(start), documents(start)) for start in (0, 1000)}
    old, new = ({name: path.read_bytes() for name, path in files} for files in texts.values())
    return found | {hub.OPENWEBTEXT: Repository({TEXT_REVISION: old, "c" * 40: new}, TEXT_REVISION, "dataset")}


@pytest.fixture
def server(repositories):
    with serving(repositories) as served:
        yield served


CHECK = """
import logging, os, sys
logging.basicConfig(format="%(message)s")
from lib.models import hub
from lib.workbook import checks, model_store, origins, texts
from lib.workbook.profiles import get_profile
profile = get_profile("laptop", device="cpu", context_length=16, cache_dir=os.environ["HF_HOME"] + "/c")
try:
    checks.check_hub(profile)
except (checks.CannotRun, hub.ModelNotFound, hub.TextNotFound) as error:
    sys.exit(f"cannot run: {error}")
"""
LINES = CHECK + "print(*origins.lines(profile), sep='\\n')\n"
EVERYTHING = (
    LINES
    + """
for name in profile.model_names:
    print(name, model_store.load(name, profile).cfg.n_layers)
print(len(texts.load_blocks(profile, "train", 200)))
"""
)


@pytest.mark.slow
def test_with_the_hub_reachable_all_four_load_and_the_second_time_nothing_is_fetched(server, tmp_path, made):
    env, asked = server
    got = run(tmp_path, code=EVERYTHING, **env)
    assert got.returncode == 0, got.stderr
    assert "Downloading RWKV/rwkv-4-169m-pile (0.68 GB at most)" in got.stderr and "34 s at 20 MB/s" in got.stderr
    assert "openwebtext is streamed as it is read, 0.1 GB at most" in got.stdout
    said = "RWKV/rwkv-4-169m-pile has no model.safetensors: its pytorch_model.bin was read as tensors only"
    assert got.stderr.count(said) == 1
    assert "RWKV/rwkv-4-169m-pile has 3" not in got.stderr  # and it is not the known file, which is said:
    assert re.search(
        r"the pytorch_model.bin of RWKV/rwkv-4-169m-pile has [\d,]+ bytes and sha256 \w{64}, not those of", got.stderr
    )
    for name in NAMES:
        weights = hub.weights_in(made[name])
        assert f"{name}, revision {revision(name)}, {weights.name} with sha256 {sha256_of(weights)}" in got.stdout
        assert f"{name} {4 if 'mamba' in name else 2}\n" in got.stdout
    assert f"{hub.OPENWEBTEXT}, revision {TEXT_REVISION}\n" in got.stdout
    assert not [line for line in asked if line.startswith("POST") and "paths-info" not in line]
    assert not [line for line in asked if re.search(r"pythia.*\.bin|mamba.*\.bin", line)]
    assert not [line for line in asked if ".parquet" in line and TEXT_REVISION not in line]
    assert not list((tmp_path / "hub").glob("**/*RWKV*/**/*.safetensors"))  # the hub's own cache is left as it is
    asked.clear()
    again = run(tmp_path, code=EVERYTHING, **env)
    assert (again.returncode, again.stdout.splitlines()[1:]) == (0, got.stdout.splitlines()[1:]), again.stderr
    assert "Downloading" not in again.stderr and "was read as tensors" not in again.stderr
    assert not [line for line in asked if "/resolve/" in line]


@pytest.fixture
def asked(repositories, cache, monkeypatch):
    """The server as this process's hub, with an empty cache; what it is asked."""
    monkeypatch.undo()
    monkeypatch.setattr(hub, "CACHE", cache)
    with serving(repositories) as (env, asked):
        monkeypatch.setattr(hub.constants, "ENDPOINT", env["HF_ENDPOINT"])
        path = "/{repo_id}/resolve/{revision}/{filename}"
        template = env["HF_ENDPOINT"] + path  # made of ENDPOINT when it is imported
        monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(datasets.config, "HF_ENDPOINT", env["HF_ENDPOINT"])
        yield asked


def know(monkeypatch, repository, **more):
    """Another line in the table of what is known of the hub."""
    facts = hub.facts().copy()
    for column, value in more.items():
        facts.loc[repository, column] = value
    monkeypatch.setattr(hub, "facts", lambda: facts)


@pytest.mark.parametrize("digits", [40, 7])
def test_a_revision_in_the_table_is_fetched_or_compared(asked, repositories, tmp_path, monkeypatch, caplog, digits):
    """All 40 digits: exactly that commit. Fewer: the main branch's, and a word if it is another."""
    repositories[MAMBA].commits["b" * 40] = repositories[MAMBA].commits[revision(MAMBA)]
    wanted = "b" * 40 if digits == 40 else revision(MAMBA)
    know(monkeypatch, MAMBA, revision="b" * digits)
    assert Path(model_store.folder_of(MAMBA, laptop(tmp_path))).name == wanted
    assert origins.recorded(MAMBA, laptop(tmp_path))["revision"] == wanted
    assert (f"is at revision {wanted}" in caplog.text and "begins with bbbbbbb: it may hold" in caplog.text) == (
        digits == 7
    )
    assert (f"--revision {'b' * 40}" in hub.command(MAMBA)) == (digits == 40)
    assert not [line for line in asked if "/resolve/" in line and wanted not in line]


def test_the_first_revision_stays_when_the_main_branch_moves_on(asked, repositories, tmp_path, cache, monkeypatch):
    first = revision(MAMBA)
    know(monkeypatch, MAMBA, revision="")
    folder = model_store.folder_of(MAMBA, laptop(tmp_path))
    repositories[MAMBA].commits["b" * 40] = repositories[MAMBA].commits[first]
    repositories[MAMBA].main = "b" * 40
    hub.HfApi().snapshot_download(MAMBA, cache_dir=cache)  # by another program
    assert hub.cached_model(MAMBA).name == "b" * 40
    assert model_store.folder_of(MAMBA, laptop(tmp_path)) == folder and Path(folder).name == first
    shutil.rmtree(folder)
    assert model_store.folder_of(MAMBA, laptop(tmp_path)) == folder  # fetched again, at the same revision


def test_a_revision_that_the_hub_does_not_have_is_said(asked, tmp_path, monkeypatch):
    know(monkeypatch, MAMBA, revision="e" * 40)
    with pytest.raises(
        models.ModelNotFound, match=f"the hub has no revision {'e' * 40} of it; correct or empty its line in"
    ):
        model_store.folder_of(MAMBA, laptop(tmp_path))


def test_what_is_no_revision_is_said(monkeypatch):
    know(monkeypatch, RWKV, revision="main")
    with pytest.raises(
        models.ModelNotFound, match="hub.csv: 'main' is no revision of RWKV/rwkv-4-169m-pile; give the 40"
    ):
        hub.cached_model(RWKV)


def test_text_is_streamed_at_the_known_revision_or_the_given_one(asked, repositories, tmp_path, monkeypatch, caplog):
    profile = laptop(tmp_path, context_length=16)
    assert len(texts.load_blocks(profile, "train", 200)) and "begins with" not in caplog.text
    assert not [line for line in asked if ".parquet" in line and TEXT_REVISION not in line]
    know(monkeypatch, hub.OPENWEBTEXT, revision="c" * 40)
    asked.clear()
    other = texts.load_blocks(profile, "train", 200)
    assert [line for line in asked if ".parquet" in line] and not [line for line in asked if TEXT_REVISION in line]
    assert "1000" in texts.load_tokenizer(profile).decode(other.tokens[0]) and "is at revision" not in caplog.text


def test_a_text_that_moved_on_is_said(asked, repositories, tmp_path, caplog, monkeypatch):
    know(monkeypatch, hub.OPENWEBTEXT, revision=TEXT_REVISION[:7])
    repositories[hub.OPENWEBTEXT].main = "c" * 40
    assert origins.text_revision(laptop(tmp_path)) == "c" * 40
    assert (
        "Skylion007/openwebtext is at revision cccc" in caplog.text
        and f"begins with {TEXT_REVISION[:7]}" in caplog.text
    )


# ------------------------------------------------------------------------ repositories without safetensors


def test_pickled_weights_become_the_same_safetensors_each_time(asked, made, tmp_path):
    folders = [Path(model_store.folder_of(RWKV, laptop(tmp_path / k))) for k in ("1", "2")]
    kept, pickled = load_file(folders[0] / hub.WEIGHTS), torch.load(made[RWKV] / hub.PICKLE, weights_only=True)
    assert kept.keys() == pickled.keys() and all(
        (kept[k] == v).all() and kept[k].dtype == v.dtype for k, v in pickled.items()
    )
    record = origins.recorded(RWKV, laptop(tmp_path / "1"))
    assert record["sha256"] == sha256_of(made[RWKV] / hub.PICKLE)
    assert record["converted"] == sha256_of(folders[0] / hub.WEIGHTS) == sha256_of(folders[1] / hub.WEIGHTS)


def test_a_cache_that_cannot_be_written_to_and_a_hub_that_is_away_do(cache, made, tmp_path):
    for name in (RWKV, laptop(tmp_path).pythia):  # whose tokenizer cuts the text
        fill_hub_cache(cache, name, files_of(made[name], tmp_path / "copy" / name))
    before = {path: path.lstat().st_mtime_ns for path in cache.rglob("*")}
    assert model_store.load(RWKV, laptop(tmp_path)).cfg.n_layers == 2
    assert {path: path.lstat().st_mtime_ns for path in cache.rglob("*")} == before  # nothing was written there


def test_two_at_once_convert_once(asked, tmp_path, caplog):
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(model_store.folder_of(RWKV, laptop(tmp_path)))) for _ in range(2)
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(folders) == 2 and len(set(folders)) == 1
    assert caplog.text.count("was read as tensors only") == 1 and "waiting for it" in caplog.text


def bot_request(repository, made, author="SFconvertbot", committer=None, onto=OTHER):
    """Add a pull request with safetensors to a repository."""
    tensors = torch.load(made[RWKV] / hub.PICKLE, weights_only=True)
    repository.commits["d" * 40] = repository.commits[OTHER] | {hub.WEIGHTS: save(tensors, {"format": "pt"})}
    repository.requests[3] = author, [("d" * 40, committer or author), (onto, "someone")]


@pytest.mark.parametrize(
    "more, taken",
    [
        ({}, True),
        ({"author": "a-stranger"}, False),
        ({"committer": "a-stranger"}, False),  # who pushed onto the bot's
        ({"onto": "e" * 40}, False),  # of other weights than those of this revision
    ],
)
def test_a_pull_request_is_taken_only_if_the_hub_s_bot_wrote_it(asked, repositories, made, tmp_path, more, taken):
    bot_request(repositories[RWKV], made, **more)
    folder = Path(model_store.folder_of(RWKV, laptop(tmp_path)))
    assert (folder.name == "d" * 40) == taken
    assert [line for line in asked if line.startswith("GET") and hub.PICKLE in line] == [] or not taken
    assert origins.recorded(RWKV, laptop(tmp_path))["file"] == (hub.WEIGHTS if taken else hub.PICKLE)
    assert model_store.folder_of(RWKV, laptop(tmp_path)) == str(folder)  # the second time, from the record
    assert model_store.load(RWKV, laptop(tmp_path)).cfg.n_layers == 2


def test_where_discussions_are_closed_the_pickle_does(asked, repositories, tmp_path):
    repositories[RWKV].requests = None
    assert (Path(model_store.folder_of(RWKV, laptop(tmp_path))) / hub.WEIGHTS).exists()
    assert [line for line in asked if "/discussions" in line]


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class Harmless:
    pass


def wrong_shape(tensors):
    tensors["rwkv.embeddings.weight"] = tensors["rwkv.embeddings.weight"][:, :-1]


def huge(tensors):
    tensors["more"] = torch.zeros(1).expand(10**6, 10**6)  # four bytes in the file, terabytes in memory


def nan(tensors):
    tensors["head.weight"][0, 0] = float("nan")


@pytest.mark.parametrize(
    "spoil, said",
    [
        (
            lambda t: t.update(more=Evil()),
            r"pytorch_model.bin needs more than tensors \((posix|nt).system\), so it is not opened",
        ),
        (lambda t: t.update(more=Harmless()), r"needs more than tensors \(test_hub.Harmless\)"),
        (lambda t: t.update(epoch=3), "needs more than tensors: epoch is a int"),
        (lambda t: t.update(more=torch.zeros(2).to_sparse()), "more holds torch.float32 \\(torch.sparse_coo\\)"),
        (wrong_shape, r"rwkv.embeddings.weight has shape \[4096, 63\], not \[4096, 64\]"),
        (huge, "holds more that does not belong to this model than the model itself, more for one"),
        (nan, "head.weight holds NaN or infinite values"),
    ],
)
def test_a_pickle_of_something_else_is_refused_in_one_sentence(
    asked, repositories, made, tmp_path, monkeypatch, spoil, said
):
    monkeypatch.chdir(tmp_path)
    tensors = torch.load(made[RWKV] / hub.PICKLE, weights_only=True)
    spoil(tensors)
    torch.save(tensors, tmp_path / "x.bin")
    repositories[RWKV].commits[OTHER] = repositories[RWKV].commits[OTHER] | {
        hub.PICKLE: (tmp_path / "x.bin").read_bytes()
    }
    with pytest.raises(hub.ModelNotFound, match=said) as caught:
        checks.check_hub(laptop(tmp_path))
    assert str(caught.value).startswith(f"cannot load {RWKV}: ") and "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists() and not list(tmp_path.glob("artifacts/**/*.safetensors"))


def test_old_files_and_tied_tensors_are_read_and_a_cut_file_is_refused(asked, repositories, made, tmp_path):
    tensors = torch.load(made[RWKV] / hub.PICKLE, weights_only=True)
    tensors["tied.weight"] = tensors["head.weight"]
    tensors["part.weight"] = tensors["head.weight"][5:9].T
    files = repositories[RWKV].commits[OTHER]
    for k, new in enumerate((True, False)):
        torch.save(tensors, tmp_path / "x.bin", _use_new_zipfile_serialization=new)
        repositories[RWKV].commits[OTHER] = files | {hub.PICKLE: (tmp_path / "x.bin").read_bytes()}
        shutil.rmtree(hub.CACHE, ignore_errors=True)
        kept = load_file(Path(model_store.folder_of(RWKV, laptop(tmp_path / str(k)))) / hub.WEIGHTS)
        assert all(torch.equal(kept[key], value) for key, value in tensors.items())
    repositories[RWKV].commits[OTHER] = files | {hub.PICKLE: files[hub.PICKLE][:-999]}
    shutil.rmtree(hub.CACHE)
    with pytest.raises(
        models.ModelNotFound, match="pytorch_model.bin is damaged, or no file of torch.save: download it again."
    ):
        model_store.folder_of(RWKV, laptop(tmp_path))


def test_a_full_digest_in_the_table_is_demanded(asked, made, tmp_path, monkeypatch, caplog):
    know(monkeypatch, RWKV, sha256="0" * 64, bytes="")
    with pytest.raises(
        models.ModelNotFound, match="and sha256 .*, not those of .*hub.csv: download it again, or correct that line."
    ):
        model_store.folder_of(RWKV, laptop(tmp_path))
    digest = sha256_of(made[RWKV] / hub.PICKLE)
    for known in (digest, f"{digest[:8]}...{digest[-6:]}"):
        caplog.clear()
        know(monkeypatch, RWKV, sha256=known)
        model_store.folder_of(RWKV, laptop(tmp_path))
        assert "results may differ" not in caplog.text


def test_a_repository_without_any_weights_is_said(asked, repositories, tmp_path):
    del repositories[RWKV].commits[OTHER][hub.PICKLE]
    with pytest.raises(models.ModelNotFound, match="has no model.safetensors on the hub, nor a pytorch_model.bin"):
        model_store.folder_of(RWKV, laptop(tmp_path))


@pytest.mark.slow
def test_notebooks_run_with_models_of_the_hub_that_nothing_is_known_of(tmp_path):
    """`tests/hub_rehearsal.py` at small widths: the command of `laptop` fetches, converts and streams as it needs."""
    names = {name.replace("smoke-", "small/"): name for name in SMALL}
    fields = ",".join(f"{field}={name}" for field, name in zip(("pythia", "pythia_seed", "mamba", "rwkv"), names))
    few = hub_rehearsal.FEW.replace("layers=5", "layers=1").replace("context_length=64", "context_length=32")
    hub_rehearsal.rehearse(tmp_path, names, f"{few},{fields}", ("00", "01"))
    shown = (tmp_path / "workbook" / "figures" / "laptop" / "notebooks" / "00_start_here.ipynb").read_text()
    assert re.search(
        r"small/rwkv, revision a{40}, pytorch_model.bin with sha256 \w{64}, read as safetensors with sha256 \w{64}",
        shown,
    )


# --------------------------------------------------------------------------------------------- kernels

KERNELS = """
import os
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    class Recorder:
        INFERENCE = TRAINING = ALL = None
        def __init__(self, *a, **k): log(name, *a)
        def __call__(self, *a, **k): return a[0] if a else None
        def __or__(self, other): return self
    return Recorder
def log(name, *a):
    with open(os.environ["KERNEL_LOG"], "a") as file:
        file.write(f"{name} {a[:1]}\\n")
def get_kernel(repo_id, *a, **k):
    log("get_kernel", repo_id)
    raise RuntimeError("recorded")
def use_kernel_forward_from_hub(name): return lambda cls: cls
def use_kernelized_func(*names): return lambda cls: cls
"""
USES = """
import torch
torch.cuda.is_available = lambda: True  # as on a GPU: RWKV then loads its kernel as soon as it is built
import transformers
from transformers.models.rwkv import modeling_rwkv
modeling_rwkv.is_ninja_available = modeling_rwkv.is_torch_cuda_available = lambda: True
from transformers.utils.import_utils import is_kernels_available
assert is_kernels_available()
from lib import models
from lib.models import recipes
from lib.workbook.profiles import get_profile
from transformers.integrations import hub_kernels
recipes.build(recipes.RECIPES["smoke-rwkv"])
config = recipes.config_of(recipes.RECIPES["smoke-pythia"])
for use in (
    lambda: transformers.AutoModelForCausalLM.from_config(config, attn_implementation="kernels-community/flash-attn2"),
    lambda: hub_kernels.lazy_load_kernel("causal-conv1d"),
    lambda: recipes.build(recipes.RECIPES["smoke-mamba"]).set_use_kernels(True),
):
    try:
        use()
    except Exception as error:
        print(type(error).__name__, error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("allowed", ["", "1"])
def test_no_kernel_is_downloaded_unless_the_user_asks(tmp_path, allowed):
    """A package `kernels` that records what it is asked for, in a version that transformers takes."""
    (tmp_path / "kernels" / "layer").mkdir(parents=True)
    (tmp_path / "kernels" / "__init__.py").write_text(KERNELS)
    (tmp_path / "kernels" / "layer" / "__init__.py").touch()
    (tmp_path / "kernels" / "layer" / "mode.py").write_text("class Mode:\n    INFERENCE = TRAINING = None\n")
    (tmp_path / "kernels-0.18.2.dist-info").mkdir()
    (tmp_path / "kernels-0.18.2.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n"
    )
    log = tmp_path / "log"
    log.touch()
    got = run(tmp_path, code=USES, PYTHONPATH=str(tmp_path), KERNEL_LOG=str(log), USE_HUB_KERNELS=allowed)
    assert got.returncode == 0, got.stderr
    if allowed == "1":
        assert "get_kernel ('kernels-community/rwkv',)" in log.read_text()  # so the test sees what it looks for
        assert "get_kernel ('kernels-community/flash-attn2',)" in log.read_text()
        assert "LayerRepository" in log.read_text()
    else:
        assert log.read_text() == ""
        assert got.stdout.count("kernels from the hub are code and stay switched off; set USE_HUB_KERNELS=1") == 2


def test_the_readme_s_commands_are_the_ones_that_messages_give():
    readme = (HOME / "lib" / "README.md").read_text(encoding="utf-8")
    assert [name for name in (*NAMES, hub.OPENWEBTEXT) if f"\n{hub.command(name)}" not in readme] == []
