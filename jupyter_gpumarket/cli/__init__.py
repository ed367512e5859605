"""`jupyter gpumarket ...`: the terminal's door.

This module and the parser import nothing heavy, so that help and completion are quick; each command's module is
imported when it is called.

Exit codes, for scripts:
    0 done · 1 failed · 2 wrong usage · 3 no offer fits · 4 over budget · 5 no broker
    6 a release is not confirmed (money may still flow) · 130 interrupted
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_CODES = {
    "BadRequest": 2,
    "ConfigError": 2,
    "MissingCredentials": 2,
    "NoMatchingOffer": 3,
    "OfferGone": 3,
    "BudgetExceeded": 4,
    "BrokerUnavailable": 5,
    "StillRunning": 6,
}
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is the result."""
    from jupyter_gpumarket.cli.parser import build_parser

    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not getattr(arguments, "takes_rest", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.rest = rest
    if not hasattr(arguments, "run"):
        parser.print_help()
        return 2
    return _guarded(arguments)


def _guarded(arguments: object) -> int:
    from importlib import import_module

    from jupyter_gpumarket.errors import GpuMarketError

    module, _, function = getattr(arguments, "run").partition(":")  # noqa: B009 - a namespace has no known fields
    try:
        return int(getattr(import_module(module), function)(arguments) or 0)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except GpuMarketError as error:
        print(f"jupyter gpumarket: {error}", file=sys.stderr)
        return EXIT_CODES.get(type(error).__name__, 1)
