"""The page's server: HTTP for the page itself, and a websocket for each viewer.

A viewer acknowledges what it has drawn. It is sent news only while fewer than WINDOW messages are on their way, and
then the newest of everything: a slow one sees fewer pictures, and neither the session nor another viewer waits for it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from aiohttp import WSCloseCode, WSMsgType, web
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from lightwam.errors import ConfigError, WireError
from lightwam.play.board import Board
from lightwam.play.commands import Command, Reply, one_line, parse
from lightwam.play.saving import FILM, FOLDER
from lightwam.play.settings import PlaySettings
from lightwam.serving.access import Keys, is_loopback, tls
from lightwam.serving.logs import log_event

WINDOW = 2
"""messages to a viewer that it has not acknowledged, at most"""
MESSAGE_BYTES = 256 * 1024
"""of a command; one that repeats an episode has its changes"""
JOIN_SECONDS = 10.0
"""for the session to end"""


@runtime_checkable
class Playable(Protocol):
    """A session: its thread `run`, and what pages ask of it."""

    def run(self) -> None:
        """Play until `stop`."""
        ...

    def ask(self, command: Command, reply: Reply) -> None:
        """Queue a command; `reply` is called, in any thread, with the reason if it is refused."""
        ...

    def stop(self) -> None:
        """End soon."""
        ...


@dataclass(eq=False)
class Viewer:
    """An open page."""

    socket: web.WebSocketResponse
    news: asyncio.Event
    """there may be something to send"""
    version: int = 0
    """of the board, as far as it was sent"""
    num_sent: int = 0
    num_seen: int = 0


class PlayServer:
    """Serves a session's page until `stopping` is set, or the session's thread ends."""

    def __init__(self, session: Playable, board: Board, settings: PlaySettings, keys: Keys, run: Path) -> None:
        """`run`: where saved episodes are."""
        self._session, self._board, self._settings, self._keys, self._run = session, board, settings, keys, run
        self._viewers = set[Viewer]()
        self._failure: BaseException | None = None
        self.stopping = asyncio.Event()
        self.port = 0
        """where it listens, once it does"""

    async def run(self, ready: Callable[[PlayServer], None] | None = None) -> None:
        """Listen, and play; `ready` is called when the port listens. Raises the session's error, if it has one."""
        loop, settings = asyncio.get_running_loop(), self._settings
        self._board.put({"server": uuid.uuid4().hex})
        self._board.on_change = lambda: loop.call_soon_threadsafe(self._wake)
        app = web.Application(middlewares=[self._guarded])
        app.router.add_get("/", self._page)
        app.router.add_get("/live", self._live)
        app.router.add_get("/film/{name}", self._film)
        runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await runner.setup()
        context = tls(settings.tls_certificate, settings.tls_key)
        site = web.TCPSite(runner, settings.host, settings.port, ssl_context=context)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            where, step = f"{settings.host}:{settings.port}", "another --port"
            raise ConfigError("cannot listen", where=where, got=f"{error}", next_step=step) from error
        self.port = runner.addresses[0][1]
        thread = threading.Thread(target=self._play, args=(loop,), name="lightwam play")
        thread.start()
        try:
            if ready is not None:
                ready(self)
            await self.stopping.wait()
        finally:
            self._session.stop()
            going = [viewer.socket.close(code=WSCloseCode.GOING_AWAY, message=b"stopping") for viewer in self._viewers]
            await asyncio.gather(*going, return_exceptions=True)
            await runner.cleanup()
            await asyncio.to_thread(thread.join, JOIN_SECONDS)
            self._board.on_change = None
        if self._failure is not None:
            raise self._failure

    def _play(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._session.run()
        except BaseException as error:
            self._failure = error
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(self.stopping.set)

    # HTTP

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse pages of other origins, and names of other machines on a server without keys (DNS rebinding)."""
        origin, host = request.headers.get("Origin"), request.headers.get("Host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            return refusal(403, "a page of another origin must not drive this one")
        name = urlsplit(f"//{host}").hostname or ""
        if not (self._keys or self._settings.allow_anyone or is_loopback(name)):
            return refusal(403, "without an API key, the page is at http://127.0.0.1")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        html, policy = page()
        host = request.headers.get("Host", "")
        if re.fullmatch(r"[\w.:\[\]-]+", host):  # some browsers do not count a websocket as 'self'
            policy = policy.replace("connect-src 'self'", f"connect-src 'self' ws://{host} wss://{host}")
        headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return web.Response(body=html.encode(), content_type="text/html", charset="utf-8", headers=headers)

    async def _film(self, request: web.Request) -> web.StreamResponse:
        if not self._keys.admit(request.headers.get("Authorization")):
            return refusal(401, "no valid API key")
        name = request.match_info["name"]
        path = self._run / FOLDER / name / FILM
        if not re.fullmatch(r"[\w .+~-]+", name) or name.startswith(".") or not path.is_file():
            return refusal(404, "no such film")
        return web.FileResponse(path, headers={"Content-Type": "video/mp4"})

    # viewers

    async def _live(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            max_msg_size=MESSAGE_BYTES, heartbeat=self._settings.heartbeat_seconds, compress=False, timeout=2.0
        )
        await socket.prepare(request)
        if not await self._admits(socket):
            return socket
        if len(self._viewers) >= self._settings.max_viewers:
            await socket.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too many viewers (--max-viewers)")
            return socket
        viewer = Viewer(socket, asyncio.Event())
        self._viewers.add(viewer)
        self._count()
        log_event("viewer", client=request.remote, viewers=len(self._viewers))
        sending = asyncio.create_task(self._send(viewer))
        try:
            async for message in socket:
                if message.type is not WSMsgType.TEXT:
                    break
                await self._hear(viewer, message.data)
        finally:
            sending.cancel()
            self._viewers.discard(viewer)
            self._count()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending
        return socket

    async def _admits(self, socket: web.WebSocketResponse) -> bool:
        """Return whether the page's first message has a key, where one is needed: {"key": KEY}, always sent."""
        try:
            first = json.loads(await socket.receive_str(timeout=self._settings.handshake_seconds))
            key = str(first["key"])
        except (TimeoutError, TypeError, ValueError, KeyError, RecursionError):
            key = ""
        if self._keys.admit(f"Bearer {key}"):
            return True
        await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"no valid API key")
        return False

    async def _send(self, viewer: Viewer) -> None:
        while True:
            await viewer.news.wait()
            viewer.news.clear()
            if viewer.num_sent - viewer.num_seen >= WINDOW:
                continue
            news = self._board.news(viewer.version)
            if news is not None:
                viewer.version, viewer.num_sent = news.version, viewer.num_sent + 1
                await viewer.socket.send_bytes(news.message)
                viewer.news.set()

    async def _hear(self, viewer: Viewer, text: str) -> None:
        """Take an acknowledgement, the word "seen", or a command."""
        if text == "seen":
            viewer.num_seen = min(viewer.num_sent, viewer.num_seen + 1)
            viewer.news.set()
            return
        loop = asyncio.get_running_loop()

        def refuse(why: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lambda: loop.create_task(tell(why)))

        async def tell(why: str) -> None:
            with contextlib.suppress(ConnectionError):
                await viewer.socket.send_json({"refused": why})

        try:
            self._session.ask(parse(text), refuse)
        except WireError as error:
            refuse(one_line(error))

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.news.set()

    def _count(self) -> None:
        self._board.put({"viewers": len(self._viewers)})


def refusal(status: int, why: str) -> web.Response:
    """Make an HTTP error."""
    return web.Response(status=status, body=f"{why}\n".encode(), content_type="text/plain", charset="utf-8")


@cache
def page() -> tuple[str, str]:
    """Return the page and its Content-Security-Policy, which lets the browser load nothing from elsewhere."""
    loader = ChoiceLoader([PackageLoader("lightwam.play", "page"), PackageLoader("lightwam.report")])
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=False)
    html = environment.get_template("play.html").render()
    sources = {}
    for tag in ("style", "script"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        sources[tag] = f"{tag}-src 'sha256-{digest}'"
    rest = "connect-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; base-uri 'none'; form-action 'none'"
    return html, f"default-src 'none'; {sources['style']}; {sources['script']}; {rest}; frame-ancestors 'none'"
