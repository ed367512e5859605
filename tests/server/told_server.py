"""`jupyter server`, as it is started by its users, which also tells what it really serves and what it has imported.

It writes `routes.json` into its root folder: every rule of the running application as (pattern, methods, handler), and
`modules.json`: what was imported when the server was ready to answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jupyter_server.serverapp import ServerApp

VERBS = ("get", "head", "post", "put", "delete", "patch")


def rules(router: Any) -> Iterator[tuple[str, list[str], str]]:
    """The rules of a tornado router, those of routers inside it too."""
    for rule in router.rules:
        if hasattr(rule.target, "rules"):
            yield from rules(rule.target)
        elif isinstance(rule.target, type) and hasattr(rule.matcher, "regex"):
            handler = rule.target
            own = [verb for verb in VERBS if getattr(handler, verb) is not getattr(handler.__mro__[-2], verb, None)]
            mine = [verb.upper() for verb in own if "_unimplemented" not in getattr(handler, verb).__qualname__]
            yield rule.matcher.regex.pattern, mine, f"{handler.__module__}.{handler.__qualname__}"


class ToldServer(ServerApp):
    """Tells what it serves once everything is in place."""

    def start(self) -> None:
        folder = Path(self.root_dir)
        (folder / "modules.json").write_text(json.dumps(sorted(sys.modules)))
        (folder / "routes.json").write_text(json.dumps(list(rules(self.web_app.default_router))))
        super().start()


if __name__ == "__main__":
    ToldServer.launch_instance()
