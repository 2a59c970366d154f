"""The server: sockets, doors and life cycle. What is said on a connection is in `openpi`, `xpolicylab` and `http`.

Two ports, since openpi's server speaks first and XPolicyLab's client does, and a client of one must not hear the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from lightwam.errors import ConfigError, WireError
from lightwam.serve import http, openpi, xpolicylab
from lightwam.serve.access import Keys, tls
from lightwam.serve.batcher import Act, Batcher
from lightwam.serve.logs import note
from lightwam.serve.metrics import Metrics
from lightwam.serve.sentences import CheckSentence
from lightwam.serve.service import Refusal, Service
from lightwam.serve.settings import Serving
from lightwam.wire.family import Family

GOODBYE_SECONDS = 2.0
"""so long clients are waited for when the server stops"""
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Newer(NamedTuple):
    """Weights that came after those that answer now."""

    act: Act
    step: int


@dataclass(eq=False)
class Server:
    """Serves one policy until it is told to stop.

    `metadata` is what openpi's clients are greeted with. `newer(step)` gives weights of a later step, or None; it runs
    in a thread of its own every `settings.follow_seconds`. `look` sees every message first, or why it could not be
    read, with its protocol; what it raises is what the client is told.
    """

    act: Act
    step: int
    families: Sequence[Family]
    metadata: Mapping[str, Any]
    settings: Serving = field(default_factory=Serving)
    keys: Keys = field(default_factory=Keys)
    newer: Callable[[int], Newer | None] | None = None
    look: Callable[[Mapping[str, Any] | WireError, str], None] | None = None
    check_sentence: CheckSentence | None = None
    """refuses sentences that the policy's text encoder cannot read (`serve.sentences`)"""

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.ports: dict[str, int] = {}
        """protocol -> the port that it listens on, once it does"""
        self.stopping = asyncio.Event()
        self.draining = False
        self.gave_up = False
        """the model was still thinking when the time to drain was over"""
        self._sockets: dict[web.WebSocketResponse, asyncio.Transport] = {}
        self._connections: set[asyncio.Transport] = set()

    async def run(self, ready: Callable[[Server], None] | None = None) -> None:
        """Listens and answers until `stopping` is set; then takes nothing new, answers what it has, and returns.

        `ready` is called once when the ports listen.
        """
        settings = self.settings
        self.batcher = Batcher(
            self.act,
            self.step,
            most_waiting=settings.most_waiting,
            most_together=settings.most_together,
            window_seconds=settings.window_ms / 1000,
        )
        self.service = Service(self.batcher, self.families, self.metrics, self.look, self.check_sentence)
        self.batcher.open()
        try:
            servers = await self._listen()
        except ConfigError:
            await self.batcher.close()
            raise
        note("listening", host=settings.host, ports=self.ports)
        beside = [asyncio.create_task(self._follow()), asyncio.create_task(self._cut_off())]
        try:
            if ready is not None:
                ready(self)
            await self.stopping.wait()
        finally:
            for task in beside:
                task.cancel()
            await self._drain(servers)

    async def _listen(self) -> list[tuple[asyncio.Server, web.Server]]:
        settings = self.settings
        doors: list[tuple[str, int, Handler]] = [("openpi", settings.port, self._main_door)]
        if settings.xpolicylab_port is not None:
            doors.append(("xpolicylab", settings.xpolicylab_port, self._xpolicylab_door))
        secure = tls(settings.tls_certificate, settings.tls_key)
        servers: list[tuple[asyncio.Server, web.Server]] = []
        for name, port, handler in doors:
            answering = web.Server(self._guarded(handler), access_log=None, handler_cancellation=True)
            try:
                listening = await asyncio.get_running_loop().create_server(
                    self._connection(answering), settings.host, port, ssl=secure, backlog=settings.most_clients,
                    ssl_handshake_timeout=settings.handshake_seconds if secure else None,
                )  # fmt: skip
            except OSError as error:
                for before, _ in servers:
                    before.close()
                raise ConfigError("cannot listen", where=f"{settings.host}:{port} ({name})", got=f"{error}",
                                  next_step="another --port or --xpolicylab-port") from error  # fmt: skip
            self.ports[name] = listening.sockets[0].getsockname()[1]
            servers.append((listening, answering))
        return servers

    def _connection(self, answering: web.Server) -> Callable[[], asyncio.Protocol]:
        """Connections that say nothing in time are closed; under TLS, shaking hands has that time of its own."""
        seconds = self.settings.handshake_seconds * (2 if self.settings.tls_certificate else 1)

        def connect() -> asyncio.Protocol:
            protocol = answering()
            asyncio.get_running_loop().call_later(seconds, self._expect, protocol)
            return protocol

        return connect

    def _expect(self, protocol: Any) -> None:
        transport = protocol.transport
        if transport is not None and transport not in self._connections:
            transport.abort()

    def _guarded(self, handler: Handler) -> Handler:
        """Behind a door: at most so many connections, no web pages, and nobody without a key."""

        async def guard(request: web.BaseRequest) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                raise web.HTTPBadRequest
            if request.path == "/healthz" and request.method == "GET":
                # openpi's clients and load balancers ask this, without a key
                return self._health()
            if not self.keys.admit(request.headers.get("Authorization")):
                note("refused", client=request.remote, why="no key, or a wrong one")
                return refused(401, Refusal("unauthorized", "the Authorization header", "no valid API key",
                                            "Authorization: Api-Key KEY"))  # fmt: skip
            if "Origin" in request.headers and not self.keys:
                # a robot's client sends none; a page in somebody's browser does, and may not drive the robot
                return refused(403, Refusal("unauthorized", "the Origin header", "web pages may not ask without a key",
                                            "a client that is not a web page"))  # fmt: skip
            if transport not in self._connections:
                self._connections = {one for one in self._connections if not one.is_closing()}
                if len(self._connections) >= self.settings.most_clients:
                    return refused(503, Refusal("too_many_clients", "the server", "too many connections",
                                                f"at most {self.settings.most_clients}"))  # fmt: skip
                self._connections.add(transport)
            return await handler(request)

        return guard

    def _health(self) -> web.Response:
        """Whether requests are answered; the connection ends with it, so that nobody keeps a place without a key."""
        text = "draining" if self.draining else "OK" if self.batcher.works else "broken"
        response = web.Response(status=200 if text == "OK" else 503, text=f"{text}\n")
        response.force_close()
        return response

    async def _main_door(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._talk(request, "openpi")
        if (request.method, request.path) == ("GET", "/metrics"):
            return self._measured()
        if request.path == "/act":
            return await http.act(request, self.service, self.settings, self.draining)
        return refused(404, Refusal("bad_message", request.path, "nothing is here",
                                    "a websocket, or POST /act, GET /act, GET /healthz, GET /metrics"))  # fmt: skip

    async def _xpolicylab_door(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return refused(426, Refusal("bad_message", request.path, "this port speaks XPolicyLab's websocket only",
                                        f"HTTP on port {self.ports['openpi']}"))  # fmt: skip
        return await self._talk(request, "xpolicylab")

    def _measured(self) -> web.Response:
        metrics, batcher = self.metrics, self.batcher
        metrics.waiting.set(batcher.num_waiting)
        metrics.thinking.set(batcher.thinking_seconds)
        metrics.step.set(batcher.step)
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _talk(self, request: web.BaseRequest, name: str) -> web.StreamResponse:
        """One websocket, from its greeting to its end."""
        if self.draining:
            return refused(503, Refusal("closing", "the server", "the server is stopping", ""))
        settings = self.settings
        socket = web.WebSocketResponse(
            max_msg_size=settings.limits.message_bytes,
            heartbeat=settings.heartbeat_seconds,
            compress=False,
            timeout=2.0,
        )
        try:
            await socket.prepare(request)
        except ConnectionError:  # it left while its hand was being shaken
            return web.Response(status=400)
        client = f"{request.remote}/{id(socket) & 0xFFFFFF:06x}"
        assert request.transport is not None
        self._sockets[socket] = request.transport
        self.batcher.num_clients += 1
        gauge = self.metrics.clients.labels(name)
        gauge.inc()
        note("connected", client=client, protocol=name)
        try:
            if name == "openpi":
                await openpi.talk(socket, client, self.service, self.metadata, settings.limits)
            else:
                await xpolicylab.talk(socket, client, self.service, settings.limits)
        except (ConnectionError, aiohttp.ClientConnectionError):
            note("lost", client=client, protocol=name)
        finally:
            gauge.dec()
            self.batcher.num_clients -= 1
            del self._sockets[socket]
            note("left", client=client, protocol=name, code=socket.close_code)
        return socket

    async def _follow(self) -> None:
        """Changes over to newer weights; those that cannot be loaded are noted, and the old ones go on."""
        if self.newer is None or self.settings.follow_seconds <= 0:
            return
        while True:
            await asyncio.sleep(self.settings.follow_seconds)
            try:
                newer = await asyncio.to_thread(self.newer, self.batcher.step)
            except Exception as error:
                # whatever is wrong with a new checkpoint, robots go on with the old one
                self.metrics.reloads.labels("failed").inc()
                note("a newer checkpoint was not loaded", 40, error=error)
                continue
            if newer is not None:
                note("newer weights", before=self.batcher.step, now=newer.step)
                self.batcher.swap(newer.act, newer.step)
                self.metadata = {**self.metadata, "step": newer.step}
                self.metrics.reloads.labels("ok").inc()

    async def _drain(self, servers: list[tuple[asyncio.Server, web.Server]]) -> None:
        self.draining = True
        note("draining", waiting=self.batcher.num_waiting)
        for listening, _ in servers:
            listening.close()
        try:
            await asyncio.wait_for(self.batcher.close(), self.settings.drain_seconds)
        except TimeoutError:
            self.gave_up = True
            note("gave up waiting for the model", 40, seconds=self.settings.drain_seconds)
        code, why = aiohttp.WSCloseCode.GOING_AWAY, b"the server is stopping"
        closing = [asyncio.create_task(socket.close(code=code, message=why)) for socket in self._sockets]
        if closing:
            await asyncio.wait(closing, timeout=GOODBYE_SECONDS)
        for transport in self._sockets.values():  # who does not read its goodbye is not waited for
            transport.abort()
        await asyncio.gather(*closing, return_exceptions=True)
        for _, answering in servers:
            answering.pre_shutdown()
            await answering.shutdown(timeout=GOODBYE_SECONDS)
        note("stopped")

    async def _cut_off(self) -> None:
        """Ends connections whose clients read nothing of what waits for them: no send waits for them longer."""
        stuck: dict[asyncio.Transport, tuple[int, int]] = {}
        every = self.settings.heartbeat_seconds / 4
        while True:
            await asyncio.sleep(every)
            left = {one: one.get_write_buffer_size() for one in self._sockets.values()}
            stuck = {one: (size, stuck[one][1] + 1 if one in stuck and size >= stuck[one][0] else 0)
                     for one, size in left.items() if size}  # fmt: skip
            for one, (size, times) in stuck.items():
                if times >= 4:
                    note("cut off: it does not read", 30, unread_bytes=size)
                    one.abort()


def refused(status: int, why: Refusal) -> web.Response:
    """An error over HTTP, which ends its connection: nobody who was turned away keeps a place."""
    response = web.json_response({"error": why.fields()}, status=status)
    response.force_close()
    return response
