"""A server that speaks http where https is used, or the reverse, is named in the error. It gets no key."""

import contextlib
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from epithre_beam.configs import EmbedConfig
from epithre_beam.configs.errors import ApiError, WrongAddressError
from epithre_beam.transforms.epithre.other_scheme import wrong_scheme
from epithre_beam.transforms.epithre.probe import probe

from . import hostile
from .asking import serve

KEY = "key-for-tests-0123456789"


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """Of a server with a certificate that it made itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
    path: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    form = serialization.PrivateFormat.PKCS8
    path.write_bytes(
        made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


@contextlib.contextmanager
def listening(serve_one: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that does so with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def go() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(10)
                        serve_one(connection)

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def answers(words: bytes, seen: list[bytes]) -> Callable[[socket.socket], None]:
    def serve_one(connection: socket.socket) -> None:
        seen.append(connection.recv(65_536))
        connection.sendall(words)

    return serve_one


def ask(url: str) -> None:
    probe(EmbedConfig(base_url=url), KEY, tries=1, pause_s=0.01)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_https_against_a_server_of_http_is_named_with_the_right_address(host: str) -> None:
    with serve() as emulator:
        right = emulator.base_url.replace("127.0.0.1", host)
        wrong = right.replace("http://", "https://")
        with pytest.raises(WrongAddressError) as caught:
            ask(wrong)
    assert str(caught.value) == f"embed.base_url {wrong}: the server speaks http, not https. Write {right}."
    assert caught.value.exit_code == 2


def test_http_against_a_server_of_https_is_named_with_the_right_address(tls: ssl.SSLContext) -> None:
    def serve_one(connection: socket.socket) -> None:
        with tls.wrap_socket(connection, server_side=True) as inner:
            inner.recv(10)

    with listening(serve_one) as port, pytest.raises(WrongAddressError) as caught:
        ask(f"http://127.0.0.1:{port}/v1")
    expected = f"the server speaks https, not http. Write https://127.0.0.1:{port}/v1."
    assert str(caught.value) == f"embed.base_url http://127.0.0.1:{port}/v1: {expected}"


@pytest.mark.parametrize(
    "words",
    [
        "<html><h1>400 Bad Request</h1>The plain HTTP request was sent to HTTPS port</html>",
        "Client sent an HTTP request to an HTTPS server.\n",
        "You're speaking plain HTTP to an SSL-enabled server port.",
    ],
    ids=["nginx", "Go", "Apache"],
)
def test_a_server_of_https_that_answers_plain_http_with_a_400_is_named(tls: ssl.SSLContext, words: str) -> None:
    def serve_one(connection: socket.socket) -> None:
        if connection.recv(1, socket.MSG_PEEK) == b"\x16":  # a handshake
            with tls.wrap_socket(connection, server_side=True) as inner:
                inner.recv(10)
        else:
            connection.recv(65_536)
            connection.sendall(hostile.answer(400, words.encode()))

    with listening(serve_one) as port:
        with pytest.raises(WrongAddressError, match="the server speaks https, not http"):
            ask(f"http://127.0.0.1:{port}/v1")
        with pytest.raises(ApiError, match="certificate verify failed"):  # by https it is the certificate
            ask(f"https://127.0.0.1:{port}/v1")


def test_an_alert_of_tls_is_tls() -> None:
    alert = answers(b"\x15\x03\x03\x00\x02\x02\x28", [])
    with listening(alert) as port, pytest.raises(WrongAddressError, match="the server speaks https, not http"):
        ask(f"http://127.0.0.1:{port}/v1")


@pytest.mark.parametrize("words", [b"", b"220 mail.example ESMTP\r\n", b"\x00\x01\x02"], ids=["silent", "mail", "junk"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_speaks_neither_is_not_taken_for_the_other(scheme: str, words: bytes) -> None:
    with listening(answers(words, [])) as port, pytest.raises(ApiError, match="does not answer"):
        ask(f"{scheme}://127.0.0.1:{port}/v1")


def test_the_key_is_sent_to_nobody_to_find_that_out() -> None:
    seen: list[bytes] = []
    with listening(answers(hostile.answer(200, b"{}"), seen)) as port:
        error = wrong_scheme(f"https://127.0.0.1:{port}/v1")
    assert error is not None
    assert [part[:1] for part in seen] == [b"\x16", b"H"]
    assert KEY.encode() not in b"".join(seen)


def test_where_nothing_listens_nothing_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert wrong_scheme(f"https://127.0.0.1:{port}/v1") is None


def test_a_key_for_another_machine_would_go_in_clear_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of this machine, which is no loopback name, stands for another one."""
    found = socket.getaddrinfo("127.0.0.1", 0)
    with listening(answers(hostile.answer(200, b"{}"), [])) as port:
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(*found[0][:4], ("127.0.0.1", port))])
        error = wrong_scheme(f"https://api.example:{port}/v1")
    assert "Write http://api.example" in str(error)
    assert str(error).endswith("and set embed.allow_plain_http, which sends the key in clear text.")
