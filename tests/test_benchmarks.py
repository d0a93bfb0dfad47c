"""The benchmarks run and give one table. How fast anything is, is not tested."""

import sys

import pandas as pd
import pytest

from tests.benchmarks import __main__ as benchmarks, roofline, sae_step

COLUMNS = ["benchmark", "case", "value", "unit"]


def run(monkeypatch, *names):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *names])
    benchmarks.main()


def test_one_table_keeps_the_rows_of_what_is_not_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmarks, "TABLE", tmp_path / "new" / "table.csv")
    small = sae_step.measure(32, 256, 128, [10], 1)
    assert list(small) == COLUMNS and (small["value"] > 0).all()
    monkeypatch.setattr(sae_step, "measure", lambda: small)
    run(monkeypatch, "sae_step")
    monkeypatch.setattr("tests.benchmarks.growth.measure", lambda: small.assign(value=7.0))
    run(monkeypatch, "growth")
    run(monkeypatch, "growth")
    table = pd.read_csv(benchmarks.TABLE)
    assert table["module"].tolist() == ["sae_step"] * len(small) + ["growth"] * len(small)
    assert (table["value"][len(small) :] == 7).all() and table["machine"].notna().all()
    assert "L0 10, ratio" in capsys.readouterr().out


def test_an_unknown_benchmark_is_named(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "mppc", "no-such")
    assert stopped.value.code != 0 and "no benchmark no-such; there are mppc" in capsys.readouterr().err


def test_the_parts_of_mppc_add_up(monkeypatch):
    drawn = []
    monkeypatch.setattr(roofline, "save_figure", lambda figure, *_: drawn.append(figure))
    table = roofline.measure(2_000, 256, 8, 1)
    assert list(table) == COLUMNS and (table["value"] > 0).all()
    so_far = table[table["unit"].str.startswith("s ")].set_index("case")["value"]
    bars = drawn[0].axes[0].patches
    assert [bar.get_x() + bar.get_width() for bar in bars] == pytest.approx(list(so_far))
    assert bars[0].get_x() == 0 and [bar.get_x() for bar in bars[1:]] == pytest.approx(list(so_far[:-1]))
