"""One certificate authority per cluster: only its own nodes (and doors that were let in) can speak its Dask.

The authority's key stays on the user's side; each node gets a key and a certificate of its own.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from functools import lru_cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from jupyter_gpumarket.models import Record

LIFE = dt.timedelta(days=366)
# Clocks of nodes may be behind ours.
EARLIER = dt.timedelta(days=2)


class Identity(Record, frozen=True, kw_only=True):
    """A certificate and its private key, as PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Identity(…)"


def new_authority(name: str, now: dt.datetime) -> Identity:
    """A certificate authority for one cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"gpumarket cluster {name}"[:64])
    builder = _builder(subject, subject, key, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = builder.add_extension(identifier, critical=False)
    return _identity(builder.sign(key, hashes.SHA256()), key)


def issue(authority: Identity, name: str, now: dt.datetime) -> Identity:
    """A certificate of one party of the cluster, good for both ends of a connection."""
    ca_key = serialization.load_pem_private_key(authority.key, password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    ca = x509.load_pem_x509_certificate(authority.certificate)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(name[:64]), ca.subject, key, now)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(both, critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(member_name(name))]), critical=False)
    of_ca = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    builder = builder.add_extension(of_ca, critical=False)
    return _identity(builder.sign(ca_key, hashes.SHA256()), key)


@lru_cache(maxsize=10_000)
def member_name(name: str) -> str:
    """What a party's certificate calls it, in the form that TLS compares: no address, so it holds wherever it is."""
    return f"m{hashlib.sha256(name.encode()).hexdigest()[:40]}.gpumarket.internal"


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + LIFE)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _identity(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Identity:
    return Identity(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )
