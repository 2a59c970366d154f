"""The openpi client against a small server on 127.0.0.1 whose messages are `openpi_client`'s own."""

import json
import os
import signal
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
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from lightwam.errors import ConfigError, WireError
from lightwam.robot.background import BackgroundRequester
from lightwam.robot.client import Client
from lightwam.robot.errors import ConnectionLost, Refused, parse_refusal
from lightwam.robot.player import ChunkPlayer, Play

SEEN = {"observation/image": np.arange(12, dtype=np.uint8).reshape(2, 2, 3), "prompt": "push", "state": np.ones(3)}
CHUNK = np.arange(6, dtype=np.float32).reshape(3, 2)
Say = Callable[[dict[str, Any], int], "bytes | str | None"]
"""the observation and its number since the server began, to a frame; None ends the connection without a word"""


def answer(seen: dict[str, Any], number: int) -> bytes:
    return msgpack_numpy.packb({"actions": CHUNK, "got": seen, "number": number})


@contextmanager
def server(
    say: Say,
    *,
    port: int = 0,
    hello: bytes | str | None = None,
    refuse: Any = None,
    max_size: int | None = None,
    stays: bool = False,
) -> Iterator[str]:
    """An openpi server; gives its address."""
    count = iter(range(1000))

    def talk(connection: ServerConnection) -> None:
        try:
            connection.send(msgpack_numpy.packb({"robot": "test"}) if hello is None else hello)
            for message in connection:
                frame = say(msgpack_numpy.unpackb(message), next(count))
                if frame is None:
                    return
                connection.send(frame)
                if isinstance(frame, str) and not stays:
                    return connection.close(1011)
        except ConnectionClosed:
            return

    with serve(talk, "127.0.0.1", port, compression=None, max_size=max_size, process_request=refuse) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"
        finally:
            running.shutdown()
            thread.join()


def test_a_round_trip_of_observation_and_chunk() -> None:
    with server(answer) as url, Client(url) as client:
        assert client.metadata == {"robot": "test"}
        found = client.infer(SEEN)
        assert found["number"] == 0 and found["actions"].dtype == np.float32
        assert np.array_equal(found["actions"], CHUNK)
        assert np.array_equal(found["got"]["observation/image"], SEEN["observation/image"])
        assert found["got"]["prompt"] == "push" and found["got"]["state"].dtype == np.float64
        assert np.array_equal(client.act(SEEN), CHUNK)


def test_the_api_key_is_sent_and_a_wrong_one_is_refused() -> None:
    tries: list[str | None] = []

    def refuse(connection: ServerConnection, request: Any) -> Any:
        tries.append(request.headers.get("Authorization"))
        if tries[-1] != "Api-Key right":
            said = {"code": "unauthorized", "message": "another key is needed", "where": "Authorization"}
            return connection.respond(HTTPStatus.UNAUTHORIZED, json.dumps(said))
        return None

    with server(answer, refuse=refuse) as url:
        with Client(url, api_key="right") as client:
            assert client.act(SEEN).shape == (3, 2)
        with Client(url) as client, pytest.raises(Refused, match="another key") as raised:
            client.act(SEEN)
    assert raised.value.code == "unauthorized" and raised.value.where == "Authorization"
    assert tries == ["Api-Key right", None]


def test_a_refusal_has_its_fields_and_the_next_call_reconnects() -> None:
    said = {
        "code": "bad_shape",
        "where": "observation/image",
        "message": "the picture is flat",
        "expected": "(h, w, 3)",
    }

    def say(seen: dict[str, Any], number: int) -> bytes | str:
        return json.dumps(said) if number == 0 else answer(seen, number)

    with server(say) as url, Client(url) as client:
        with pytest.raises(WireError, match="the picture is flat") as raised:
            client.act(SEEN)
        error = raised.value
        assert isinstance(error, Refused) and error.code == "bad_shape"
        assert (error.where, error.expected) == ("observation/image", "(h, w, 3)")
        assert client.infer(SEEN)["number"] == 1


def test_a_connection_with_a_refusal_is_not_used_again() -> None:
    """The server's good-bye may still be on its way, and would look like a server that is gone."""
    dialled: list[int] = []

    def refuse(connection: ServerConnection, request: Any) -> None:
        dialled.append(1)

    def say(seen: dict[str, Any], number: int) -> bytes | str:
        return "no" if number == 0 else answer(seen, number)

    with server(say, refuse=refuse, stays=True) as url, Client(url) as client:
        with pytest.raises(Refused):
            client.act(SEEN)
        assert client.infer(SEEN)["number"] == 1 and len(dialled) == 2


@pytest.mark.parametrize("text", ["Traceback: it broke", "[1, 2]", '{"message": 3}'])
def test_plain_text_of_another_server_is_the_error(text: str) -> None:
    error = parse_refusal(text)
    assert error.what == text and error.code == "" and error.where is None


