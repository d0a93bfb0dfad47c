"""Files from strangers: nothing is unpickled, no code of theirs runs, and what is no sound model is refused by name."""

import ast
import json
import pickle
import shutil
import struct

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from lib import models, plots
from lib.models import recipes
from lib.models.safe_weights import check_file, check_values
from lib.workbook import model_store
from lib.workbook.profiles import HOME

EVIL = "<script>window.pwned = 1</script>"
FORBIDDEN_MODULES = {"pickle", "joblib", "dill", "cloudpickle", "marshal", "shelve"}


def unsafe(source):
    """Uses of pickles, foreign code, or eval in Python source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module)
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            flags = {word.arg: ast.unparse(word.value) for word in node.keywords}
            safely = name == "torch.load" and flags.get("weights_only") == "True" and None not in flags
            found += [name] * (not safely and name in ("torch.load", "eval", "exec", "pd.read_pickle", "np.fromfile"))
            found += [
                f"{name}({key})" for key in ("allow_pickle", "trust_remote_code") if flags.get(key, "False") != "False"
            ]
    return found


def test_no_module_unpickles_or_runs_foreign_code():
    assert {path.name: found for path in (HOME / "lib").rglob("*.py") if (found := unsafe(path.read_text()))} == {}
    assert unsafe("torch.load(p, weights_only=True, mmap=True)") == []
    evil = [
        "torch.load(p, weights_only=safe)",
        "torch.load(p, weights_only=False)",
        "torch.load(p, weights_only=True, **more)",
    ]
    evil += [
        "import joblib",
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "f(x, trust_remote_code=yes)",
        "eval(x)",
    ]
    assert [len(unsafe(line)) for line in evil] == [1] * len(evil)


def test_tables_in_notebooks_escape_their_text():
    plots.use_theme()
    assert EVIL not in pd.DataFrame({"text": [EVIL]}).style.to_html()
    assert EVIL not in pd.DataFrame({"text": [EVIL]}).to_html()


# ------------------------------------------------------------------------------- a safetensors file's header


def write(path, header, data=b""):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def tensor(shape, dtype="F32", start=0, end=0):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "header, data, said",
    [
        ({"W": tensor([2, 3], end=24)}, bytes(23), "is no safetensors file, or is damaged"),
        ({"W": tensor([10**9, 10**6], end=24)}, bytes(24), "is no safetensors file, or is damaged"),
        ({"W": tensor([3, 2], end=24)}, bytes(24), r"W has shape \[3, 2\], not \[2, 3\]"),
        ({"W": tensor([2, 3], "I32", end=24)}, bytes(24), "W holds I32, not floating-point"),
        ({"V": tensor([2, 3], end=24)}, bytes(24), "holds V, not W"),
        ({"W": {"dtype": "F32"}}, b"", "is no safetensors file, or is damaged"),
        ([1], b"", "is no safetensors file, or is damaged"),
        ({"W": tensor([2, 3], "X9", end=24)}, bytes(24), "is no safetensors file, or is damaged"),
    ],
)
def test_a_wrong_header_is_one_sentence_that_names_the_file(tmp_path, header, data, said):
    write(tmp_path / "w.safetensors", header, data)
    with pytest.raises(ValueError, match=said) as caught:
        check_file(tmp_path / "w.safetensors", {"W": (2, 3)})
    assert "w.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 10**15) + b"{}", pickle.dumps({"W": 1})])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="is no safetensors file, or is damaged"):
        check_file(tmp_path / "w.safetensors", {"W": (2, 3)})


def test_a_sound_file_passes_and_nan_does_not(tmp_path):
    save_file({"W": torch.zeros(2, 3)}, tmp_path / "w.safetensors")
    check_file(tmp_path / "w.safetensors", {"W": (2, 3)})
    check_values(tmp_path, {"W": torch.zeros(3)})
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="W holds NaN or infinite"):
            check_values(tmp_path, {"W": torch.tensor([0, value])})


# ------------------------------------------------------------------------------------------- model folders


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "x"
    recipes.random_checkpoint("smoke-pythia", folder)
    return folder


def weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors, next(iter(sorted(tensors))))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder, **more):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def only_a_pickle(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))


def with_code(folder):
    (folder / "evil.py").write_text(f"open({str(folder / 'pwned')!r}, 'w')\nclass C: pass\n")
    set_config(
        folder,
        model_type="evil",
        architectures=["Evil"],
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"},
    )


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda f: weights(f, lambda t, k: t[k].view(-1)[:1].fill_(np.nan)), "holds NaN or infinite"),
        (lambda f: weights(f, lambda t, k: t.update({k: t[k][..., :-1].contiguous()})), "has shape"),
        (lambda f: weights(f, lambda t, k: t.pop(k)), "lacks 1 of the model's weights"),
        (
            lambda f: weights(f, lambda t, k: t.update(more=torch.zeros(10**6, 2).half())),
            "does not belong to this model",
        ),
        (
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
            "is no safetensors file, or is damaged",
        ),
        (only_a_pickle, "pytorch_model.bin needs more than tensors"),
        (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors, nor a pytorch_model.bin"),
        (with_code, "cannot load"),
        (lambda f: set_config(f, model_type="gptj"), "is a gptj; the workbook knows"),
        (lambda f: (f / "config.json").write_text("{"), "cannot load"),
    ],
)
def test_a_model_that_is_not_sound_is_refused_by_name(sound, tmp_path, smoke, spoil, said):
    folder = tmp_path / "from a stranger"
    shutil.copytree(sound, folder)
    spoil(folder)
    with pytest.raises(models.ModelNotFound, match=said) as caught:
        model_store.load(str(folder), smoke)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert not (folder / "pwned").exists()


def test_the_sound_model_loads(sound, smoke):
    assert model_store.load(str(sound), smoke).cfg.n_layers == 2
