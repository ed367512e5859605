"""The entry of a session's kernel process: binds its life to the agent's, then runs the kernel."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "GPUMARKET_AGENT_PID"
PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let this process end when the agent ends, however it ends (Linux; elsewhere ipykernel's own poller does it)."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent and os.getppid() != int(parent):
        os._exit(1)


def main() -> None:
    """Run the kernel whose connection file the command line names."""
    die_with_parent()
    from jupyter_gpumarket.agent.node_kernel import NodeKernel, NodeKernelApp

    NodeKernelApp.launch_instance(kernel_class=NodeKernel)


if __name__ == "__main__":
    main()
