"""`python -m jupyter_gpumarket.cluster --folder FOLDER`: one cluster process, in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from jupyter_gpumarket.cluster.environment import replace_unless_scrubbed


def main(arguments: list[str] | None = None) -> int:
    """Run until told to end; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m jupyter_gpumarket.cluster", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the cluster's own folder, with start.json in it")
    folder: Path = parser.parse_args(arguments).folder.absolute()
    replace_unless_scrubbed("jupyter_gpumarket.cluster", ["--folder", str(folder)])

    # Imported only now: before the environment is clean, nothing more than needed is loaded.
    from jupyter_gpumarket.cluster.serve import serve
    from jupyter_gpumarket.cluster.ssh import SshLink
    from jupyter_gpumarket.errors import ConfigError

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    os.umask(0o077)
    os.chdir("/")
    try:
        asyncio.run(serve(folder, SshLink))
    except ConfigError as error:
        logging.getLogger(__name__).critical("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