def test_a_message_that_ends_the_connection_is_refused() -> None:
    """Too long for the server: it says so by the code of the connection's end, and another try would end alike."""
    with server(answer, max_size=500) as url, Client(url) as client:
        with pytest.raises(Refused) as raised:
            client.act({"picture": np.zeros(1000, np.uint8)})
        assert raised.value.code == "1009"
        assert client.infer({"prompt": "short"})["number"] == 0


def test_a_full_server_is_tried_again() -> None:
    tries: list[int] = []

    def refuse(connection: ServerConnection, request: Any) -> Any:
        tries.append(1)
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "draining") if len(tries) < 3 else None

    with server(answer, refuse=refuse) as url, Client(url) as client:
        assert client.infer(SEEN)["number"] == 0 and len(tries) == 3


def test_busy_is_tried_again_within_the_time() -> None:
    busy = json.dumps({"code": "busy", "message": "the queue is full", "where": "queue", "expected": None})

    def say(seen: dict[str, Any], number: int) -> bytes | str:
        return busy if number < 2 else answer(seen, number)

    with server(say) as url, Client(url) as client:
        assert client.infer(SEEN)["number"] == 2
    with (
        server(lambda seen, number: busy) as url,
        Client(url, timeout_seconds=0.3) as client,
        pytest.raises(ConnectionLost, match="stays busy"),
    ):
        client.act(SEEN)


def test_a_stopping_server_is_a_lost_connection() -> None:
    closing = json.dumps({"code": "closing", "message": "the server is stopping", "where": "", "expected": ""})
    with (
        server(lambda seen, number: closing) as url,
        Client(url) as client,
        pytest.raises(ConnectionLost, match="stopping"),
    ):
        client.act(SEEN)


def test_a_message_over_the_limit_is_not_sent() -> None:
    with server(answer) as url, Client(url) as client, pytest.raises(WireError, match="observation must be at most"):
        client.infer({"images": {str(i): np.zeros((16 * 2**20 - 100,), np.uint8) for i in range(3)}})


def test_refusals_over_http_keep_their_fields() -> None:
    told = parse_refusal(
        '{"error": {"code": "unauthorized", "where": "the header", "message": "no key", "expected": "one"}}'
    )
    assert (told.code, told.where, told.what, told.expected) == ("unauthorized", "the header", "no key", "one")


def test_no_server_is_a_lost_connection_after_some_tries() -> None:
    with server(answer) as url:
        pass
    with Client(url, attempts=2) as client, pytest.raises(ConnectionLost, match="reconnects") as raised:
        client.act(SEEN)
    assert raised.value.where == url
    with Client(url, attempts=100, timeout_seconds=0.2) as client:
        began = time.monotonic()
        with pytest.raises(ConnectionLost):
            client.connect()
        assert time.monotonic() - began < 5


def test_tries_wait_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(answer) as url:
        pass
    client, waits = Client(url, attempts=8, timeout_seconds=100.0), list[float]()
    monkeypatch.setattr(client._closed, "wait", lambda seconds: waits.append(round(seconds, 1)))
    with pytest.raises(ConnectionLost):
        client.connect()
    assert waits[0] == 0 and waits[-1] == 2.0
    assert waits == sorted(waits)


def test_a_late_answer_is_discarded() -> None:
    late = threading.Event()

    def say(seen: dict[str, Any], number: int) -> bytes:
        if number == 0:
            assert late.wait(10)
        return answer(seen, number)

    with server(say) as url, Client(url, timeout_seconds=0.5) as client:
        with pytest.raises(ConnectionLost, match=r"no answer in 0\.5 s"):
            client.act(SEEN)
        late.set()
        assert client.infer(SEEN)["number"] == 1


def test_a_server_that_disconnects_is_a_lost_connection() -> None:
    def say(seen: dict[str, Any], number: int) -> bytes | None:
        return None if number == 0 else answer(seen, number)

    with server(say) as url, Client(url) as client:
        with pytest.raises(ConnectionLost):
            client.act(SEEN)
        assert client.infer(SEEN)["number"] == 1


def test_a_connection_that_ended_between_calls_is_reopened() -> None:
    with server(answer) as url, Client(url) as client:
        client.connect()
        assert client._connection is not None
        client._connection.close()
        assert client.infer(SEEN)["number"] == 0


@pytest.mark.parametrize(
    ("frame", "word"),
    [
        (b"\xc1", "msgpack"),
        (msgpack_numpy.packb([1]), "must be a map"),
        (msgpack_numpy.packb({"action": CHUNK}), "must have actions"),
        (msgpack_numpy.packb({"actions": [1, 2]}), "must have actions"),
    ],
)
def test_an_invalid_answer_is_refused(frame: bytes, word: str) -> None:
    with server(lambda seen, number: frame) as url, Client(url) as client, pytest.raises(WireError, match=word):
        client.act(SEEN)


def test_a_message_that_cannot_be_encoded_is_refused() -> None:
    with server(answer) as url, Client(url) as client:
        with pytest.raises(WireError):
            client.act({"what": object()})
        assert client.infer(SEEN)["number"] == 0


