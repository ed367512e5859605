"""Inputs and outputs inside a kernel: blobs become variables, variables become files. Runs in the kernel's process.

Inputs are the user's own bytes, so cloudpickle is allowed here; outputs go by the closed set of codecs only.
"""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any


def set_inputs(shell: Any, inputs: list[dict[str, str]]) -> dict[str, Any]:
    """Decode each input and set it in the user's namespace; the reply's content. Nothing is set when one fails."""
    values: dict[str, Any] = {}
    for item in inputs:
        name = item["name"]
        try:
            values[name] = read_input(item["codec"], Path(item["path"]))
        except KeyboardInterrupt as error:
            return failure(error, f"interrupted while the input {name!r} was decoded")
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's own code, which may raise anything
            return failure(error, f"the input {name!r} cannot be decoded on the node: {type(error).__name__}: {error}")
    shell.push(values)
    return {"status": "ok"}


def read_input(codec: str, path: Path) -> Any:
    """A value from a blob on this node; for a file of the user's: a path to it, under its own name."""
    kind, _, name = codec.partition(":")
    if kind != "file":
        return decode_input(codec, path.read_bytes())
    named = path.parent.parent / "data" / path.name / Path(name).name
    named.parent.mkdir(parents=True, exist_ok=True)
    if not named.exists():
        draft = named.with_name(f".{os.getpid()}-{named.name}")
        draft.symlink_to(path)
        draft.replace(named)
    return named


def decode_input(codec: str, data: bytes) -> Any:
    """A value from the user's side."""
    if codec == "cloudpickle":
        import cloudpickle

        return cloudpickle.loads(data)
    from jupyter_gpumarket import codecs

    return codecs.decode(codec, data)


def failure(error: BaseException, message: str) -> dict[str, Any]:
    """The content of a reply that tells an error."""
    name = "KeyboardInterrupt" if isinstance(error, KeyboardInterrupt) else "InputError"
    lines = traceback.format_exception(error)
    return {"status": "error", "ename": name, "evalue": message, "traceback": [*lines[-20:], message]}


def encode_outputs(shell: Any, outputs: list[dict[str, str]]) -> dict[str, Any]:
    """Encode each named variable into its file; the reply's content tells what became of each."""
    return {"status": "ok", "outputs": [encode_output(shell.user_ns, item["name"], item["path"]) for item in outputs]}


def encode_output(namespace: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    """Encode one variable: `codec`, `size` and `sha256` of its file, or `error`."""
    if name not in namespace:
        return {"name": name, "error": f"there is no variable {name!r} on the node after the cell"}
    try:
        from jupyter_gpumarket import codecs

        written = codecs.encode_into(namespace[name], Path(path))
    except KeyboardInterrupt:
        return {"name": name, "error": f"interrupted while {name!r} was encoded"}
    except Exception as error:  # noqa: BLE001 - encoding may run the user's own code, which may raise anything
        kind = type(namespace[name])
        return {
            "name": name,
            "error": f"{name!r} (of type {kind.__module__}.{kind.__qualname__}) cannot be brought back: {error}",
        }
    return {"name": name, "codec": written.codec, "size": written.size, "sha256": written.sha256}
