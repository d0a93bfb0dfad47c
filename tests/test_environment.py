"""The environment check says what is there and what is missing."""

import psutil

from lib import environment, recipes


def test_this_environment_is_complete(smoke):
    lines = environment.check(smoke)
    assert all(line.startswith(("[ok] ", "[missing] ", "[not needed] ")) for line in lines)
    wanted = [line for line in lines if "free" not in line and not line.startswith("[not needed]")]
    assert [line for line in wanted if line.startswith("[missing]")] == []


def test_another_version_and_a_missing_package_are_named(smoke, monkeypatch):
    found = {"torch": "1.0", "numpy": None}
    monkeypatch.setattr(environment, "installed", lambda name: found.get(name, environment.pinned()[name]))
    line = next(line for line in environment.check(smoke) if "pinned packages" in line)
    assert line.startswith("[missing]") and "torch 1.0 (pinned" in line and "numpy None (pinned" in line


def test_missing_models_memory_and_disk_are_named(monkeypatch, tmp_path, smoke):
    mini = smoke.model_copy(update={"pythia": "mini-pythia"})
    monkeypatch.setattr(recipes, "MODELS", tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1e9})())
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 1e9})())
    lines = environment.check(mini)
    assert "[missing] model mini-pythia" in lines
    assert "[missing] 1 GB of memory free" in lines and "[missing] 1 GB of disk free" in lines
