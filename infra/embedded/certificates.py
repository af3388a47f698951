"""A certificate authority and a certificate for servers on loopback, for tests and benchmarks."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from infra.embedded.server import LOOPBACK

_LIFETIME = timedelta(days=2)


@dataclass(frozen=True)
class Certificates:
    """PEM files of one folder."""

    folder: Path

    @property
    def ca_file(self) -> Path:
        """The certificate to trust."""
        return self.folder / "ca.pem"

    @property
    def cert_file(self) -> Path:
        """The server's certificate."""
        return self.folder / "server.pem"

    @property
    def key_file(self) -> Path:
        """The server's key."""
        return self.folder / "server.key"


def create_certificates(folder: Path) -> Certificates:
    """Create an authority and a certificate for the loopback address, valid for two days."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates = Certificates(folder)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _builder("afterclick test CA", ca_key, ca_key).issuer_name(
        _name("afterclick test CA")
    )
    authority = authority.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
    authority = authority.add_extension(_usage(sign=True), True)
    server = _builder("localhost", key, ca_key).issuer_name(_name("afterclick test CA"))
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOOPBACK))]
    server = server.add_extension(x509.SubjectAlternativeName(addresses), False)
    server = server.add_extension(_usage(sign=False), True)
    for path, builder in ((certificates.ca_file, authority), (certificates.cert_file, server)):
        signed = builder.sign(ca_key, hashes.SHA256())
        path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    certificates.key_file.touch(mode=0o600)
    certificates.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificates


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _builder(
    common_name: str, key: ec.EllipticCurvePrivateKey, issuer_key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(issuer, False)
    )


def _usage(*, sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not sign,
        key_cert_sign=sign,
        crl_sign=sign,
        encipher_only=False,
        decipher_only=False,
    )
