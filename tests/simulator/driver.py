"""A marketplace's own Python package in a process of its own, called line by line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

PATIENCE_S = 60.0
# Runs in the package's environment: one expression a line in, one answer a line out.
LOOP = """
import json, sys
out, sys.stdout = sys.stdout, sys.stderr
def plain(value):
    if hasattr(value, "__dict__") and vars(value):
        return vars(value)
    told = {name: getattr(value, name) for name in dir(value) if name[0] != "_" and not callable(getattr(value, name))}
    return told or str(value)
for line in sys.stdin:
    try:
        said = {"value": eval(json.loads(line))}
    except Exception as error:
        said = {"error": type(error).__name__, "words": str(error)}
    print(json.dumps(said, default=plain), file=out, flush=True)
"""


class ClientError(Exception):
    """What the package raised: the name of its error, and its words."""


class Driver:
    """Evaluates expressions with the package, in the names that `prelude` made."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def __call__(self, expression: str) -> Any:
        """The value, as JSON.

        Raises:
            ClientError: the package raised.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(expression).encode() + b"\n")
        async with asyncio.timeout(PATIENCE_S):
            await stdin.drain()
            line = await stdout.readline()
        assert line, "the package's process ended"
        said = json.loads(line)
        if "error" in said:
            raise ClientError(f"{said['error']}: {said['words']}")
        return said["value"]


@asynccontextmanager
async def driven(python: Path, prelude: str, environment: Mapping[str, str], log: Path) -> AsyncIterator[Driver]:
    """The process, until the block ends."""
    with log.open("wb") as words:
        process = await asyncio.create_subprocess_exec(
            str(python),
            "-c",
            prelude + LOOP,
            env=dict(environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=words,
            limit=1 << 24,
        )
    try:
        yield Driver(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
