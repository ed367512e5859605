"""Orders to the programs that run on a node, and their answers: bounded, decoded by schema."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from jupyter_gpumarket.errors import CommandFailed, NodeError
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.nodes.address import last_lines, shown
from jupyter_gpumarket.nodes.bundle import node_program
from jupyter_gpumarket.nodes.link import NodeLink

MARK = b"GPUMARKET-ANSWER "
MAX_ANSWER_BYTES = 256 * 1024
MAX_TROUBLE_CHARS = 2000
NO_PYTHON = 97
# The first Python 3.8 or newer runs the program that follows on standard input. Nothing here comes from the node.
FIND_PYTHON = f"""
for candidate in "$GPUMARKET_PYTHON" python3 /usr/bin/python3 /usr/local/bin/python3 /opt/conda/bin/python3 \\
    /venv/main/bin/python "$HOME/.local/bin/python3" python; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
  "$candidate" -I -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1 </dev/null || continue
  exec "$candidate" -I -
done
exit {NO_PYTHON}
"""


class Answer(Record, frozen=True, kw_only=True):
    """Base of what the programs answer. `error`: the step failed, in words for the user."""

    error: str = ""


AnAnswer = TypeVar("AnAnswer", bound=Answer)


async def order(
    link: NodeLink, program: str, what: Mapping[str, Any], kind: type[AnAnswer], *, timeout_s: float, python: str = ""
) -> AnAnswer:
    """Send `nodes/onnode/<program>.py` with an order to a Python on the node, and decode its answer.

    Raises:
        CommandFailed: the program failed, with its last lines; or it told why it could not do the step.
        NodeError: no Python there, or an answer that is none.
        Unreachable: the link was lost.
    """
    source = node_program(f"nodes/onnode/{program}.py").decode("utf-8")
    text = f"{source}\nanswer({json.dumps(dict(what), ensure_ascii=True)!r})\n"
    command = f"exec {shlex.quote(python)} -I -" if python else FIND_PYTHON
    done = await link.run(
        command, input=text.encode(), timeout_s=timeout_s, max_output_bytes=MAX_ANSWER_BYTES, check=False
    )
    if done.exit_code == NO_PYTHON and not python:
        raise NodeError(
            f"there is no Python 3.8 or newer on {link.name}; rent with an image that has python3, or set "
            "GPUMARKET_PYTHON on the node to the path of one"
        )
    if done.exit_code != 0:
        said = last_lines(done.stderr) or last_lines(done.stdout)
        raise CommandFailed(f"a step of set-up failed on {link.name}", exit_code=done.exit_code, last_lines=said)
    result = _decoded(link, done.stdout, kind)
    if result.error:
        raise CommandFailed(f"{link.name}: {_lines(result.error)}")
    return result


def _decoded(link: NodeLink, output: bytes, kind: type[AnAnswer]) -> AnAnswer:
    """The last marked line; shells and site files may print more before it."""
    marked = [line for line in output.splitlines() if line.startswith(MARK)]
    if not marked:
        raise NodeError(f"{link.name} gave no answer to a step of set-up: {shown(output)!r}")
    try:
        return msgspec.json.decode(marked[-1][len(MARK) :], type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NodeError(f"{link.name} gave an answer that does not fit a step of set-up: {shown(str(error))}") from None


def _lines(text: str) -> str:
    return last_lines(text[-MAX_TROUBLE_CHARS:].encode("utf-8", "replace"))
