"""`%gpu cluster estimate EXPRESSION`: what computing a Dask collection of the head's session would take.

The expression is evaluated where the collection lives; only plain numbers come back, and nothing is computed.
"""

from __future__ import annotations

import hashlib
import os
import secrets

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import ClusterView, RunRequest, RunWish
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Lease
from jupyter_gpumarket.notebook.costline import CostLine, final_text, place_of
from jupyter_gpumarket.notebook.failures import error_of
from jupyter_gpumarket.notebook.following import Followed, Follower
from jupyter_gpumarket.notebook.forecast import Sizes, collection_words, sizes_from
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.stage import Stage

OUTPUT = "_gpumarket_sizes"
TIMEOUT_S = 120.0
COST_WAIT_S = 1.0
MAX_BYTES = 10_000  # of six numbers
CODE = """
from jupyter_gpumarket.agent.graphs import sizes as {output}
{output} = {output}(
{expression}
, globals().get("client"))
"""


def estimate(notebook: Notebook, stage: Stage, view: ClusterView, expression: str, seconds_each: float | None) -> None:
    """Measure on the head, and tell.

    Raises:
        BadRequest: no expression, no head now, or the head answered something that is no measurement.
        RemoteError: the expression failed there.
    """
    if not expression:
        raise BadRequest('%gpu cluster estimate: tell what, as in `%gpu cluster estimate "array.rechunk(100).sum()"`')
    try:
        compile(expression, "<estimate>", "eval")
    except (SyntaxError, ValueError) as error:
        raise BadRequest(f"%gpu cluster estimate: {one_line(expression, 100)!r} is no expression: {error}") from None
    head = next((lease for lease in view.leases if view.dask and lease.lease_id == view.dask.head), None)
    if head is None or view.dask is None or view.dask.state != "running":
        raise BadRequest(f"no Dask scheduler runs on {view.name} at the moment; `%gpu cluster why` tells more")
    found = _measured(notebook, stage, head, expression)
    if found.tasks == 0:
        stage.say(f"{one_line(expression, 100)} is no Dask collection: there is nothing to fan out")
        return
    words = collection_words(
        found, view.dask, view.leases, rate_nusd_hour=view.rate_nusd_hour, seconds_each=seconds_each
    )
    for text in words:
        stage.say(text)


def _measured(notebook: Notebook, stage: Stage, head: Lease, expression: str) -> Sizes:
    """Run it as a cell of the main session, and read the numbers."""
    run_id, code = secrets.token_hex(8), CODE.format(output=OUTPUT, expression=expression)
    cluster, owner = notebook.cluster(head.lease_id), notebook.owner()
    sha256 = hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest()
    notebook.client.start_run(
        RunWish(run_id=run_id, lease_id=head.lease_id, session="main", owner=owner, code_sha256=sha256)
    )
    cluster.run(
        RunRequest(
            run_id=run_id,
            lease_id=head.lease_id,
            code=code,
            session="main",
            outputs=(OUTPUT,),
            timeout_s=TIMEOUT_S,
            owner=owner,
        )
    )
    followed = Followed(run_id, cluster, place_of(head))
    line = CostLine(stage, f"gpum-estimate-{os.urandom(8).hex()}", notebook.clock)
    Follower(stage, line, notebook.clock, notebook.pause).follow([followed])
    assert followed.view is not None, "a followed run has been seen"
    line.final(final_text(followed.place, notebook.client.run_cost(run_id, wait_s=COST_WAIT_S)))
    if (error := error_of(followed.view, followed.place.name)) is not None:
        raise error
    ref = next((ref for ref in followed.view.outputs if ref.name == OUTPUT and ref.size <= MAX_BYTES), None)
    found = None if ref is None or ref.error else sizes_from(codecs.decode(ref.codec, cluster.output(run_id, OUTPUT)))
    if found is None:
        raise BadRequest(f"{followed.place.name} did not answer with the numbers that were asked for")
    return found
