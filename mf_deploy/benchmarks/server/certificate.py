"""The server's certificate: made once for this machine and kept, so that a phone accepts it only once."""

import datetime
import ipaddress
import os
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mf_deploy.artifact import write_whole
from mf_deploy.cache import cache_folder

VALID_DAYS = 397
RENEW_DAYS = 30
FOLDER = "web-certificate"
KEPT_NAMES = 40  # a laptop meets many networks; the oldest addresses are forgotten


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key in one PEM file that only the user may read."""

    path: Path
    certificate: x509.Certificate

    @property
    def fingerprint(self) -> str:
        """Its SHA-256 as browsers show it: pairs of hexadecimal digits."""
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def context(self) -> ssl.SSLContext:
        """What a server needs to answer over TLS 1.2 or newer."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.path)
        return context


def lan_addresses() -> list[str]:
    """This machine's IPv4 addresses in local networks; the one that leads to the internet comes first."""
    interfaces, up = psutil.net_if_addrs(), psutil.net_if_stats()
    found = [
        address.address
        for name, addresses in interfaces.items()
        for address in addresses
        if address.family == socket.AF_INET and name in up and up[name].isup
    ]
    usable = [address for address in found if not ipaddress.ip_address(address).is_loopback]
    first = _outgoing_address()
    return sorted(dict.fromkeys(usable), key=lambda address: address != first)


def certificate_for(addresses: list[str]) -> Certificate:
    """The kept certificate; made anew if it does not name all ``addresses`` or ends soon."""
    path = cache_folder() / FOLDER / "certificate.pem"
    wanted = ["localhost", socket.gethostname(), "127.0.0.1", *addresses]
    kept = _read(path)
    if kept is not None:
        names = _names(kept)
        left = kept.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        if set(wanted) <= set(names) and left.days > RENEW_DAYS:
            return Certificate(path, kept)
        wanted += names
    names = list(dict.fromkeys(wanted))[:KEPT_NAMES]
    return _make(path, names)


def _make(path: Path, names: list[str]) -> Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mf-bench serve")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    before = os.umask(0o077)
    try:
        write_whole(path, secret + certificate.public_bytes(serialization.Encoding.PEM))
    finally:
        os.umask(before)
    return Certificate(path, certificate)


def _read(path: Path) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def _names(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in found]


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _outgoing_address() -> str | None:
    """The address that packets to other networks leave from; nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1, RFC 5737: nobody's
        except OSError:
            return None
        return str(probe.getsockname()[0])
