"""The environment check says what is there, what is missing, and what to do; its exit code is that of the command."""

import json
import shutil
import subprocess
import sys

import psutil
import pytest
from typer.testing import CliRunner

from lib import packages, reproduce
from lib.models import recipes
from lib.workbook import checks
from lib.workbook.profiles import HOME


def line_of(lines, word):
    return next(line for line in lines if word in line)


def test_this_environment_is_complete(smoke):
    lines = checks.check(smoke)
    assert all(line.startswith(("[ok] ", "[missing] ", "[optional] ")) for line in lines)
    assert [line for line in lines if line.startswith("[missing]") and "free" not in line] == []
    assert "data/corpus/documentation.jsonl.xz" in line_of(lines, "text:")
    assert len([line for line in lines if "mamba_ssm" in line or "ray" in line or "Chromium" in line]) == 3


def test_a_judge_without_a_key_is_said_before_a_run(smoke, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    checks.check_judge(smoke)
    with pytest.raises(checks.CannotRun, match="set OPENAI_API_KEY"):
        checks.check_judge(smoke.changed(judge_model="any"))


def test_another_version_is_named(smoke, monkeypatch):
    pins = packages.pinned()
    monkeypatch.setattr(packages, "installed", lambda name: (pins | {"torch": "1.0"})[name])
    lines = checks.check(smoke)
    assert line_of(lines, "torch 1.0").startswith(
        f"[optional] torch 1.0 instead of {pins['torch']}: numbers may differ"
    )


def test_missing_models_memory_and_disk_are_named(monkeypatch, tmp_path, smoke):
    mini = smoke.changed(pythia="mini-pythia", cache_dir=tmp_path / "cache")  # what is kept would count as free
    monkeypatch.setattr(recipes, "MODELS", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1e6})())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Disk", (), {"free": 1e5})())
    lines = checks.check(mini)
    assert "[missing] model mini-pythia: run python -m lib.zoo mini-pythia" in lines
    assert line_of(lines, "memory free").startswith(
        "[missing] 0 GB of memory free, 3.4 needed by the plan: close other programs"
    )
    assert line_of(lines, "disk free").startswith("[missing] 0 GB of disk free") and "make room" in line_of(
        lines, "disk free"
    )


def test_a_shipped_model_that_was_cut_short_is_named(monkeypatch, tmp_path, smoke):
    shutil.copytree(recipes.MODELS / "mini-rwkv", tmp_path / "models" / "mini-rwkv")
    weights = tmp_path / "models" / "mini-rwkv" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    monkeypatch.setattr(recipes, "MODELS", tmp_path / "models")
    line = line_of(checks.check(smoke.changed(rwkv="mini-rwkv")), "mini-rwkv")
    assert line.startswith("[missing]") and "model.safetensors" in line and "python -m lib.zoo mini-rwkv" in line


def test_a_model_with_another_tokenizer_is_named(tmp_path, smoke):
    other = shutil.copytree(recipes.MODELS / "mini-rwkv", tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    merges[0], merges[5] = merges[5], merges[0]
    (other / "tokenizer.json").write_text(json.dumps(content))
    line = line_of(checks.check(smoke.changed(rwkv=str(other))), "tokenizer for both")
    assert line.startswith("[missing]") and str(other) in line and "they differ in their merges" in line


@pytest.mark.parametrize("lines, code", [(["[ok] a", "[optional] b: c"], 0), (["[ok] a", "[missing] b: c"], 1)])
def test_the_command_s_exit_code(lines, code, monkeypatch, tmp_path):
    monkeypatch.setattr(checks, "check", lambda profile: lines)
    result = CliRunner().invoke(reproduce.app, ["--check", "--profile", "smoke", "--set", f"cache_dir={tmp_path}"])
    assert result.exit_code == code and result.output.splitlines() == lines


@pytest.mark.parametrize("command", ["reproduce", "compare"])
@pytest.mark.parametrize("package", ["torch", "typer"])
def test_the_command_without_a_package_says_so(command, package):
    without = f"""import sys
from lib import packages
there = packages.installed
packages.installed = lambda name: None if name == "{package}" else there(name)
sys.modules["{package}"] = None  # an import of it fails
import lib.{command}"""
    got = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, cwd=HOME)
    assert got.returncode == 1 and got.stderr == f"not installed: {package}; run `pip install -r requirements.txt`.\n"
