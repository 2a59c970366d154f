"""play/server.py: who may open the page, what its viewers are sent, and what a slow one does not hold up."""

import asyncio
import http.client
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playing import read
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from lightwam.errors import ConfigError
from lightwam.play.board import Board
from lightwam.play.commands import Command, Disturb, Transport
from lightwam.play.server import PlayServer, page
from lightwam.play.settings import PlaySettings
from lightwam.serving.access import Keys

KEY = "k" * 40


class Recorder:
    """A session that notes what it is asked, and refuses to be disturbed."""

    def __init__(self) -> None:
        self.asked, self.stopped, self.heard = list[Command](), threading.Event(), threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        self.stopped.wait(60)
        if self.error is not None:
            raise self.error

    def ask(self, command: Command, reply: Callable[[str], None]) -> None:
        self.asked.append(command)
        self.heard.set()
        if isinstance(command, Disturb):
            threading.Thread(target=reply, args=("not now",)).start()

    def stop(self) -> None:
        self.stopped.set()


class Served:
    """A server in a thread."""

    def __init__(self, run: Path, keys: tuple[str, ...], settings: PlaySettings) -> None:
        self.session, self.board = Recorder(), Board()
        self.board.put({"status": {"step": 0}})
        self.listening, self.failures = threading.Event(), list[BaseException]()

        async def serve() -> None:
            self.server = PlayServer(self.session, self.board, settings, Keys(keys), run)
            await self.server.run(lambda server: self.listening.set())

        def target() -> None:
            try:
                asyncio.run(serve())
            except BaseException as error:
                self.failures.append(error)
            self.listening.set()

        self.thread = threading.Thread(target=target)
        self.thread.start()
        assert self.listening.wait(20)

    @contextmanager
    def watch(self, key: str = "") -> Iterator[ClientConnection]:
        with connect(f"ws://127.0.0.1:{self.server.port}/live") as viewer:
            viewer.send(json.dumps({"key": key}))
            yield viewer

    def ask(self, path: str, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, body


@contextmanager
def serving(run: Path, *keys: str, **settings: object) -> Iterator[Served]:
    served = Served(run, keys, PlaySettings(**{"port": 0} | settings))  # type: ignore[arg-type]
    try:
        yield served
    finally:
        served.session.stop()
        served.thread.join(20)
        assert not served.thread.is_alive()


def news(viewer: ClientConnection) -> dict[str, object]:
    message = viewer.recv(timeout=20)
    assert isinstance(message, bytes)
    return read(message)


def test_a_page_of_another_origin_or_another_name_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        port = served.server.port
        assert served.ask("/")[0] == 200
        assert served.ask("/", Host=f"localhost:{port}")[0] == 200
        assert served.ask("/", Host=f"evil.test:{port}")[0] == 403
        assert served.ask("/", Origin="http://evil.test")[0] == 403
        assert served.ask("/", Origin=f"http://127.0.0.1:{port}")[0] == 200
        assert served.ask("/", Origin="null")[0] == 403
        with pytest.raises(InvalidStatus):
            connect(f"ws://127.0.0.1:{port}/live", origin="http://evil.test")  # type: ignore[arg-type]
        assert served.ask("/nothing")[0] == 404


def test_with_keys_a_viewer_needs_one_before_anything_is_sent(tmp_path: Path) -> None:
    film = tmp_path / "play" / "red-1-1" / "film.mp4"
    film.parent.mkdir(parents=True)
    film.write_bytes(b"film")
    with serving(tmp_path, KEY) as served:
        assert served.ask("/", Host="robot.test")[0] == 200
        assert served.ask("/film/red-1-1")[0] == 401
        assert served.ask("/film/red-1-1", Authorization=f"Bearer {KEY}") == (200, b"film")
        with served.watch("wrong") as viewer, pytest.raises(ConnectionClosed) as closed:
            viewer.recv(timeout=20)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1008
        with served.watch(KEY) as viewer:
            assert news(viewer)["status"] == {"step": 0}


@pytest.mark.parametrize("path", ["/film/other", "/film/..%2Fred-1-1", "/film/%2e%2e", "/film/red%2F..%2Fred-1-1"])
def test_only_films_are_given_out(tmp_path: Path, path: str) -> None:
    (tmp_path / "play").mkdir()
    (tmp_path / "film.mp4").write_bytes(b"no")
    with serving(tmp_path) as served:
        assert served.ask(path)[0] == 404


def test_a_slow_viewer_gets_the_newest_and_holds_nobody_up(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.watch() as slow, served.watch() as quick:
        for step in range(1, 200):
            served.board.put({"status": {"step": step}, "camera/top": bytes(20_000)})
            while news(quick).get("status") != {"step": step}:
                quick.send("seen")
            quick.send("seen")
        numbers = []
        while not numbers or numbers[-1] < 199:
            status = news(slow).get("status")
            numbers += [status["step"]] if isinstance(status, dict) else []
            slow.send("seen")
        assert len(numbers) <= 4


def test_commands_reach_the_session_and_refusals_the_viewer(tmp_path: Path) -> None:
    with serving(tmp_path) as served, served.watch() as viewer:
        viewer.send('{"kind": "transport", "action": "play"}')
        assert served.session.heard.wait(20)
        assert served.session.asked == [Transport("play")]
        viewer.send('{"kind": "disturb", "what": "object"}')
        viewer.send('{"kind": "dance"}')
        viewer.send("no JSON")
        refused = []
        while len(refused) < 3:
            message = viewer.recv(timeout=20)
            refused += [json.loads(message)["refused"]] if isinstance(message, str) else []
        assert "not now" in refused
        assert any("unknown kind" in why for why in refused) and any("must be JSON" in why for why in refused)


def test_viewers_beyond_the_limit_are_refused_and_large_messages_end_a_viewer(tmp_path: Path) -> None:
    with serving(tmp_path, max_viewers=1) as served, served.watch() as viewer:
        news(viewer)
        with served.watch() as other, pytest.raises(ConnectionClosed) as closed:
            other.recv(timeout=20)
        assert closed.value.rcvd is not None and "max-viewers" in closed.value.rcvd.reason
        viewer.send("x" * 300_000)
        with pytest.raises(ConnectionClosed):
            for _ in range(100):
                viewer.recv(timeout=20)


def test_the_sessions_error_ends_the_server(tmp_path: Path) -> None:
    served = Served(tmp_path, (), PlaySettings(port=0))
    served.session.error = RuntimeError("a bug")
    served.session.stop()
    served.thread.join(20)
    assert [str(error) for error in served.failures] == ["a bug"]


def test_a_port_that_is_taken_is_an_error_of_the_users(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        other = Served(tmp_path, (), PlaySettings(port=served.server.port))
        other.thread.join(20)
        (error,) = other.failures
        assert isinstance(error, ConfigError) and "cannot listen" in error.what


def test_the_page_loads_nothing_from_elsewhere() -> None:
    html, policy = page()
    assert "default-src 'none'" in policy and "unsafe-inline" not in policy
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "") and "https://" not in html
    assert "{%" not in html and "{{" not in html


@pytest.mark.parametrize(
    "settings", [{"port": 70000}, {"max_viewers": 0}, {"imagine_steps": 0}, {"heartbeat_seconds": 0.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        PlaySettings(**settings)  # type: ignore[arg-type]
