"""Kernels of the running Python that import the large packages while the notebook before them still runs."""

from __future__ import annotations

import json
import os
from collections import deque
from subprocess import PIPE, Popen
from typing import Any

from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning import LocalProvisioner

QUIET = ["--log-level=CRITICAL"]  # a kernel logs about its sockets: unencrypted, closed by Ctrl-C

PACKAGES = ("transformer_lens.model_bridge", "seaborn", "numba")
"""What takes a notebook the longest to import: five to seven seconds, with what these import themselves."""

# What the kernel that waits does. What matplotlib and pandas ask of a kernel as they are imported is said beforehand or
# afterwards. The line that it reads says in which folder it is to work, and its arguments.
WAIT = """
import contextlib, importlib, json, os, runpy, sys
sys.path[:] = filter(None, sys.path)  # not the folder of this process
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
for package in sys.argv[1:]:
    with contextlib.suppress(Exception):  # a notebook that needs it will say so
        importlib.import_module(package)
if pandas := sys.modules.get("pandas"):
    pandas.set_option("display.max_columns", 20)
if line := sys.stdin.readline():  # none: the run is over
    folder, sys.argv = json.loads(line)
    os.chdir(folder)
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""
_waiting: deque[Popen] = deque()


def prepare() -> None:
    """Begin a kernel for a notebook that will come; `discard` ends it if none does."""
    command = get_kernel_dict()["argv"]
    _waiting.append(launch_kernel([*command[: command.index("-m")], "-c", WAIT, *PACKAGES], stdin=PIPE))


def discard() -> None:
    """Let the kernels go that no notebook has taken."""
    while _waiting:
        _waiting.popleft().stdin.close()


class Prepared(LocalProvisioner):
    """Takes the kernel that has waited longest, or starts one if none has."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Have `cmd`, a command of ipykernel, run in the folder `kwargs["cwd"]`; returns where it can be reached."""
        call = json.dumps([os.fspath(kwargs.get("cwd") or os.getcwd()), cmd[cmd.index("-m") + 1 :]])
        while _waiting:
            process = _waiting.popleft()
            with process.stdin as line:
                try:
                    os.write(line.fileno(), f"{call}\n".encode())
                except OSError:  # it died, for want of memory perhaps
                    continue
            self.process, self.pid, self.cwd = process, process.pid, kwargs.get("cwd")
            self.pgid = process.pid if hasattr(os, "getpgid") else None  # it leads a session of its own
            return self.connection_info
        return await super().launch_kernel(cmd, **kwargs)


class ThisPython(AsyncKernelManager):
    """Kernels of the running interpreter, whatever kernel the user has installed under the name python3."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.provisioner = Prepared(kernel_id="", kernel_spec=self.kernel_spec, parent=self)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(QUIET))
