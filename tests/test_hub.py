"""The hub: found in its cache, fetched from a server that speaks its protocol, or one sentence that says what to do."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
from conftest import fill_hub_cache

from lib import corpus, hub, models, recipes, reproduce
from lib.notebooks import CannotRun
from lib.profiles import HOME, get_profile

NAMES = ("EleutherAI/pythia-160m", "EleutherAI/pythia-160m-seed1", "state-spaces/mamba-130m-hf", "RWKV/rwkv-4-169m-pile")
SMALL = ("smoke-pythia", "smoke-pythia-seed1", "smoke-mamba", "smoke-rwkv")


def small_model(name, folder):
    recipes.random_checkpoint(name, folder)
    return [(path.name, path) for path in sorted(folder.iterdir())]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and a hub that is not there."""
    monkeypatch.setattr(hub, "CACHE", tmp_path / "hub")
    monkeypatch.setattr(hub, "unreachable", lambda: "the hub says: no network")
    return tmp_path / "hub"


def fill(cache, scratch):
    for repository, name in zip(NAMES, SMALL):
        fill_hub_cache(cache, repository, small_model(name, scratch / name))
    for k in range(2):
        texts = [f"Document {k * 60 + i} says {'some words ' * 9}." for i in range(60)]
        pd.DataFrame({"text": texts}).to_parquet(scratch / f"{k}.parquet")
    files = [(f"plain_text/train-0000{k}-of-00080.parquet", scratch / f"{k}.parquet") for k in range(2)]
    fill_hub_cache(cache, hub.OPENWEBTEXT, files, "dataset")


def laptop(tmp_path, **more):
    return get_profile("laptop", cache_dir=tmp_path / "artifacts", device="cpu", **more)


def test_all_that_is_missing_is_named_with_the_command_that_gets_it(cache, tmp_path):
    with pytest.raises(CannotRun) as caught:
        reproduce.check_hub(laptop(tmp_path))
    said = str(caught.value)
    assert all(name in said for name in (*NAMES, hub.OPENWEBTEXT)) and "no network" in said
    assert 'hf download RWKV/rwkv-4-169m-pile --include "*.json" --include "*.safetensors"' in said
    assert f"hf download {hub.OPENWEBTEXT} --repo-type dataset" in said
    fill(cache, tmp_path)
    reproduce.check_hub(laptop(tmp_path))
    (hub.cached_model(NAMES[3]) / "model.safetensors").unlink()
    with pytest.raises(CannotRun, match="^not in .*: RWKV/rwkv-4-169m-pile; and") as caught:
        reproduce.check_hub(laptop(tmp_path))
    assert "pythia" not in str(caught.value)


def test_mini_and_smoke_ask_no_hub(cache):
    for name in ("smoke", "mini"):
        reproduce.check_hub(get_profile(name))
        assert models.hub_names(get_profile(name)) == []


def test_text_is_read_from_the_cache_in_order_and_kept(cache, tmp_path):
    fill(cache, tmp_path)
    profile = laptop(tmp_path, context_length=16)
    blocks = corpus.load_blocks(profile, "held_out", 100)
    texts = [f"Document {i} says {'some words ' * 9}." for i in range(120)]
    first = next(text for text in texts if corpus.split_of(text) == "held_out")
    tokenizer = corpus.load_tokenizer(profile)
    assert blocks.tokens[0, 1:].tolist() == tokenizer(first)["input_ids"][:15] and blocks.n_positions >= 100
    shutil.rmtree(cache / "datasets--Skylion007--openwebtext")
    assert (corpus.load_blocks(profile, "held_out", 100).tokens == blocks.tokens).all()
    with pytest.raises(hub.TextNotFound, match="hf download Skylion007/openwebtext --repo-type dataset"):
        corpus.load_blocks(profile, "held_out", 50)


def test_a_text_that_ends_too_early_is_said(cache, tmp_path, caplog):
    fill(cache, tmp_path)
    blocks = corpus.load_blocks(laptop(tmp_path, context_length=16), "held_out", 10_000)
    assert f"The text ends after {blocks.n_positions} of 10000 tokens" in caplog.text


def test_another_revision_that_holds_safetensors_serves(cache, tmp_path):
    """Of a repository whose main branch has a pickle only, a pull request may have been downloaded."""
    files = dict(small_model("smoke-rwkv", tmp_path / "x"))
    main = fill_hub_cache(cache, NAMES[3], [("config.json", files.pop("config.json"))])
    other = main.with_name("f" * 40)
    shutil.copytree(main, other, symlinks=True)
    assert hub.cached_model(NAMES[3]) is None
    shutil.copy(files["model.safetensors"], other)
    assert hub.cached_model(NAMES[3]) == other


