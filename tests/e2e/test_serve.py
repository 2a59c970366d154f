"""The server over real sockets: other people's clients, many at once, wrong ones, and its end."""

import asyncio
import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import json_numpy
import numpy as np
import pytest
from inspect_robots_xpolicylab._client import PolicyClient
from inspect_robots_xpolicylab._protocol import WsError
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from serving import LIBERO, message, mirror, running, serving, stop
from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from lightwam.errors import ConfigError
from lightwam.serving.access import Keys
from lightwam.serving.inspect_client import inspect_client
from lightwam.serving.refusals import MAX_KEPT, RefusalLog
from lightwam.serving.server import NewWeights, Server
from lightwam.serving.settings import Serving
from lightwam.types import Observation
from lightwam.wire.limits import Limits
from lightwam.wire.robot_schemas import schemas_for

# openpi's and XPolicyLab's clients, and some tests, connect in the way of before websockets 17
pytestmark = pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
KEY = "k" * 40


OPEN: list[ClientConnection] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """openpi's client cannot be closed by those who use it."""
    yield
    while OPEN:
        connection = OPEN.pop()
        connection.close()
        connection.recv_events_thread.join(10)  # on a busy machine its socket would be open still
        connection.socket.close()


def openpi(server: Server, key: str | None = None) -> WebsocketClientPolicy:
    client = WebsocketClientPolicy("127.0.0.1", server.ports["openpi"], api_key=key)
    OPEN.append(client._ws)
    return client


def raw(server: Server, name: str = "openpi", **options: Any) -> ClientConnection:
    OPEN.append(connect(f"ws://127.0.0.1:{server.ports[name]}", compression=None, max_size=None, **options))
    return OPEN[-1]


def ask(server: Server, method: str, path: str, body: Any = None, headers: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["openpi"], timeout=10)
    connection.request(method, path, body, headers or {})
    with contextlib.closing(connection):
        answer = connection.getresponse()
        return answer.status, answer.read()


class Gate:
    """A policy that thinks until it is let go."""

    def __init__(self) -> None:
        self.entered, self.open = threading.Event(), threading.Event()

    def __call__(self, observations: Sequence[Observation]) -> np.ndarray:
        self.entered.set()
        assert self.open.wait(20)
        return mirror(observations)


def test_openpi_client_is_served() -> None:
    with serving() as server:
        client = openpi(server)
        assert client.get_server_metadata() == {"recipe": "test"}
        first, second = client.infer(message(3)), client.infer(message(4))
    assert first["actions"].shape == (3, 7)
    assert (first["actions"][:, :6] == 3).all()
    assert (second["actions"][:, :6] == 4).all()
    assert "prev_total_ms" not in first["server_timing"]
    assert second["server_timing"]["prev_total_ms"] >= first["policy_timing"]["infer_ms"] > 0


def test_an_error_is_one_text_and_ends_only_that_connection() -> None:
    with serving() as server:
        well, ill = openpi(server), raw(server)
        ill.recv()
        ill.send(msgpack_numpy.packb({"prompt": "nothing else"}))
        told = json.loads(ill.recv())
        assert set(told) == {"code", "where", "message", "expected"}
        assert told["code"] == "bad_message"
        assert "observation/image" in told["where"] + told["message"] + told["expected"]
        with pytest.raises(ConnectionClosed) as closed:
            ill.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1011
        assert well.infer(message(2))["actions"][0, 0] == 2


def test_internal_errors_are_only_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def broken(observations: Sequence[Observation]) -> np.ndarray:
        raise ZeroDivisionError("a secret of the house")

    with serving(broken) as server, pytest.raises(RuntimeError) as told:
        openpi(server).infer(message())
    assert "secret" not in str(told.value)
    assert "internal" in str(told.value)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert record.fields["number"] in str(told.value)  # type: ignore[attr-defined]


