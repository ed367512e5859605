"""What of a folder of code never travels to somebody else's machine, and what its ignore files leave out."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path

import pathspec

IGNORE_FILES = (".gitignore", ".gpumarketignore")
MAX_FILE_BYTES = 2 * 1024 * 1024
# By name, whatever an ignore file says. Names are compared in small letters; of code only what can hardly be else.
SECRETS = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.gpg", "*.asc", "*.env", "env"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*_rsa", "*_ed25519", "netrc", "_netrc", "htpasswd"),
    *("*.p8", "*.der", "*.ovpn", "*.tfvars", "*.tfstate*", "kubeconfig*", "*.kubeconfig", "pgpass*", "rclone.conf"),
    *("secret.*", "secrets.*", "*_secret.*", "*_secrets.*", "credential.*", "credentials.*", "*_credentials.*"),
)
SECRET_TEXTS = (
    *("*secret*", "*credential*", "*password*", "*passwd*", "*token*", "kaggle.json", "service-account*.json"),
    *("service_account*.json", "htpasswd*", "*apikey*", "*api_key*", "pip.conf", "config.ini"),
)
FOLDERS = ("__pycache__", "node_modules", "site-packages", "dist-packages", "*.egg-info", "*.dist-info", "cvs")
KINDS = {
    "*.ipynb": "notebooks stay here",
    "*.pyc": "made anew on the node",
    "*.pyo": "made anew on the node",
    "*.pyd": "built for this machine",
    "*.dll": "built for this machine",
    "*.dylib": "built for this machine",
}
# At the beginning of a line, or anywhere with some of the key behind it: in the JSON of a service account, say.
_BEGIN = rb"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_PRIVATE_KEY = re.compile(
    rb"^[ \t]*" + _BEGIN + rb"|" + _BEGIN + rb"(?:\\[nr]|[\s\"'+,()\\]){1,40}[A-Za-z0-9+/]{16}", re.MULTILINE
)


def why_not_by_name(path: str) -> str:
    """Why a file does not travel, by its path in its folder of code; empty when nothing speaks against it."""
    *folders, name = path.lower().split("/")
    if any(part.startswith(".") for part in (*folders, name)):
        return "hidden files stay here"
    if any(fnmatch(folder, pattern) for folder in folders for pattern in FOLDERS):
        return "no code of yours"
    patterns = SECRETS if name.endswith((".py", ".pyi")) else SECRETS + SECRET_TEXTS
    if any(fnmatch(name, pattern) for pattern in patterns):
        return "it may hold a secret"
    return next((why for pattern, why in KINDS.items() if fnmatch(name, pattern)), "")


def why_not_by_size(size: int) -> str:
    """Why a file does not travel, by how large it is."""
    return f"larger than {MAX_FILE_BYTES // 1024**2} MB: bring data with gm.put" if size > MAX_FILE_BYTES else ""


def why_not_by_content(content: bytes) -> str:
    """Why a file does not travel, by what is in it."""
    return "it holds a private key" if _PRIVATE_KEY.search(content) else ""


def is_environment(folder: Path) -> bool:
    """Whether it is a virtual environment."""
    return (folder / "pyvenv.cfg").exists()


class Ignored:
    """The ignore files from a folder downwards, read as git reads its own; `.gpumarketignore` has the last word."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._specs: dict[Path, list[tuple[str, pathspec.GitIgnoreSpec]]] = {}

    def by(self, path: Path) -> str:
        """The ignore file that leaves a file out; empty when none does."""
        if not path.is_relative_to(self._top):
            return ""
        by = ""
        parts = path.relative_to(self._top).parts
        for depth in range(len(parts)):
            folder = self._top.joinpath(*parts[:depth])
            for name, spec in self._in(folder):
                told = spec.check_file(os.path.join(*parts[depth:])).include
                if told is not None:
                    by = name if told else ""
        return by

    def _in(self, folder: Path) -> list[tuple[str, pathspec.GitIgnoreSpec]]:
        if folder not in self._specs:
            found = []
            for name in IGNORE_FILES:
                try:
                    lines = (folder / name).read_text("utf-8", "replace").splitlines()
                except OSError:
                    continue
                found.append((name, pathspec.GitIgnoreSpec.from_lines(line for line in lines if _is_pattern(line))))
            self._specs[folder] = found
        return self._specs[folder]


def _is_pattern(line: str) -> bool:
    """Whether it means something; git passes over the others too."""
    try:
        pathspec.GitIgnoreSpec.from_lines([line])
    except ValueError:
        return False
    return True
