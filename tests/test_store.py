"""Artifacts: keys, reuse, damage, kills, and two processes at once."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lib.workbook.profiles import HOME
from lib.workbook.store import Store, atomic_write, content_key


def counting(calls, text="result"):
    def build(folder):
        calls.append(folder)
        (folder / "a.txt").write_text(text)
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / "b.bin").write_bytes(b"\0\1")

    return build


def test_built_once_then_reused(tmp_path):
    calls = []
    first = Store(tmp_path).get("sae", {"layer": 1}, counting(calls))
    second = Store(tmp_path).get("sae", {"layer": 1}, counting(calls))
    assert first == second and len(calls) == 1
    manifest = json.loads((first / "manifest.json").read_text())
    assert manifest["kind"] == "sae" and manifest["fields"] == {"layer": 1} and manifest["version"] == 1
    assert set(manifest["files"]) == {"a.txt", "deep/b.bin"}
    assert manifest["files"]["deep/b.bin"]["bytes"] == 2


@pytest.mark.parametrize("fields, version", [({"layer": 2}, 1), ({"layer": 1, "seed": 0}, 1), ({"layer": 1}, 2)])
def test_other_fields_or_version_are_another_artifact(tmp_path, fields, version):
    store, calls = Store(tmp_path), []
    known = store.get("sae", {"layer": 1}, counting(calls))
    assert store.get("sae", fields, counting(calls), version=version) != known
    assert len(calls) == 2


def test_key_ignores_order_and_takes_tuples_and_paths():
    assert content_key({"a": (1, 2), "b": Path("x") / "y"}, 1) == content_key({"b": "x/y", "a": [1, 2]}, 1)


@pytest.mark.parametrize("value", [{1, 2}, np.float32(1), float("nan"), object()])
def test_fields_that_are_not_json_are_refused(tmp_path, value):
    with pytest.raises(TypeError, match="must be numbers, strings, lists, dicts or paths"):
        Store(tmp_path).get("sae", {"value": value}, counting([]))
    assert not list(tmp_path.iterdir())


def alter_same_size(folder):
    (folder / "a.txt").write_text("RESULT")


def cut_short(folder):
    (folder / "a.txt").write_text("res")


def lose_file(folder):
    (folder / "deep" / "b.bin").unlink()


def lose_manifest(folder):
    (folder / "manifest.json").unlink()


def break_manifest(folder):
    (folder / "manifest.json").write_text('{"fields": ')


def swap_manifest(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"version": 7}))


@pytest.mark.parametrize(
    "damage, said",
    [
        (alter_same_size, "a.txt was altered"),
        (cut_short, "a.txt was altered"),
        (lose_file, "b.bin is missing"),
        (lose_manifest, "manifest.json is missing"),
        (break_manifest, "manifest.json cannot be read"),
        (swap_manifest, "manifest.json belongs to another artifact"),
    ],
)
def test_damaged_artifact_is_noticed_and_rebuilt(tmp_path, caplog, damage, said):
    store, calls = Store(tmp_path), []
    folder = store.get("sae", {"layer": 1}, counting(calls))
    damage(folder)
    with caplog.at_level(logging.WARNING):
        assert store.get("sae", {"layer": 1}, counting(calls)) == folder
    assert said in caplog.text and len(calls) == 2
    assert (folder / "a.txt").read_text() == "result"
    caplog.clear()
    store.get("sae", {"layer": 1}, counting(calls))
    assert len(calls) == 2 and not caplog.records


def test_failed_build_leaves_no_artifact_and_is_resumed(tmp_path):
    store = Store(tmp_path)

    def breaks(folder):
        atomic_write(folder / "checkpoint" / "step", "41")
        raise RuntimeError("no luck")

    def resumes(folder):
        step = int((folder / "checkpoint" / "step").read_text())
        (folder / "result").write_text(str(step + 1))

    with pytest.raises(RuntimeError, match="no luck"):
        store.get("sae", {}, breaks)
    folder = store.get("sae", {}, resumes)
    assert (folder / "result").read_text() == "42"
    assert {path.name for path in folder.iterdir()} == {"result", "manifest.json"}


SLOW_BUILD = """
import pathlib, sys, time
from lib.workbook.store import Store, atomic_write

def build(folder):
    done = folder / "checkpoint" / "done"
    start = int(done.read_text()) if done.exists() else 0
    for step in range(start, int(sys.argv[2])):
        atomic_write(done, str(step + 1))
        time.sleep(0.05)
    (folder / "result").write_text(f"started at {start}")

print(Store(sys.argv[1]).get("slow", {"a": 1}, build))
"""


def start(root, steps):
    command = [sys.executable, "-c", SLOW_BUILD, str(root), str(steps)]
    return subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(root, step):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for done in root.glob("*.partial/checkpoint/done"):
            if int(done.read_text()) >= step:
                return
        time.sleep(0.01)
    pytest.fail("the builder did not get going within 30 s")


@pytest.mark.skipif(os.name == "nt", reason="sends SIGKILL")
def test_killed_build_goes_on_where_it_was(tmp_path):
    victim = start(tmp_path, 10_000)
    wait_for_step(tmp_path, 3)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    out, err = start(tmp_path, 5).communicate(timeout=30)
    assert int(Path(out.strip(), "result").read_text().removeprefix("started at ")) >= 3, err


def test_second_process_waits_for_the_first(tmp_path):
    first = start(tmp_path, 20)
    wait_for_step(tmp_path, 1)
    second = start(tmp_path, 20)
    (out1, _), (out2, err2) = first.communicate(timeout=30), second.communicate(timeout=30)
    assert out1 == out2
    assert (Path(out1.strip()) / "result").read_text() == "started at 0"
    assert "Another process is building slow-" in err2


def test_clear_takes_artifacts_only(tmp_path):
    store = Store(tmp_path)
    folder = store.get("sae", {}, counting([]))
    (tmp_path / "sae-0123456789abcdef.partial").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "my-folder").mkdir()
    assert store.clear() == 2
    assert not folder.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "my-folder"}
    assert Store(tmp_path / "nowhere").clear() == 0


def test_atomic_write_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "table.csv"
    atomic_write(path, "älter\n")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        atomic_write(path, b"new")
    assert path.read_text(encoding="utf-8") == "älter\n"
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]
