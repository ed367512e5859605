"""What `%%gpu --detach` leaves behind: a run that goes on by itself."""

from __future__ import annotations

from jupyter_gpumarket.api import RunView
from jupyter_gpumarket.client import ClusterClient
from jupyter_gpumarket.models import RunStatus


class RunHandle:
    """A detached cell run. `%gpu attach RUN` shows its output and brings its results."""

    def __init__(self, run_id: str, cluster: ClusterClient, node: str) -> None:
        self.run_id = run_id
        self.node = node
        self._cluster = cluster

    @property
    def view(self) -> RunView:
        """The run as it is now."""
        return self._cluster.messages(self.run_id, 2**62, 0).run

    @property
    def status(self) -> RunStatus:
        """Where it is: queued, running, ok, error, ..."""
        return self.view.status

    def interrupt(self) -> RunStatus:
        """Interrupt it, as Ctrl-C would."""
        return self._cluster.interrupt(self.run_id).status

    def __repr__(self) -> str:
        return f"<cell run {self.run_id} on {self.node}>"
