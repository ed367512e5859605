"""What the extension costs a server in which nobody rents, and how Jupyter finds it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import psutil
import pytest
from jupyter_events import EventLogger

import jupyter_gpumarket
from jupyter_gpumarket.server.app import GpuMarketApp
from jupyter_gpumarket.server.events import SCHEMAS, TOPICS, Bus, schema_id
from tests.server.running import Server

ROOT = Path(__file__).parents[2]
HEAVY = ("httpx", "polars", "pyarrow", "distributed", "dask", "asyncssh", "sqlalchemy", "numpy", "IPython")


def test_nothing_heavy_is_imported_and_no_broker_started_with_the_server(server: Server) -> None:
    """A server in which nobody rents pays a few small modules: not the client's libraries, and no process."""
    modules = set(server.told("modules"))

    assert "jupyter_gpumarket.server.app" in modules
    assert [name for name in HEAVY if name in modules] == []
    assert not [name for name in modules if name.startswith(("jupyter_gpumarket.client", "jupyter_gpumarket.notebook"))]
    assert server.told("home-at-start") is False


def test_jupyter_finds_and_enables_the_extension() -> None:
    """The file that an installation puts into Jupyter's configuration enables the package that has the hook."""
    shared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    target = shared["shared-data"]["jupyter-config/jupyter_gpumarket.json"]
    enabled = json.loads((ROOT / "jupyter-config" / "jupyter_gpumarket.json").read_text())

    assert target == "etc/jupyter/jupyter_server_config.d/jupyter_gpumarket.json"
    assert enabled["ServerApp"]["jpserver_extensions"] == {jupyter_gpumarket.__name__: True}
    assert [point["app"] for point in jupyter_gpumarket._jupyter_server_extension_points()] == [GpuMarketApp]


def test_every_setting_is_explained() -> None:
    """Each setting has help for users, and stands in the documentation by its name."""
    documented = (ROOT / "docs" / "server.md").read_text()
    own = GpuMarketApp.class_own_traits(config=True)

    assert set(own) == {"home", "start_broker", "start_timeout_s", "refresh_s", "used_s"}
    assert [name for name, trait in own.items() if len(trait.help) < 20 or f"`{name}`" not in documented] == []


def test_every_topic_has_its_schema_and_is_documented() -> None:
    """The schemas in the package are those of the topics, accepted by Jupyter's own check, strict, and documented."""
    logger = EventLogger()
    Bus(logger)
    documented = (ROOT / "docs" / "server.md").read_text()

    assert {file.stem for file in SCHEMAS.glob("*.yaml")} == set(TOPICS)
    for topic in TOPICS:
        schema = logger.schemas.get(schema_id(topic))._schema
        jsonschema.Draft7Validator.check_schema(schema)
        assert schema["additionalProperties"] is False
        assert set(schema["required"]) == set(schema["properties"])
        assert f"`{topic}`" in documented


@pytest.mark.parametrize("again", [1, 2])
def test_schemas_are_registered_once(again: int) -> None:
    """A second extension in the same server (as in tests) is no error."""
    logger = EventLogger()
    for _ in range(again):
        Bus(logger)

    assert all(schema_id(topic) in logger.schemas for topic in TOPICS)


def test_kernels_of_the_server_use_the_same_home(server: Server) -> None:
    """What the server is told as `home`, its kernels find in their environment."""
    with server.door() as door:
        started = door.post("/api/kernels", json={}).json()["id"]
        children = psutil.Process(server.process.pid).children()
        kernels = [child for child in children if "ipykernel" in str(child.cmdline())]
        found = [kernel.environ().get("JUPYTER_GPUMARKET_HOME") for kernel in kernels]
        door.delete(f"/api/kernels/{started}")

    assert found == [str(server.home)]
