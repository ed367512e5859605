"""The way to a rented node and what has to be there: the SSH link, the set-up, the probe.

The cluster process calls `NodeLink`, then `prepare`, then `probe`. Everything a node answers is data from a stranger:
bounded, decoded by schema, never run, never made into a command.
"""

from __future__ import annotations

from jupyter_gpumarket.nodes.command import CommandResult
from jupyter_gpumarket.nodes.link import NodeLink, Reader, Writer, backoff_s
from jupyter_gpumarket.nodes.plan import Installed, SetupPlan
from jupyter_gpumarket.nodes.probe import ProbeResult, probe
from jupyter_gpumarket.nodes.setup import prepare

__all__ = [
    "CommandResult",
    "Installed",
    "NodeLink",
    "ProbeResult",
    "Reader",
    "SetupPlan",
    "Writer",
    "backoff_s",
    "prepare",
    "probe",
]
