"""All benchmarks, one table: `python -m tests.benchmarks`; or some of them: `python -m tests.benchmarks mppc`.

Writes figures/benchmarks/benchmarks.csv: benchmark, case, value, unit, threads, machine, module. Rows of benchmarks
that are not run stay as they were. The alternatives of a benchmark are measured in the same run: compare within one.
"""

from __future__ import annotations

import argparse
import platform
import re
from importlib import import_module
from pathlib import Path

import numba
import pandas as pd

from lib.workbook.profiles import HOME

NAMES = ("mppc", "mppc_job", "roofline", "growth", "sae_step", "sae_libraries", "circuits", "gpu")
TABLE = HOME / "figures/benchmarks/benchmarks.csv"


def machine() -> str:
    """The processor's name, and the instructions for bfloat16 that it has."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    extras = [flag for flag in ("amx_bf16", "avx512_bf16") if flag in text]
    return ", ".join([name.group(1) if name else platform.processor() or platform.machine(), *extras])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"which: {', '.join(NAMES)}; all if none is named")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}.")
    for name in names:
        print(f"{name} …", flush=True)
        found = (
            import_module(f"tests.benchmarks.{name}")
            .measure()
            .assign(threads=numba.get_num_threads(), machine=machine(), module=name)
        )
        shown = found[["case", "value", "unit"]].to_string(index=False) if len(found) else "nothing to measure it on"
        print(shown, flush=True)
        known = pd.read_csv(TABLE) if TABLE.exists() else found[:0]  # read late: another run may have added to it
        known = pd.concat([known[known["module"] != name], found], ignore_index=True)
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        known.to_csv(TABLE, index=False, float_format="%.4g")
    print(f"\n{known.drop(columns=['machine', 'module']).to_string(index=False)}\n\nwritten to {TABLE}")


if __name__ == "__main__":
    main()
