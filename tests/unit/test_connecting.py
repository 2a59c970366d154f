"""Connecting: proxies by the environment, and faults that last, which are raised at once, against those that pass."""

import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.server import ServerConnection, serve

from lightwam.errors import ConfigError, LightwamError, WireError
from lightwam.robot import client as client_module
from lightwam.robot.background import BackgroundRequester
from lightwam.robot.client import Client
from lightwam.robot.errors import CannotConnect, ConnectionLost, Refused
from lightwam.robot.player import ChunkPlayer, Play
from lightwam.robot.proxies import Proxy, is_excepted, proxy_for
from lightwam.wire.openpi import MESSAGE_BYTES

CHUNK = np.ones((3, 2), np.float32)
VARIABLES = [f"{name}_proxy" for name in ("http", "https", "socks", "ws", "wss", "all", "no")]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@contextmanager
def openpi_server(
    greeting: Any = None, ends: int = 0, talk: Callable[[ServerConnection], None] | None = None, **settings: Any
) -> Iterator[int]:
    """Answers every observation with a chunk; `ends`: says nothing and ends the connection with this code."""

    def answers(connection: ServerConnection) -> None:
        if ends:
            return connection.close(ends, "no robots")
        connection.send(msgpack_numpy.packb(greeting or {}))
        for _ in connection:
            connection.send(msgpack_numpy.packb({"actions": CHUNK}))

    with serve(talk or answers, "127.0.0.1", 0, compression=None, max_size=None, **settings) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.socket.getsockname()[1]
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def tcp_server(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """Whatever may listen on a port; `talk` is given every connection, which ends when it returns."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def run() -> None:
            while True:
                try:
                    guest, _ = door.accept()
                except OSError:
                    return
                with guest:
                    guest.settimeout(5)
                    try:
                        talk(guest)
                    except OSError:
                        continue

        thread = threading.Thread(target=run)
        thread.start()
        yield door.getsockname()[1]
        door.shutdown(socket.SHUT_RDWR)
        door.close()
        thread.join()


def says(answer: bytes) -> Callable[[socket.socket], None]:
    def talk(guest: socket.socket) -> None:
        guest.recv(4096)
        guest.sendall(answer)

    return talk


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=robot -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    return folder


def server_side(certificate: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


def raised(url: str, **settings: Any) -> tuple[LightwamError, float]:
    """What a client raises that has many tries and much time, and how many seconds it took."""
    began = time.monotonic()
    settings = {"attempts": 50, "timeout_seconds": 20.0} | settings
    with Client(url, **settings) as client, pytest.raises(LightwamError) as caught:
        client.act({})
    return caught.value, time.monotonic() - began


# --- proxies


@pytest.mark.parametrize(
    "host", ["localhost", "robot.localhost", "127.0.0.1", "127.9.8.7", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_no_proxy_leads_to_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTPS_PROXY", "socks_proxy"):
        monkeypatch.setenv(name, "http://10.1.1.1:3128")
    assert proxy_for(f"ws://{host}:8000") is None
    assert proxy_for(f"wss://{host}:8000") is None
    assert proxy_for("ws://10.0.0.3:8000") is not None


@pytest.mark.parametrize(
    ("exceptions", "host", "excepted"),
    [
        ("*", "any.host", True),
        ("arm.lab", "arm.lab", True),
        (".lab, other", "arm.lab", True),
        ("lab", "arm.lab", True),
        ("*.lab", "arm.lab", True),
        ("LAB", "Arm.Lab", True),
        ("rm.lab", "arm.lab", False),
        ("arm.lab:8000", "arm.lab", True),
        ("arm.lab:9000", "arm.lab", False),
        ("10.0.0.0/8", "10.7.7.7", True),
        ("10.0.0.0/8", "11.7.7.7", False),
        ("192.168.1.4", "192.168.1.4", True),
        ("fd00::/8", "fd00::5", True),
        ("[fd00::5]:8000", "fd00::5", True),
        ("", "arm.lab", False),
        (" , ", "arm.lab", False),
    ],
)
def test_hosts_in_no_proxy_are_reached_directly(exceptions: str, host: str, excepted: bool) -> None:
    assert is_excepted(host, 8000, exceptions) == excepted


def test_the_variable_that_counts_is_named_and_passwords_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@10.1.1.1:3128")
    found = proxy_for("ws://robot:8000")
    assert found == Proxy("http://me:secret@10.1.1.1:3128", "HTTP_PROXY")
    assert str(found) == "http://10.1.1.1:3128 (from HTTP_PROXY)"
    assert proxy_for("wss://robot:8000") is None
    monkeypatch.setenv("socks_proxy", "socks5://10.1.1.2:1080")
    assert proxy_for("ws://robot:8000") == Proxy("socks5://10.1.1.2:1080", "socks_proxy")
    monkeypatch.setenv("NO_PROXY", "robot")
    assert proxy_for("ws://robot:8000") is None


@pytest.mark.parametrize("variable", ["http_proxy", "HTTPS_PROXY", "socks_proxy", "ws_proxy"])
def test_a_server_on_this_machine_is_reached_in_spite_of_them(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with openpi_server() as port, Client(f"ws://127.0.0.1:{port}") as client:
        assert client.act({}).shape == (3, 2)


def test_faults_of_a_proxy_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    error, _ = raised("ws://robot.invalid:8000", attempts=1)
    assert isinstance(error, ConnectionLost)
    assert "http://127.0.0.1:9 (from http_proxy)" in str(error) and "NO_PROXY=robot.invalid" in str(error)
    with tcp_server(says(b"HTTP/1.1 407 Who are you\r\n\r\n")) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        error, seconds = raised("ws://robot.invalid:8000")
        assert isinstance(error, CannotConnect) and "407" in str(error) and "from http_proxy" in str(error)
        assert seconds < 10
    with tcp_server(says(b"HTTP/1.1 503 Later\r\n\r\n")) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        error, _ = raised("ws://robot.invalid:8000", attempts=2)
        assert isinstance(error, ConnectionLost) and "from http_proxy" in str(error)
    with tcp_server(says(b"")) as port:  # it ends every connection, as one that is being restarted
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        error, _ = raised("ws://robot.invalid:8000", attempts=2)
        assert isinstance(error, ConnectionLost) and "from http_proxy" in str(error)
    with tcp_server(says(b"SSH-2.0-OpenSSH_9.6\r\n")) as port:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
        error, _ = raised("ws://robot.invalid:8000")
        assert isinstance(error, CannotConnect) and "is not one" in str(error)
        monkeypatch.setenv("http_proxy", f"https://127.0.0.1:{port}")
        error, _ = raised("ws://robot.invalid:8000")
        assert isinstance(error, CannotConnect) and "the proxy https://" in str(error) and "server" not in error.what
    for address in ("ftp://me:secret@10.1.1.1:3", "me:secret@10.1.1.1:3"):
        monkeypatch.setenv("http_proxy", address)
        error, _ = raised("ws://robot.invalid:8000")
        assert isinstance(error, ConfigError) and "10.1.1.1:3 (from http_proxy)" in str(error)
        assert "secret" not in str(error)


def test_a_missing_package_for_socks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_socks", None)
    monkeypatch.setitem(sys.modules, "python_socks.sync", None)
    import websockets.sync.client as theirs

    def absent(*_: Any, **__: Any) -> Any:
        raise ImportError("connecting through a SOCKS proxy requires python-socks")

    monkeypatch.setattr(theirs, "connect_socks_proxy", absent)
    monkeypatch.setenv("socks_proxy", "socks5://127.0.0.1:7890")
    error, seconds = raised("ws://robot.invalid:8000")
    assert isinstance(error, ConfigError) and "pip install python-socks" in error.next_step and seconds < 10
    assert "from socks_proxy" in str(error)


# --- faults that last


def test_tls_at_one_end_alone(certificate: Path) -> None:
    with openpi_server(ssl=server_side(certificate)) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}")
        assert isinstance(error, CannotConnect) and "use wss:// instead of ws://" in str(error) and seconds < 10
    with openpi_server() as port:
        error, seconds = raised(f"wss://127.0.0.1:{port}")
        assert isinstance(error, CannotConnect) and "use ws:// instead of wss://" in str(error) and seconds < 10


def test_a_certificate_that_is_not_trusted(certificate: Path) -> None:
    with openpi_server(ssl=server_side(certificate)) as port:
        error, seconds = raised(f"wss://127.0.0.1:{port}")
        assert isinstance(error, CannotConnect) and "not trusted" in str(error) and "cafile" in str(error)
        assert seconds < 10
        error, _ = raised(f"wss://localhost:{port}", ssl_context=trusting(certificate))  # a name that it does not bear
        assert isinstance(error, CannotConnect)
        with Client(f"wss://127.0.0.1:{port}", ssl_context=trusting(certificate)) as client:
            assert client.act({}).shape == (3, 2)
    with pytest.raises(ConfigError, match="wss://"):
        Client("ws://127.0.0.1:8000", ssl_context=trusting(certificate))


def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"J\x00\x00\x00\x0a8.0.30\x00", "does not speak HTTP"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00", "does not speak HTTP"),  # gRPC; no end of a line
        (b"HTTP/1.0 200 OK\r\n\r\nhi", "is an HTTP server"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nlost", "HTTP 404"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "HTTP 200"),
        (b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n\r\n", "HTTP 426"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: something\r\nConnection: Upgrade\r\n\r\n", "not a websocket"),
    ],
)
def test_another_kind_of_server_is_refused_at_once(answer: bytes, word: str) -> None:
    with tcp_server(says(answer)) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}")
    assert isinstance(error, CannotConnect) and word in str(error) and seconds < 10


def test_a_program_that_speaks_first_is_refused_at_once() -> None:
    """It has gone before the client has said a word, or says what no line of HTTP is."""
    with tcp_server(lambda guest: guest.sendall(b"J\x00\x00\x00\x0a8.0.30\x00mysql_native_password")) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}")
    assert isinstance(error, CannotConnect) and "does not speak HTTP" in str(error) and seconds < 10


@pytest.mark.parametrize("lost", [None, AssertionError(), BrokenPipeError()])
def test_a_disconnect_in_the_handshake_is_a_lost_connection(
    lost: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import websockets.sync.client as theirs
    from websockets.exceptions import ConnectionClosedError

    def leaves(*_: Any, **__: Any) -> Any:
        raise lost or ConnectionClosedError(None, None)

    monkeypatch.setattr(theirs, "connect", leaves)
    error, _ = raised("ws://127.0.0.1:9", attempts=2)
    assert isinstance(error, ConnectionLost)


@pytest.mark.parametrize(
    "greeting", ["welcome", '{"op": "serverInfo", "name": "foxglove"}', b"\xc1", msgpack_numpy.packb([1, 2])]
)
def test_another_websockets_greeting_is_refused_at_once(greeting: str | bytes) -> None:
    def talk(connection: ServerConnection) -> None:
        connection.send(greeting)
        connection.recv(10)

    with openpi_server(talk=talk) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}")
    assert isinstance(error, CannotConnect) and "begin" in str(error) and seconds < 10
    assert str(error.where) == f"ws://127.0.0.1:{port}"


def test_a_server_before_which_another_asks_for_credentials() -> None:
    with tcp_server(says(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 6\r\n\r\n<html>")) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}")
    assert isinstance(error, Refused) and error.code == "401" and "credentials" in error.what and seconds < 10
    assert "<html>" not in str(error)


@pytest.mark.parametrize("address", ["ws://robot:8000/#x", "ws://" + "a" * 80 + ":8000"])
def test_an_address_that_cannot_be_one_is_no_fault_of_a_server(address: str) -> None:
    with pytest.raises(ConfigError, match="url must be ws://HOST:PORT"):
        Client(address)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_origin_or_key_is_raised_at_once(status: int) -> None:
    said = {"error": {"code": "unauthorized", "where": "the Origin header", "message": "no pages", "expected": "a key"}}

    def refuse(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(HTTPStatus(status), json.dumps(said))

    with openpi_server(process_request=refuse) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}")
    assert isinstance(error, Refused) and error.code == "unauthorized" and seconds < 10


@pytest.mark.parametrize(("code", "lasts"), [(1008, True), (1002, True), (4001, True), (1001, False), (1013, False)])
def test_a_connection_that_ends_before_its_greeting(code: int, lasts: bool) -> None:
    with openpi_server(ends=code) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}", attempts=2)
    assert isinstance(error, CannotConnect if lasts else ConnectionLost) and seconds < 10


def test_a_server_that_never_greets_is_another_kind_after_some_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try proves nothing: a server that thinks on its event loop greets late."""
    late = threading.Event()

    def talk(connection: ServerConnection) -> None:
        late.wait(20)

    with serve(talk, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        with Client(f"ws://127.0.0.1:{running.socket.getsockname()[1]}", timeout_seconds=0.2, attempts=1) as client:
            for _ in range(client_module.MAX_SILENT - 1):
                with pytest.raises(ConnectionLost, match="sends no greeting"):
                    client.act({})
                client._not_before = 0.0
            with pytest.raises(CannotConnect, match="XPolicyLab"):
                client.act({})
        late.set()
        running.shutdown()
        thread.join()


def test_a_player_raises_permanent_errors_and_holds_through_temporary_ones() -> None:
    def hold(last: np.ndarray | None) -> np.ndarray:
        return np.zeros(2, np.float32)

    with tcp_server(says(b"SSH-2.0-OpenSSH_9.6\r\n")) as port, Client(f"ws://127.0.0.1:{port}") as client:
        player = ChunkPlayer(BackgroundRequester(client.act, client.connect), Play(), hold)
        with pytest.raises(CannotConnect, match="does not speak HTTP"):
            for _ in range(500):
                player.action(dict)
                time.sleep(0.01)
        player.close()
    # a server that is gone first, and then another kind of one in its place
    replies: list[Exception] = [ConnectionLost("gone"), CannotConnect("ws://robot:1", "not openpi's", "HTTP", "")]

    def fail() -> None:
        raise replies.pop(0) if len(replies) > 1 else replies[0]

    player = ChunkPlayer(BackgroundRequester(lambda seen: (fail(), CHUNK)[1], fail), Play(), hold)
    with pytest.raises(CannotConnect, match="not openpi's"):
        for _ in range(500):
            player.action(dict)
            time.sleep(0.01)
    assert player.stats().connection_errors >= 1 and player.stats().held >= 1
    player.close()


# --- sizes


def test_the_client_uses_the_message_limit_of_the_greeting() -> None:
    small, large = {"x": np.zeros(500, np.uint8)}, {"x": np.zeros(2000, np.uint8)}
    with openpi_server({MESSAGE_BYTES: 1000}) as port, Client(f"ws://127.0.0.1:{port}") as client:
        assert client.act(small).shape == (3, 2)
        with pytest.raises(WireError, match="observation must be at most") as caught:
            client.act(large)
        assert "at most 1000 bytes" in caught.value.what and "--limits.message-bytes" in caught.value.next_step
        assert client.act(small).shape == (3, 2), "the connection is still there"
    with openpi_server({MESSAGE_BYTES: 5000}) as port, Client(f"ws://127.0.0.1:{port}", message_bytes=1000) as client:
        assert client.act(large).shape == (3, 2)
    with openpi_server() as port, Client(f"ws://127.0.0.1:{port}", message_bytes=1000) as client:
        with pytest.raises(WireError, match="observation must be at most") as caught:
            client.act(large)
        assert "message_bytes" in caught.value.next_step


def test_an_answer_over_the_limit_is_not_retried() -> None:
    large = {"actions": np.ones((2000, 2), np.float32)}

    def talk(connection: ServerConnection) -> None:
        connection.send(msgpack_numpy.packb({}))
        for _ in connection:
            connection.send(msgpack_numpy.packb(large))

    with openpi_server(talk=talk) as port:
        error, seconds = raised(f"ws://127.0.0.1:{port}", message_bytes=1000)
        assert type(error) is WireError and "message_bytes" in error.next_step and seconds < 10
        with Client(f"ws://127.0.0.1:{port}", message_bytes=100_000) as client:
            assert client.act({}).shape == (2000, 2)


def test_an_answer_that_cannot_be_read_is_the_servers_fault() -> None:
    def talk(connection: ServerConnection) -> None:
        connection.send(msgpack_numpy.packb({}))
        connection.recv(10)
        connection.send(b"\xc1")

    with openpi_server(talk=talk) as port:
        error, _ = raised(f"ws://127.0.0.1:{port}")
    assert type(error) is WireError and "server's answer" in error.what and "ws://" in str(error.where)
