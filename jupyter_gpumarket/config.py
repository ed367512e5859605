"""Settings and folders.

Settings come from `config.toml` in the configuration folder, then from `JUPYTER_GPUMARKET_*` environment variables,
which win. Keys of marketplaces are looked up by `credential()`: environment, keyring, then a 0600 file.

    JUPYTER_GPUMARKET_HOME       one folder for state and configuration both (tests, demo, classrooms)
    JUPYTER_GPUMARKET_<SETTING>  any top-level setting, for example JUPYTER_GPUMARKET_BUDGET=5
    JUPYTER_GPUMARKET_<MARKETPLACE>_KEY   a marketplace's key
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from jupyter_core.paths import jupyter_config_dir, jupyter_data_dir

from jupyter_gpumarket.errors import ConfigError, MissingCredentials
from jupyter_gpumarket.money import usd

ENVIRONMENT_PREFIX = "JUPYTER_GPUMARKET_"
# Set by the Jupyter server's extension for its kernels: under which path of its origin the server is.
BASE_URL_VARIABLE = ENVIRONMENT_PREFIX + "BASE_URL"


class Secret:
    """Text that must not be shown: no repr, no str, no pickling. `reveal()` is the one way to it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The secret itself; only at the edge where it is sent."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __reduce__(self) -> str:
        raise TypeError("a secret cannot be pickled")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What users can set. Amounts of money are text in dollars, so that no float comes near them.

    Attributes:
        ask: ask before money is spent, where somebody can answer (`--yes` and demos turn it off).
        budget: hard limit of one lease, dollars.
        hours: longest time of one lease, hours.
        max_price: dearest hourly price that is rented without naming one, dollars; empty for none.
        grace_s: how long an idle node goes on after the user's side fell silent.
        idle_minutes: release a node that ran no cell for so long; 0 for never.
        journal: SQLAlchemy URL of the journal; empty: SQLite in the state folder.
        broker_idle_s: the broker stops itself after so long without a lease and without a call.
        keep_days: how long output of cells on ended leases is kept on this machine, days; 0 for ever.
        project: the project that charges are booked on, unless a magic says otherwise.
        trust: marketplaces whose nodes are the user's own and may be trusted with results and display.
        sync: bring the user's own modules to nodes before each cell, as `--sync` does.
        direct: let nodes that reach each other exchange data directly, through a port that opens to them alone.
        demo_gpus: take the GPU that a demo's machine is listed with for one; only for marketplaces on this computer.
        public_lists: show the public lists of marketplaces without an account too; they are asked over the internet.
        marketplaces: per marketplace its own options, such as `url`.
    """

    ask: bool = True
    budget: str = "5.00"
    hours: float = 2.0
    max_price: str = ""
    grace_s: int = 900
    idle_minutes: float = 30.0
    journal: str = ""
    broker_idle_s: float = 600.0
    keep_days: float = 30.0
    project: str = ""
    trust: tuple[str, ...] = ()
    sync: bool = False
    direct: bool = True
    demo_gpus: bool = False
    public_lists: bool = True
    marketplaces: dict[str, dict[str, Any]] = {}


class Folders(msgspec.Struct, frozen=True):
    """Where things lie. All folders are made 0700 on first use."""

    state: Path
    configuration: Path

    @property
    def settings_file(self) -> Path:
        return self.configuration / "config.toml"

    @property
    def broker_file(self) -> Path:
        """URL and token of the running broker, 0600."""
        return self.state / "broker.json"

    @property
    def broker_lock(self) -> Path:
        return self.state / "broker.lock"

    @property
    def broker_log(self) -> Path:
        return self.state / "broker.log"

    @property
    def journal_file(self) -> Path:
        return self.state / "journal.sqlite"

    @property
    def keys(self) -> Path:
        """One private key per open lease, 0600, wiped at its end."""
        return private_folder(self.state / "keys")

    def cluster(self, cluster_id: str) -> Path:
        """A cluster process's own folder: `cluster.json` (URL and token), log, `runs/`, `blobs/`."""
        return private_folder(self.clusters / cluster_id)

    @property
    def clusters(self) -> Path:
        return self.state / "clusters"