def run(home, *options, code=None, **env):
    """The command line, or Python code, as a user's process with its own HF_HOME."""
    command = [sys.executable, *(("-c", code) if code else ("-m", "lib.reproduce", *options))]
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, env={**os.environ, "HF_HOME": str(home), **env})


LOAD = f"""
import os
from lib import corpus, models
from lib.profiles import get_profile
profile = get_profile("laptop", context_length=16, cache_dir=os.environ["HF_HOME"] + "/c")
print(models.load({NAMES[2]!r}, profile).cfg.n_layers, len(corpus.load_blocks(profile, "train", 200)))
"""


def test_offline_with_a_filled_cache_it_runs(tmp_path):
    fill(tmp_path / "hub", tmp_path)
    there = run(tmp_path, "--profile", "laptop", "--check", "--set", f"cache_dir={tmp_path / 'c'}", HF_HUB_OFFLINE="1")
    lacking = [line for line in there.stdout.splitlines() if line.startswith("[missing]")]
    assert all("needed by the plan" in line for line in lacking), there.stderr  # of room, if the machine is busy
    assert there.returncode == bool(lacking)
    assert [line for line in there.stdout.splitlines() if "model" in line] == [f"[ok] model {name}" for name in NAMES]
    assert "[ok] text: 2 files of Skylion007/openwebtext" in there.stdout
    loaded = run(tmp_path, code=LOAD, HF_HUB_OFFLINE="1")
    assert loaded.stdout.split()[0] == "4", loaded.stderr


def test_offline_without_a_cache_the_check_fails(tmp_path):
    absent = run(tmp_path, "--profile", "laptop", "--check", "--set", f"cache_dir={tmp_path / 'c'}", HF_HUB_OFFLINE="1")
    lines = [line for line in absent.stdout.splitlines() if line.startswith("[missing]")]
    assert absent.returncode == 1 and len(lines) == 5
    assert all("hf download" in line for line in lines)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, over the repositories in `files`: {repository: {name: bytes}}."""

    files: dict = {}

    def do_GET(self):
        path = self.path.partition("?")[0].strip("/")
        for repository, files in self.files.items():
            about = {"id": repository, "sha": "a" * 40, "siblings": [{"rfilename": name} for name in files], "private": False}
            if path.startswith(f"api/models/{repository}/tree/"):
                return self.reply(json.dumps([{"type": "file", "path": n, "size": len(b), "oid": self.tag(b)} for n, b in files.items()]))
            if path == f"api/models/{repository}" or path.startswith(f"api/models/{repository}/revision/"):
                return self.reply(json.dumps(about))
            name = path.removeprefix(f"{repository}/resolve/").partition("/")[2]
            if path.startswith(f"{repository}/resolve/") and name in files:
                return self.reply(files[name])
        if path == f"api/datasets/{hub.OPENWEBTEXT}":
            return self.reply(json.dumps({"id": hub.OPENWEBTEXT, "sha": "b" * 40, "siblings": []}))
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def reply(self, body):
        body = body.encode() if isinstance(body, str) else body
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{self.tag(body)}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    @staticmethod
    def tag(body):
        return hashlib.sha1(body).hexdigest()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    repositories = {repository: dict(small_model(name, tmp_path / "up" / name)) for repository, name in zip(NAMES, SMALL)}
    files = {name: {file: path.read_bytes() for file, path in found.items()} for name, found in repositories.items()}
    monkeypatch.setattr(Hub, "files", files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


FETCH = """
from lib import reproduce
from lib.profiles import get_profile
reproduce.check_hub(get_profile("laptop"))
"""


def test_with_the_hub_reachable_it_downloads_once_and_says_what(server, tmp_path):
    env = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
    got = run(tmp_path, code=FETCH, **env)
    assert got.returncode == 0, got.stderr
    assert "Downloading RWKV/rwkv-4-169m-pile (0.68 GB at most)" in got.stderr and "34 s at 20 MB/s" in got.stderr
    assert "openwebtext is streamed as it is read, 0.1 GB at most" in got.stdout
    again = run(tmp_path, code=FETCH, **env)
    assert again.returncode == 0 and "Downloading" not in again.stderr


def test_a_repository_with_a_pickle_only_is_refused(server, tmp_path):
    repository = Hub.files["RWKV/rwkv-4-169m-pile"]
    repository["pytorch_model.bin"] = repository.pop("model.safetensors")
    got = run(tmp_path, code=FETCH, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}", HF_HUB_DISABLE_XET="1")
    assert got.returncode == 1
    assert "has no model.safetensors on the hub, and pickled weights are not opened" in got.stderr
    assert not list(tmp_path.glob("hub/**/*.bin"))
