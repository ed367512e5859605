"""`python -m jupyter_gpumarket.agent serve | attach | check`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one of the agent's commands; the exit code."""
    parser = argparse.ArgumentParser(prog="jupyter_gpumarket.agent", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("serve", "run the agent in the foreground"), ("attach", "bridge stdin and stdout to it")):
        command = commands.add_parser(name, help=words)
        command.add_argument("--folder", type=Path, required=True, help="the lease's folder on this node")
        if name == "attach":
            command.add_argument("--patience", type=float, default=10.0, help="seconds to wait for a starting agent")
    commands.add_parser("check", help="print Python's and the packages' versions as JSON")
    options = parser.parse_args(arguments)
    if options.command == "attach":
        from jupyter_gpumarket.agent.attach import attach

        return attach(options.folder, options.patience)
    if options.command == "check":
        from jupyter_gpumarket.agent.check import report

        sys.stdout.write(json.dumps(report()) + "\n")
        return 0
    from jupyter_gpumarket.agent.daemon import serve

    return serve(options.folder)


if __name__ == "__main__":
    sys.exit(main())
