"""A small server that speaks the hub's protocol, and the four repositories with random weights as they lie there."""

import functools
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from lib.models import hub, recipes

NAMES = (
    "EleutherAI/pythia-160m",
    "EleutherAI/pythia-160m-seed1",
    "state-spaces/mamba-130m-hf",
    "RWKV/rwkv-4-169m-pile",
)
SMALL = ("smoke-pythia", "smoke-pythia-seed1", "smoke-mamba", "smoke-rwkv")
TEXT_REVISION = hub.known(hub.OPENWEBTEXT, "revision")
OTHER = "a" * 40  # the commit of a repository whose revision is not known


def revision(name: str) -> str:
    """The commit at which a repository is served: the known one, as on the hub."""
    return hub.known(name, "revision") or OTHER


# ------------------------------------------------------------------------------------ repositories


def lay_out(name: str, folder: Path) -> None:
    """A random checkpoint of this recipe, with the types, extra tensors and files that the real repository has.

    Pythia: F16, with each layer's causal mask (U8), `masked_bias` and `inv_freq`, and `embed_out`. Mamba: F32, its head
    tied and left out. RWKV: F32 in a `pytorch_model.bin`.
    """
    recipes.random_checkpoint(name, folder)
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / hub.WEIGHTS)
    if config["model_type"] == "gpt_neox":
        n = config["max_position_embeddings"]
        rotary = int(config["hidden_size"] / config["num_attention_heads"] * 0.25)
        for layer in range(config["num_hidden_layers"]):
            place = f"gpt_neox.layers.{layer}.attention"
            weights[f"{place}.bias"] = torch.ones(n, n, dtype=torch.uint8).tril()[None, None]
            weights[f"{place}.masked_bias"] = torch.tensor(-1e9).half()
            weights[f"{place}.rotary_emb.inv_freq"] = (10_000 ** -(torch.arange(0, rotary, 2) / rotary)).half()
        assert "embed_out.weight" in weights
    else:
        weights = {key: value.float() for key, value in weights.items()}
    if config["model_type"] == "rwkv":
        (folder / hub.WEIGHTS).unlink()
        torch.save(weights, folder / hub.PICKLE)
    else:
        assert config["model_type"] != "mamba" or "lm_head.weight" not in weights
        save_file(weights, folder / hub.WEIGHTS, metadata={"format": "pt"})


def documents(start: int = 0, count: int = 60, words: int = 9) -> list[str]:
    """Texts, all different."""
    return [
        f"Document {i} says {' '.join(f'word {(i * k) % 97}' for k in range(words))}."
        for i in range(start, start + count)
    ]


def write_text(folder: Path, texts: list[str], files: int = 2) -> list[tuple[str, Path]]:
    """Parquet files as OpenWebText's, with its one column: (name in the repository, file) each."""
    folder.mkdir(parents=True, exist_ok=True)
    step, names = -(-len(texts) // files), [f"plain_text/train-{k:05d}-of-00080.parquet" for k in range(files)]
    paths = [folder / Path(name).name for name in names]
    for k, path in enumerate(paths):
        pd.DataFrame({"text": texts[k * step : (k + 1) * step]}).to_parquet(path)
    return list(zip(names, paths, strict=True))


# ------------------------------------------------------------------------------------------ server


@dataclass
class Repository:
    """Files of each commit, the main branch's commit, and pull requests: number → (author, its commits, newest first).

    Without pull requests (None) they are closed, as a repository's owner may have it.
    """

    commits: dict[str, dict[str, bytes]]
    main: str
    kind: str = "model"
    requests: dict[int, tuple[str, list[tuple[str, str]]]] | None = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        number = revision.removeprefix("refs/pr/")
        if number != revision:
            return self.requests[int(number)][1][0][0]
        found = self.main if revision == "main" else revision
        return found if found in self.commits else None


def repository_of(name: str, folder: Path) -> Repository:
    """One commit with the files of a folder."""
    commit = revision(name)
    return Repository({commit: {path.name: path.read_bytes() for path in sorted(folder.iterdir())}}, commit)


@functools.cache
def digest(content: bytes) -> str:
    """What the server names a file's content by."""
    return hashlib.sha1(content).hexdigest()


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of the hub, over `repositories`; `asked` keeps every request."""

    repositories: dict[str, Repository] = {}
    asked: list[str] = []

    def do_GET(self):
        self.asked.append(f"{self.command} {unquote(self.path)}")
        path = unquote(self.path.partition("?")[0]).strip("/")
        for name, repository in self.repositories.items():
            api = f"api/{repository.kind}s/{name}"
            raw = f"{name}/resolve/" if repository.kind == "model" else f"{repository.kind}s/{name}/resolve/"
            if path == api or path.startswith(f"{api}/"):
                return self.about(name, repository, path.removeprefix(api).strip("/"))
            if path.startswith(raw):
                revision, _, file = path.removeprefix(raw).partition("/")
                commit = repository.commit(revision)
                return (
                    self.file(commit, repository.commits[commit].get(file))
                    if commit
                    else self.missing("RevisionNotFound")
                )
        self.missing("RepoNotFound")

    do_HEAD = do_POST = do_GET

    def about(self, name, repository, what):
        what, _, rest = what.partition("/")
        if what == "discussions" and repository.requests is None:
            return self.send(403, b"", {"X-Error-Message": "Discussions are disabled for this repo"})
        if what == "discussions":
            return self.reply({"count": len(repository.requests), "start": 0, "discussions": [
                {"title": hub.CONVERSION, "num": number, "author": {"name": author},
                 "createdAt": "2023-03-01T00:00:00.000Z",
                 "status": "open", "repo": {"name": name, "type": repository.kind}, "isPullRequest": True}
                for number, (author, _) in repository.requests.items()
            ]})  # fmt: skip
        if what == "commits":
            found = repository.requests[int(rest.removeprefix("refs/pr/"))][1]
            return self.reply([{"id": commit, "authors": [{"user": author}], "date": "2023-03-01T00:00:00.000Z",
                                "title": "", "message": ""} for commit, author in found])  # fmt: skip
        revision = rest.partition("/")[0] if what in ("tree", "paths-info") else rest
        commit = repository.commit(revision or "main")
        if commit is None:
            return self.missing("RevisionNotFound")
        files = repository.commits[commit]
        if what == "paths-info":
            body = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            files = {file: files[file] for file in body["paths"] if file in files}
        if what in ("tree", "paths-info"):
            listed = [{"type": "file", "path": n, "size": len(b), "oid": digest(b)} for n, b in files.items()]
            return self.reply(listed)
        self.reply({"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files], "private": False})

    def file(self, commit, content):
        if content is None:
            return self.missing("EntryNotFound")
        headers = {"ETag": f'"{digest(content)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            last = min(int(last or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self.send(206, content[int(first) : last + 1], headers)
        self.send(200, content, headers)

    def reply(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def missing(self, code):
        self.send(404, b"", {"X-Error-Code": code})

    def send(self, status, body, headers):
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(repositories: dict[str, Repository]):
    """The environment variables of a process whose hub is this server, and the list of what it is asked."""
    handler = type("Hub", (Hub,), {"repositories": repositories, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}, handler.asked
    finally:
        server.shutdown()
        server.server_close()
