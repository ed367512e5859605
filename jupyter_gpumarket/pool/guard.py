"""Who may talk to the registry, and over what: tokens, the registry's own certificate, and when TLS is a must."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import ConfigError

CERTIFICATE_DAYS = 3650
ANY_ADDRESS = ("0.0.0.0", "::", "")  # noqa: S104


def new_token() -> str:
    """A token nobody can guess."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is stored of a token: it can be compared, not used."""
    return hashlib.sha256(token.encode()).hexdigest()


def same(token: str, stored_digest: str) -> bool:
    """Whether a token is the one that was stored, in constant time."""
    return hmac.compare_digest(digest(token), stored_digest)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens there. Names other than `localhost` count as reachable."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def needs_tls(addresses: list[str], *, required: bool = False) -> bool:
    """Whether a registry that listens on these addresses must speak TLS: as soon as one is not loopback, or on wish."""
    return required or not all(is_loopback(address) for address in addresses)


def refuse_plain(address: str, *, tls: bool) -> None:
    """Stop before anything is reachable without TLS.

    Raises:
        ConfigError: the address is beyond loopback and TLS was switched off.
    """
    if not tls and not is_loopback(address):
        raise ConfigError(
            f"the registry does not listen on {address} without TLS: tokens would cross the network in the clear. "
            "Leave out --no-tls, or listen on 127.0.0.1"
        )


def split_address(text: str) -> tuple[str, int]:
    """`host:port`, `[v6]:port`; port 0 takes any free one.

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"{text!r} is not an address to listen on; write it like 127.0.0.1:0 or 0.0.0.0:8799")
    return host.removeprefix("[").removesuffix("]"), int(port)


def make_certificate(folder: Path, names: list[str]) -> tuple[Path, Path]:
    """The registry's certificate and key; made once, kept, and good only because hosts and users pin it."""
    certificate_file, key_file = folder / "registry.crt", folder / "registry.key"
    if certificate_file.exists() and key_file.exists():
        return certificate_file, key_file
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "jupyter_gpumarket pool registry")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.SubjectAlternativeName([general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(key_file, private)
    write_private(certificate_file, certificate.public_bytes(serialization.Encoding.PEM))
    return certificate_file, key_file


def general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def fingerprint(certificate_pem: str) -> str:
    """`SHA256:…` of a certificate, as in the join command."""
    der = ssl.PEM_cert_to_DER_cert(certificate_pem)
    return "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")


def fetch_pinned(host: str, port: int, expected: str, *, timeout_s: float = 10.0) -> str:
    """The certificate a registry shows, when it is the expected one. PEM.

    Raises:
        ConfigError: it cannot be reached, or shows another certificate.
    """
    try:
        shown = ssl.get_server_certificate((host, port), timeout=timeout_s)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the registry at {host}:{port} cannot be reached: {error}") from None
    if not hmac.compare_digest(fingerprint(shown), expected):
        raise ConfigError(
            f"the registry at {host}:{port} shows the certificate {fingerprint(shown)}, not {expected}. "
            "Somebody may sit in between; compare with the join command that the registry printed"
        )
    return shown


def advertised_names(listen: str, extra: list[str]) -> list[str]:
    """The names and addresses that the certificate is made out to."""
    names = ["localhost", "127.0.0.1", *extra]
    if listen in ANY_ADDRESS:
        names.append(socket.gethostname())
    else:
        names.append(listen)
    return list(dict.fromkeys(names))


def keep_token(file: Path) -> str:
    """A token that is made on first use and kept in a 0600 file."""
    if file.exists():
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others; run `chmod 600 {file}`")
        return file.read_text("utf-8").strip()
    token = new_token()
    write_private(file, token.encode())
    return token


def only_for_owner(path: Path) -> None:
    """Refuse a folder that others can enter; make it when it is missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise ConfigError(f"the folder {path} belongs to another user")
    path.chmod(0o700)