def test_xpolicylabs_client_is_served() -> None:
    with serving() as server:
        client = PolicyClient(f"ws://127.0.0.1:{server.ports['xpolicylab']}", "evaluation", connect_attempts=1)
        client.connect()
        client.reset("one")
        for step in range(3):
            reply = client.infer(message(step), trial_id="one", step=step)
            assert np.asarray(reply.payload["actions"])[0, 0] == step
            assert reply.payload["latency_ms"] > 0
        with pytest.raises(WsError, match="infer_failed"):
            client.infer({"nothing": 1}, trial_id="one", step=3)
        client.infer(message(5), trial_id="one", step=4)  # a bad frame costs its own answer, not the connection
        client.trial_end("one")
        client.close()


def test_plain_http_is_served() -> None:
    with serving() as server:
        assert ask(server, "GET", "/act")[0] == 200
        status, body = ask(server, "POST", "/act", json_numpy.dumps(message(6)))
        assert status == 200
        assert json_numpy.loads(body)["actions"][2, 5] == 6
        for bad, code in ((b"{", 400), (b"[]", 400), (json_numpy.dumps({"prompt": "x"}), 400)):
            status, body = ask(server, "POST", "/act", bad)
            assert (status, json.loads(body)["error"]["code"]) == (code, "bad_message")
        assert ask(server, "PUT", "/act")[0] == 405
        assert ask(server, "GET", "/elsewhere")[0] == 404


def test_clients_that_want_a_bare_list_get_one_over_http(tmp_path: Path) -> None:
    """AgiBot GO-1's client makes an array of the JSON that it is answered, and sends a state of one row."""
    (tmp_path / "go1.toml").write_text("""
name = "go1"
prompt = ["instruction"]
state = [{ keys = "state", row = true }]
reply = "list"
cameras = { agentview = "top", wrist = "left" }
""")
    picture = np.zeros((8, 8, 3), np.uint8)
    sent = {"top": picture, "left": picture, "instruction": "go", "state": np.full((1, 8), 4.0), "ctrl_freqs": [30]}
    with serving(schemas_of=schemas_for((str(tmp_path / "go1.toml"),), *LIBERO, {})) as server:
        status, body = ask(server, "POST", "/act", json_numpy.dumps(sent))
        assert status == 200
        assert np.array(json.loads(body)).tolist() == np.full((3, 7), 4.0).tolist()


def test_nothing_is_mixed_up_between_clients() -> None:
    def robot(server: Server, number: int) -> list[float]:
        client = openpi(server)
        return [client.infer(message(1000 * number + i))["actions"][1, 3] for i in range(20)]

    with serving() as server, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(robot, [server] * 12, range(12)))
    assert answers == [[1000 * number + i for i in range(20)] for number in range(12)]


def test_pings_and_health_are_answered_while_the_model_thinks() -> None:
    gate = Gate()
    with serving(gate) as server:
        client = raw(server)
        client.recv()
        client.send(msgpack_numpy.packb(message()))
        assert gate.entered.wait(10)
        assert client.ping().wait(10)
        assert ask(server, "GET", "/healthz") == (200, b"OK\n")
        measured = ask(server, "GET", "/metrics")[1].decode()
        (thinking,) = (line for line in measured.splitlines() if line.startswith("lightwam_thinking_seconds"))
        assert float(thinking.split()[1]) > 0
        assert 'lightwam_clients{protocol="openpi"} 1.0' in measured
        gate.open.set()
        client.recv()
        measured = ask(server, "GET", "/metrics")[1].decode()
        assert 'lightwam_requests_total{outcome="ok",protocol="openpi"} 1.0' in measured