def test_a_refusal_in_place_of_the_greeting() -> None:
    full = '{"code": "full", "message": "no more robots"}'
    with server(answer, hello=full) as url, Client(url) as client, pytest.raises(Refused, match="no more robots"):
        client.connect()
    busy = '{"code": "busy", "message": "later"}'
    with server(answer, hello=busy) as url, Client(url, attempts=2) as client, pytest.raises(ConnectionLost):
        client.connect()


def test_a_closed_client_says_so_and_a_waiting_call_ends() -> None:
    hang, asked = threading.Event(), threading.Event()
    raised: list[Exception] = []

    def say(seen: dict[str, Any], number: int) -> bytes:
        asked.set()
        assert hang.wait(20)
        return answer(seen, number)

    with server(say) as url:
        client = Client(url, timeout_seconds=15.0)

        def call() -> None:
            try:
                client.act(SEEN)
            except ConnectionLost as error:
                raised.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        assert asked.wait(10)
        client.close()
        thread.join(10)
        hang.set()
        assert len(raised) == 1 and "closed" in str(raised[0])
        with pytest.raises(ConnectionLost, match="closed"):
            client.act(SEEN)


@pytest.mark.parametrize("wrong", [{"url": "127.0.0.1:8000"}, {"attempts": 0}, {"timeout_seconds": 0.0}])
def test_invalid_client_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Client(**({"url": "ws://127.0.0.1:8000"} | wrong))


# --- kill -9

SERVER = """
import sys
from websockets.sync.server import serve
from openpi_client import msgpack_numpy
import numpy as np

def talk(connection):
    connection.send(msgpack_numpy.packb({}))
    for message in connection:
        place = msgpack_numpy.unpackb(message)["place"]
        actions = np.stack([place + np.arange(8), np.full(8, float(sys.argv[2]))], axis=1)
        connection.send(msgpack_numpy.packb({"actions": actions}))

with serve(talk, "127.0.0.1", int(sys.argv[1]), compression=None) as running:
    print(running.socket.getsockname()[1], flush=True)
    running.serve_forever()
"""


def begun(path: Path, port: int, name: int) -> tuple[subprocess.Popen[str], int]:
    path.write_text(SERVER)
    done = subprocess.Popen([sys.executable, path, str(port), str(name)], stdout=subprocess.PIPE, text=True)
    assert done.stdout is not None
    return done, int(done.stdout.readline())


def test_kill_9_in_an_episode_is_held_through(tmp_path: Path) -> None:
    """Plays what it has, holds, goes on with the first chunk of the new server, at the place where it stood still."""
    first, port = begun(tmp_path / "server.py", 0, 1)
    place, moved = 0, list[tuple[int, int]]()
    second: subprocess.Popen[str] | None = None

    def hold(last: np.ndarray | None) -> np.ndarray:
        return np.array([-1, 0], np.float32)

    def steps_until(wanted: Callable[[], bool]) -> None:
        nonlocal place
        deadline = time.monotonic() + 30
        while not wanted():
            assert time.monotonic() < deadline
            action = player.action(lambda at=place: {"place": at})
            if action[0] != -1:
                moved.append((int(action[0]), int(action[1])))
                place += 1
            time.sleep(0.02)

    try:
        with (
            Client(f"ws://127.0.0.1:{port}", timeout_seconds=5.0) as client,
            ChunkPlayer(BackgroundRequester(client.act, client.connect), Play(replan=4), hold) as player,
        ):
            steps_until(lambda: place >= 10)
            os.kill(first.pid, signal.SIGKILL)
            first.wait()
            steps_until(lambda: player.stats().connection_errors > 0)
            held = player.stats().held
            steps_until(lambda: player.stats().held > held + 10)
            stood = place
            second, _ = begun(tmp_path / "server.py", port, 2)
            steps_until(lambda: place >= stood + 10)
            assert player.stats().chunks >= 4
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
                assert process.stdout is not None
                process.stdout.close()
    assert [at for at, _ in moved] == list(range(len(moved))), "every place once, in order"
    assert [server for _, server in moved] == [1] * stood + [2] * (len(moved) - stood)


@pytest.mark.parametrize("url", ["ws://", "ws://:8000", "ws://host:port", "ws://host:99999", "ws://host:0", "host:80"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url must be ws://HOST:PORT"):
        Client(url)


@pytest.mark.parametrize("key", ["two words", "line\n", "schlüssel"])
def test_an_api_key_that_a_header_cannot_have_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="must be printable ASCII") as caught:
        Client("ws://there:8000", api_key=key)
    assert key.strip() not in str(caught.value)


def test_a_server_that_thinks_is_not_pinged(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that thinks on its event loop, as openpi's does, answers no ping, and would be taken for gone after 40 s."""
    import websockets.sync.client as websockets_client

    given: dict[str, Any] = {}

    def connect(url: str, **settings: Any) -> Any:
        given.update(settings)
        raise OSError("nobody there")

    monkeypatch.setattr(websockets_client, "connect", connect)
    with pytest.raises(ConnectionLost), Client("ws://there:8000", attempts=1, timeout_seconds=0.1) as client:
        client.connect()
    assert given["ping_interval"] is None
