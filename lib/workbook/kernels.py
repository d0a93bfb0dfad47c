"""Kernels of the running Python that need not import the large packages: each is a copy of a process that has."""

from __future__ import annotations

import json
import os
import sys
from subprocess import PIPE, Popen
from typing import Any

import psutil
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.launcher import launch_kernel
from jupyter_client.provisioning import LocalProvisioner

QUIET = ["--log-level=CRITICAL"]  # a kernel logs about its sockets: unencrypted, closed by Ctrl-C

PACKAGES = ("transformer_lens.model_bridge", "seaborn", "numba", "sklearn.metrics", "ipykernel.zmqshell")
"""What takes a notebook the longest to import: five to twelve seconds, with what these import themselves."""

# What the process does of which kernels are copies. What matplotlib and pandas ask of a kernel as they are imported is
# said beforehand or afterwards. A line that it reads says in which folder a kernel is to work, and its arguments; it
# answers with the kernel's number. A kernel looks after the number of the process above it, to end when that one does.
IMPORT_AND_COPY = """
import contextlib, importlib, json, os, runpy, signal, sys
sys.path[:] = filter(None, sys.path)  # not the folder of this process
os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
for package in sys.argv[1:]:
    with contextlib.suppress(Exception):  # a notebook that needs it will say so
        importlib.import_module(package)
if pandas := sys.modules.get("pandas"):
    pandas.set_option("display.max_columns", 20)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a kernel ended
for line in sys.stdin:
    if kernel := os.fork():
        print(kernel, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.environ["JPY_PARENT_PID"] = str(os.getppid())
    folder, sys.argv = json.loads(line)
    os.chdir(folder)
    runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
    break
"""
_sources: list[Popen] = []


def prepare() -> None:
    """Begin to import what notebooks need; `discard` ends it. Only Linux copies a process that has threads safely.

    It is for runs on the CPU: a process that has asked for a GPU cannot be copied, and some packages ask at once.
    """
    if sys.platform == "linux":
        command = get_kernel_dict()["argv"]
        command = [*command[: command.index("-m")], "-c", IMPORT_AND_COPY, *PACKAGES]
        _sources.append(launch_kernel(command, stdin=PIPE, stdout=PIPE))


def discard() -> None:
    """Let the process go of which kernels are copied; those that are at work end with it."""
    while _sources:
        source = _sources.pop()
        source.stdin.close()
        source.stdout.close()


class _Copy(psutil.Process):
    """A kernel as jupyter_client wants it: with some of what a `Popen` has."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        """None while it is at work."""
        return None if self.is_running() else 0


class Copied(LocalProvisioner):
    """Has a kernel copied, or starts one where there is nothing to copy."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Have `cmd`, a command of ipykernel, run in the folder `kwargs["cwd"]`; returns where it can be reached."""
        call = json.dumps([os.fspath(kwargs.get("cwd") or os.getcwd()), cmd[cmd.index("-m") + 1 :]])
        while _sources:
            source = _sources[-1]
            try:
                os.write(source.stdin.fileno(), f"{call}\n".encode())
                self.process = _Copy(int(source.stdout.readline()))
            except (OSError, ValueError, psutil.NoSuchProcess):  # it died, for want of memory perhaps
                discard()
                continue
            self.pid = self.pgid = self.process.pid  # it leads a session of its own
            self.cwd = kwargs.get("cwd")
            return self.connection_info
        return await super().launch_kernel(cmd, **kwargs)


class ThisPython(AsyncKernelManager):
    """Kernels of the running interpreter, whatever kernel the user has installed under the name python3."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.provisioner = Copied(kernel_id="", kernel_spec=self.kernel_spec, parent=self)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict(QUIET))