def folders(environment: Mapping[str, str] | None = None) -> Folders:
    """The folders of this user; `JUPYTER_GPUMARKET_HOME` puts both into one place."""
    home = (os.environ if environment is None else environment).get(ENVIRONMENT_PREFIX + "HOME")
    if home:
        root = Path(home).expanduser().absolute()
        return Folders(private_folder(root / "state"), private_folder(root / "config"))
    return Folders(
        private_folder(Path(jupyter_data_dir()) / "gpumarket"), private_folder(Path(jupyter_config_dir()) / "gpumarket")
    )


def private_folder(path: Path) -> Path:
    """Make a folder that only its owner can enter.

    Raises:
        ConfigError: it cannot be made, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.stat()
        if facts.st_uid == os.getuid() and facts.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"cannot use the folder {path}: {error.strerror}") from None
    if facts.st_uid != os.getuid():
        raise ConfigError(f"the folder {path} belongs to another user; set {ENVIRONMENT_PREFIX}HOME to one of yours")
    return path


def write_private(path: Path, content: bytes) -> None:
    """Write a 0600 file as a whole: readers see the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_settings(where: Folders, environment: Mapping[str, str] | None = None) -> Settings:
    """The user's settings.

    Raises:
        ConfigError: names the file and the setting that cannot be read.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    if where.settings_file.exists():
        try:
            values = tomllib.loads(where.settings_file.read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where.settings_file}: {error}") from None
    for name in Settings.__struct_fields__:
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is not None and name not in ("marketplaces", "trust"):
            values[name] = text
    source = f"{where.settings_file} or {ENVIRONMENT_PREFIX}*"
    try:
        settings = msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {error}") from None
    _check(settings, source)
    return settings


def settings_changed_ms(where: Folders) -> int:
    """When the settings file was written last, in milliseconds; 0 where there is none."""
    try:
        return where.settings_file.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


def _check(settings: Settings, source: str) -> None:
    """What types do not tell."""
    for name, text in (("budget", settings.budget), ("max_price", settings.max_price)):
        try:
            if text and usd(text) <= 0:
                raise ConfigError(f"{source}: {name} = {text}: an amount above zero is needed")
        except ValueError as error:
            raise ConfigError(f"{source}: {name}: {error}") from None
    if not 0 < settings.hours <= 24 * 365:
        raise ConfigError(f"{source}: hours = {settings.hours:g}: above 0 and at most a year")
    if not 0 <= settings.keep_days < float("inf"):
        raise ConfigError(f"{source}: keep_days = {settings.keep_days:g}: a number of days, or 0 for ever")


def credential(marketplace: str, where: Folders, environment: Mapping[str, str] | None = None) -> Secret:
    """A marketplace's key: from the environment, the keyring, or `<marketplace>.key` in the configuration folder.

    Raises:
        MissingCredentials: none of the three has it, or the file can be read by others.
    """
    variable = f"{ENVIRONMENT_PREFIX}{marketplace.upper()}_KEY"
    text = (os.environ if environment is None else environment).get(variable) or _from_keyring(marketplace)
    if text:
        return Secret(text.strip())
    file = where.configuration / f"{marketplace}.key"
    if not file.exists():
        raise MissingCredentials(
            f"no key for {marketplace}: set {variable}, run `keyring set jupyter_gpumarket {marketplace}`, "
            f"or write it to {file} (mode 0600)"
        )
    if file.stat().st_mode & 0o077:
        raise MissingCredentials(f"{file} can be read by others; run `chmod 600 {file}`")
    return Secret(file.read_text("utf-8").strip())


def _from_keyring(marketplace: str) -> str | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        found: str | None = keyring.get_password("jupyter_gpumarket", marketplace)
    except KeyringError:
        return None
    return found