def test_without_the_key_only_healthz_answers() -> None:
    with serving(keys=[KEY]) as server:
        assert openpi(server, KEY).infer(message(1))["actions"][0, 0] == 1
        for name in ("openpi", "xpolicylab"):
            with pytest.raises(InvalidStatus) as refused:
                raw(server, name, additional_headers={"Authorization": f"Api-Key {KEY[:-1]}x"})
            assert refused.value.response.status_code == 401
        for method, path in (("POST", "/act"), ("GET", "/metrics"), ("GET", "/anything")):
            assert ask(server, method, path, b"{}")[0] == 401
        assert ask(server, "GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})[0] == 200
        assert ask(server, "GET", "/healthz")[0] == 200


def test_a_web_page_cannot_drive_the_robot() -> None:
    with serving() as server:
        with pytest.raises(InvalidStatus) as refused:
            raw(server, origin="http://evil.example")
        assert refused.value.response.status_code == 403
        assert ask(server, "POST", "/act", b"{}", {"Origin": "http://evil.example"})[0] == 403


def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    trust = ssl.create_default_context(cafile=str(certificate))
    with serving(tls_certificate=certificate, tls_key=key) as server:
        with connect(f"wss://127.0.0.1:{server.ports['openpi']}", ssl=trust, compression=None) as client:
            client.recv()
            client.send(msgpack_numpy.packb(message(9)))
            assert msgpack_numpy.unpackb(client.recv())["actions"][0, 0] == 9
        with pytest.raises((OSError, EOFError, InvalidMessage)):
            raw(server, open_timeout=3)


def test_a_full_queue_says_busy() -> None:
    gate = Gate()
    with serving(gate, max_queue=1, max_batch=1) as server:
        first, second, third = (raw(server) for _ in range(3))
        for client in (first, second, third):
            client.recv()
        first.send(msgpack_numpy.packb(message(1)))
        assert gate.entered.wait(10)
        second.send(msgpack_numpy.packb(message(2)))
        while "lightwam_requests_waiting 1.0" not in ask(server, "GET", "/metrics")[1].decode():
            time.sleep(0.01)
        third.send(msgpack_numpy.packb(message(3)))
        assert json.loads(third.recv())["code"] == "busy"
        gate.open.set()
        assert [msgpack_numpy.unpackb(client.recv())["actions"][0, 0] for client in (first, second)] == [1, 2]


def test_too_many_connections_are_refused() -> None:
    with serving(max_clients=2) as server:
        first, _second = openpi(server), openpi(server)
        with pytest.raises(InvalidStatus) as refused:
            raw(server)
        assert refused.value.response.status_code == 503
        first._ws.close()
        deadline = time.monotonic() + 10
        while True:  # a place is free as soon as the server has noticed
            try:
                raw(server).close()
                break
            except InvalidStatus:
                assert time.monotonic() < deadline
                time.sleep(0.05)


def test_a_message_over_the_limit_ends_its_connection() -> None:
    with serving(limits=Limits(message_bytes=50_000)) as server:
        client, well = raw(server), openpi(server)
        client.recv()
        client.send(b"x" * 60_000)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert ask(server, "POST", "/act", b"x" * 60_000)[0] == 413
        assert well.infer(message(1))["actions"][0, 0] == 1


@pytest.mark.parametrize("size", [33 << 20, 48 << 20])
def test_a_client_that_is_still_sending_gets_the_limit(size: int, caplog: pytest.LogCaptureFixture) -> None:
    """A connection that is closed with bytes unread is reset, and what was said before is lost."""
    with serving() as server:
        client = raw(server)
        client.recv()
        with pytest.raises(ConnectionClosed) as closed:
            client.send(bytes(size))
            client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert str(32 << 20) in closed.value.rcvd.reason and "--limits.message-bytes" in closed.value.rcvd.reason
        status, body = ask(server, "POST", "/act", bytes(size))
        assert status == 413 and str(32 << 20) in json.loads(body)["error"]["expected"]
        assert openpi(server).infer(message(1))["actions"][0, 0] == 1
    (line,) = (record for record in caplog.records if record.message == "refused")
    assert vars(line)["fields"]["setting"] == "--limits.message-bytes"


def answered(server: Server, sent: bytes, seconds: float = 10.0) -> bytes:
    """What comes of raw bytes, until the server ends the connection."""
    with socket.create_connection(("127.0.0.1", server.ports["openpi"]), timeout=seconds) as door:
        door.sendall(sent)
        found = b""
        while piece := door.recv(65536):
            found += piece
    return found


def test_a_client_that_expects_100_continue_gets_it() -> None:
    head = b"POST /act HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
    body = json_numpy.dumps(message(3, 800)).encode()
    assert len(body) > 1 << 20
    with serving() as server:
        with socket.create_connection(("127.0.0.1", server.ports["openpi"]), timeout=10) as door:
            door.sendall(head % len(body))
            assert door.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            door.sendall(body)
            assert door.recv(1000).startswith(b"HTTP/1.1 200 ")
        for length, expects, status in ((1 << 40, b"100-continue", b"413"), (2, b"cake", b"417")):
            with socket.create_connection(("127.0.0.1", server.ports["openpi"]), timeout=10) as door:
                door.sendall(head.replace(b"100-continue", expects) % length)
                assert door.recv(1000).startswith(b"HTTP/1.1 " + status), "the final answer, and nothing before it"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"PUT /act HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405),
        (b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", 408),
        (b"POST /act HTTP/1.1\r\nHost: x\r\n\r\n", 411),
        (b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /elsewhere HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /act HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"robot\r\n\r\n", 400),
        (b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!", 400),
        (b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Encoding: zstd\r\nContent-Length: 9\r\n\r\nnot zstd!", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", 400),
    ],
)
def test_every_http_error_has_the_same_form(sent: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    with serving(handshake_seconds=0.5) as server:
        head, _, body = answered(server, sent.replace(b"Host: x", b"Host: x\r\nConnection: close", 1)).partition(
            b"\r\n\r\n"
        )
        assert head.split()[1] == str(status).encode()
        assert b"application/json" in head
        error = json.loads(body)["error"]
        assert set(error) == {"code", "where", "message", "expected"} and error["code"] == "bad_message"
    # aiohttp's own, which the server's log leaves out, tells of a body that breaks
    assert not [one for one in caplog.records if one.exc_info and one.name.startswith("lightwam")]


def test_a_refusal_is_logged_once_with_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    """Robots try again and again; the person who runs the server must see it, and only once."""
    told: list[str] = []
    caplog.set_level("INFO", "lightwam.serve")
    with serving(max_clients=3) as server:
        server.refusals._on_refusal = told.append
        for _ in range(3):
            assert ask(server, "POST", "/act", b"{}", {"Origin": "http://page"})[0] == 403
            assert ask(server, "POST", "/act", b"{}")[0] == 400
        held = [raw(server) for _ in range(3)]
        for _ in range(2):
            with pytest.raises(InvalidStatus):
                raw(server)
        assert len(held) == 3
    with serving(keys=[KEY]) as server:
        for _ in range(3):
            assert ask(server, "POST", "/act", b"{}")[0] == 401
    lines = [vars(record)["fields"] for record in caplog.records if record.message == "refused"]
    settings = [line["setting"] for line in lines]
    assert [settings.count(one) for one in ("--api-keys", "--max-clients")] == [2, 1]
    assert len(lines) == 4 and any("--robot-schemas" in setting for setting in settings)
    (origin,) = (line for line in lines if "Origin" in line["why"])
    assert "suppress_origin=True" in origin["expected"]
    assert len(told) == 3 and "suppress_origin=True" in told[0]


def test_a_client_check_prints_refusals_and_continues() -> None:
    """Without that it would wait in silence while the robot's client is turned away."""
    said: list[str] = []
    listening, servers = threading.Event(), list[Server]()

    def ready(server: Server) -> None:
        servers.append(server)
        listening.set()

    settings = Serving(port=0, xpolicylab_port=0, limits=Limits(message_bytes=5000))
    check = inspect_client(schemas_for(("libero",), *LIBERO, {}), settings, Keys(), 1, said.append, ready)
    with ThreadPoolExecutor(1) as thread:
        fits = thread.submit(asyncio.run, check)
        assert listening.wait(10)
        assert ask(servers[0], "POST", "/act", b"{}", {"Origin": "http://robot"})[0] == 403
        assert ask(servers[0], "POST", "/act", b"x" * 6000)[0] == 413
        assert ask(servers[0], "POST", "/act", json_numpy.dumps(message(1)))[0] == 400
        assert fits.result(20)
    assert "suppress_origin=True" in said[0] and "5000" in said[1] and said[2].startswith("message 1, over http:")


def test_a_client_at_the_other_protocols_port_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as server:
        raw(server, "xpolicylab").close()
        other = raw(server)
        other.recv()
        hello = {"message_type": "hello", "message_id": "1", "evaluation_id": "2", "payload": {}}
        other.send(msgpack_numpy.packb(hello))
        assert "--xpolicylab-port" in json.loads(other.recv())["message"]
    whys = [vars(record)["fields"]["why"] for record in caplog.records if record.message == "refused"]
    assert [any(word in why for why in whys) for word in ("XPolicyLab's protocol", "send first")] == [True, True]


def test_the_refusal_log_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    refusals = RefusalLog()
    for number in range(MAX_KEPT + 50):
        refusals.add(f"10.0.0.{number}/a1", "no valid API key", setting="--api-keys")
    assert len(refusals._logged) == MAX_KEPT


def test_the_log_says_why_a_connection_was_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightwam.serve")
    shake = (b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
             b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")  # fmt: skip
    with serving(heartbeat_seconds=0.4) as server:
        raw(server).close()
        answered(server, shake)  # which answers no ping
        answered(server, shake + b"\x83\x80\0\0\0\0")  # a kind of frame that there is not
    whys = [vars(record)["fields"]["why"] for record in caplog.records if record.message == "left"]
    assert [sum(word in why for why in whys) for word in ("client closed", "ping unanswered", "protocol")] == [1, 1, 1]


def test_a_silent_client_is_kept_as_long_as_by_openpis_server() -> None:
    """That one pings after 20 s and waits 20 s for the answer; aiohttp waits half of its heartbeat."""
    assert 1.5 * Serving().heartbeat_seconds >= 40


def test_a_silent_connection_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "lightwam.serve")
    with serving(handshake_seconds=0.3) as server:
        door = ("127.0.0.1", server.ports["openpi"])
        talking = openpi(server)
        with socket.create_connection(door, timeout=10) as silent, contextlib.suppress(ConnectionResetError):
            assert silent.recv(1) == b""
        with socket.create_connection(door, timeout=10) as slow:
            slow.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
            assert b" 408 " in slow.recv(1000)
        told = [vars(record)["fields"] for record in caplog.records if record.getMessage() == "refused"]
        assert [one["why"] for one in told] == [
            "a connection sent no request in time",
            "the whole body did not arrive in time",
        ]
        assert {one["setting"] for one in told} == {"--handshake-seconds"}
        assert talking.infer(message(1))["actions"][0, 0] == 1


def test_stopping_answers_waiting_requests_and_refuses_new_ones() -> None:
    gate = Gate()
    with serving(gate) as server:
        client = raw(server)
        client.recv()
        client.send(msgpack_numpy.packb(message(5)))
        assert gate.entered.wait(10)
        with socket.create_connection(("127.0.0.1", server.ports["openpi"]), timeout=10) as health:
            time.sleep(0.3)  # it is accepted, and asks when the server has begun to stop
            stop(server)
            deadline = time.monotonic() + 10
            while not server.draining:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            health.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b" 503 " in health.recv(1000)
        gate.open.set()
        assert msgpack_numpy.unpackb(client.recv())["actions"][0, 0] == 5
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001


def test_a_hanging_model_does_not_keep_the_server() -> None:
    gate = Gate()
    with serving(gate, drain_seconds=0.2) as server:
        client = raw(server)
        client.recv()
        client.send(msgpack_numpy.packb(message(5)))
        assert gate.entered.wait(10)
        stop(server)
        deadline = time.monotonic() + 15
        while server in running():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert server.drain_timed_out
        gate.open.set()


def test_newer_weights_take_over_without_a_lost_request() -> None:
    tries: list[int] = []

    def newer(step: int) -> NewWeights | None:
        tries.append(step)
        if len(tries) == 1:
            raise OSError("half a checkpoint")
        return NewWeights(lambda seen: mirror(seen) + 100, 2) if step == 1 else None

    with serving(load_newer=newer, follow_seconds=0.05) as server:
        client = openpi(server)
        answers = []
        deadline = time.monotonic() + 15
        while (not answers or answers[-1] < 100) and time.monotonic() < deadline:
            answers.append(client.infer(message(1))["actions"][0, 0])
        measured = ask(server, "GET", "/metrics")[1].decode()
    assert answers[0] == 1
    assert answers[-1] == 101
    assert server.metadata == {"recipe": "test", "step": 2}
    assert 'lightwam_reloads_total{outcome="failed"} 1.0' in measured
    assert "lightwam_checkpoint_step 2.0" in measured


def test_a_client_that_does_not_read_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING", "lightwam.serve")

    def flood(server: Server) -> socket.socket:
        """Ask for pongs and never read one; the server's own buffer is small, so that it is full at once."""
        deaf = socket.create_connection(("127.0.0.1", server.ports["openpi"]), timeout=10)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")  # fmt: skip
        deaf.setblocking(False)
        pings = left = b"\x89\xfd\0\0\0\0" + b"x" * 125
        deadline = time.monotonic() + 30
        while not any(one.get_write_buffer_size() for one in server._sockets.values()):
            assert time.monotonic() < deadline
            for one in list(server._sockets.values()):
                one.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            try:
                left = left[deaf.send(left) :] or pings * 500
            except BlockingIOError:
                time.sleep(0.01)
        return deaf

    with serving(heartbeat_seconds=60.0) as server, flood(server):
        began = time.monotonic()
        stop(server)
        while server.ports and time.monotonic() - began < 20 and server in running():
            time.sleep(0.05)
        assert server not in running()
    with serving(heartbeat_seconds=0.4) as server, flood(server):
        deadline = time.monotonic() + 15
        while 'lightwam_clients{protocol="openpi"} 0.0' not in ask(server, "GET", "/metrics")[1].decode():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "cut off: it does not read" in caplog.messages


def test_clients_without_a_key_do_not_count_as_connected() -> None:
    with serving(keys=[KEY], max_clients=2) as server:
        held = [http.client.HTTPConnection("127.0.0.1", server.ports["openpi"], timeout=10) for _ in range(4)]
        for one in held:
            one.request("GET", "/metrics")
            assert one.getresponse().status == 401
        assert openpi(server, KEY).infer(message(1))["actions"][0, 0] == 1
        assert ask(server, "GET", "/healthz") == (200, b"OK\n")
        for one in held:
            one.close()


@pytest.mark.parametrize("answer", ["nan", "short"])
def test_a_robot_never_gets_an_invalid_answer(answer: str) -> None:
    def broken(observations: Sequence[Observation]) -> np.ndarray:
        return mirror(observations) * np.nan if answer == "nan" else mirror(observations)[:0]

    with serving(broken) as server:
        for _ in range(2):  # and the server goes on
            with pytest.raises(RuntimeError, match="internal"):
                openpi(server).infer(message(1))
        assert ask(server, "GET", "/healthz")[0] == 200


def test_messages_that_cannot_be_decoded_are_counted() -> None:
    with serving() as server:
        client = raw(server)
        client.recv()
        client.send(b"\xc1")
        client.recv()
        ask(server, "POST", "/act", b"{")
        measured = ask(server, "GET", "/metrics")[1].decode()
    for name in ("openpi", "http"):
        assert f'lightwam_requests_total{{outcome="bad_message",protocol="{name}"}} 1.0' in measured


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_batch", 0), ("handshake_seconds", -1.0), ("port", 70_000), ("limits", Limits(message_bytes=0))],
)
def test_invalid_server_settings_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')}"):
        Serving(**{name: value})


def test_the_error_for_a_used_port_names_it() -> None:
    with (
        serving() as server,
        pytest.raises(ConfigError, match=f"127.0.0.1:{server.ports['openpi']}"),
        serving(xpolicylab_port=server.ports["openpi"]),
    ):
        pass
