"""Pictures by URL: whatever the spelling, nothing is asked but the hosts that are allowed.

A listener of this machine stands for what callers must not reach; the names that are looked up are
noted. Between them no address can be asked unseen.
"""

import asyncio
import datetime
import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest
from deployments.ingress.request.pictures import Pictures

ALLOWED = "pictures.example"
# :P is the listener's port.
FORMS = [
    # Plainly elsewhere, in every spelling of this machine and of a cloud's metadata.
    "https://127.0.0.1:P/",
    "https://127.1:P/",
    "https://127.0.1:P/",
    "https://2130706433:P/",
    "https://0x7f000001:P/",
    "https://0x7f.0.0.1:P/",
    "https://0177.0.0.1:P/",
    "https://017700000001:P/",
    "https://0:P/",
    "https://0.0.0.0:P/",
    "https://[::1]:P/",
    "https://[::]:P/",
    "https://[::ffff:127.0.0.1]:P/",
    "https://[::ffff:7f00:1]:P/",
    "https://[0:0:0:0:0:0:0:1]:P/",
    "https://[::1%25lo]:P/",
    "https://localhost:P/",
    "https://LOCALHOST:P/",
    "https://localhost.:P/",
    "https://localhost.localdomain:P/",
    "https://169.254.169.254/latest/meta-data/",
    "https://metadata.google.internal/",
    "https://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460:P/",
    "https://127\u30020\u30020\u30021:P/",
    "https://127%2e0%2e0%2e1:P/",
    "https://%31%32%37.0.0.1:P/",
    # The allowed host's name, where it is not the host.
    f"https://{ALLOWED}@127.0.0.1:P/",
    f"https://{ALLOWED}:443@127.0.0.1:P/",
    f"https://{ALLOWED}%40127.0.0.1:P/",
    f"https://127.0.0.1:P/{ALLOWED}",
    f"https://127.0.0.1:P/?{ALLOWED}",
    f"https://127.0.0.1:P#@{ALLOWED}/",
    f"https://127.0.0.1:P?@{ALLOWED}/",
    f"https://127.0.0.1:P\\@{ALLOWED}/",
    f"https://{ALLOWED}\\@127.0.0.1:P/",
    f"https://127.0.0.1:P;@{ALLOWED}/",
    f"https://{ALLOWED};@127.0.0.1:P/",
    f"https://127.0.0.1:P\t@{ALLOWED}/",
    f"https://127.0.0.1:P\r\n@{ALLOWED}/",
    f"https://127.0.0.1:P %00@{ALLOWED}/",
    f"https://127.0.0.1:P\x00@{ALLOWED}/",
    f"https://a@127.0.0.1:P@{ALLOWED}@127.0.0.1:P/",
    f"https://{ALLOWED}.127.0.0.1.nip.io:P/",
    f"https://{ALLOWED}.evil.example/",
    f"https://evil-{ALLOWED}/",
    f"https://{ALLOWED}evil.example/",
    f"https://{ALLOWED},127.0.0.1:P/",
    f"https://{ALLOWED} 127.0.0.1:P/",
    f"https://[{ALLOWED}]:P/",
    f"https://[127.0.0.1]:P/{ALLOWED}",
    # Other schemes, and none.
    "http://127.0.0.1:P/",
    f"http://{ALLOWED}/",
    "HTTP://127.0.0.1:P/",
    "//127.0.0.1:P/",
    "https:/127.0.0.1:P/",
    "https:127.0.0.1:P/",
    "https:///127.0.0.1:P/",
    "https:\\\\127.0.0.1:P/",
    "ftp://127.0.0.1:P/",
    "file:///etc/passwd",
    "file://localhost/etc/passwd",
    "gopher://127.0.0.1:P/_GET",
    "dict://127.0.0.1:P/",
    "unix:///var/run/docker.sock",
    "jar:https://127.0.0.1:P!/",
    "url:https://127.0.0.1:P/",
    " https://127.0.0.1:P/",
    "s3://127.0.0.1:P/a.png",
    f"s3://{ALLOWED}/a.png",
    "s3://../pictures/a.png",
]


@contextmanager
def listening() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine, and who has connected to it."""
    seen: list[str] = []
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:

        def take() -> None:
            while True:
                try:
                    connection, peer = server.accept()
                except OSError:
                    return
                seen.append(str(peer))
                connection.close()

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that are asked of the resolver, which knows none but this machine's own."""
    names: list[str] = []
    known = socket.getaddrinfo

    def lookup(host: str | bytes | None, *args: object, **kwargs: object) -> object:
        name = host.decode() if isinstance(host, bytes) else str(host)
        names.append(name)
        if name == ALLOWED:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return known(host, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    return names


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_asked_but_what_is_allowed(form: str, looked_up: list[str]) -> None:
    pictures = Pictures(ServiceArgs(allowed_url_hosts=(ALLOWED,), allowed_s3_buckets=("mine",)))
    with listening() as (port, seen), pytest.raises(InvalidRequest) as refused:
        asyncio.run(pictures.bring({"image": form.replace(":P", f":{port}")}))
    assert refused.value.param == "image"
    assert seen == []
    assert set(looked_up) <= {ALLOWED}


def test_what_is_allowed_is_asked(looked_up: list[str]) -> None:
    """Else nobody would ever be seen at the door."""
    pictures = Pictures(ServiceArgs(allowed_url_hosts=("127.0.0.1",)))
    with listening() as (port, seen), pytest.raises(InvalidRequest, match="could not be fetched"):
        asyncio.run(pictures.bring({"image": f"https://127.0.0.1:{port}/"}))
    assert len(seen) == 1


def test_a_redirection_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allowed host that sends us on to another address."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    with (
        listening() as (port, seen),
        redirecting(tmp_path, f"http://127.0.0.1:{port}/") as url,
    ):
        pictures = Pictures(ServiceArgs(allowed_url_hosts=("localhost",)))
        with pytest.raises(InvalidRequest, match="302"):
            asyncio.run(pictures.bring({"image": url}))
    assert seen == []


@contextmanager
def redirecting(folder: Path, location: str) -> Iterator[str]:
    """A TLS server of this machine, whose certificate is in the folder."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("location", location)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    certify(folder)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{server.server_address[1]}/a.png"
        finally:
            server.shutdown()
            thread.join()


def certify(folder: Path) -> None:
    """A key, and a certificate for `localhost` that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    today = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
