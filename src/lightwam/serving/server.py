"""The server: sockets, doors and life cycle. What is said on a connection is in `openpi`, `xpolicylab` and `http`.

Two ports, since openpi's server speaks first and XPolicyLab's client does, and a client of one must not hear the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from lightwam.errors import ConfigError, WireError
from lightwam.serving import http, openpi, xpolicylab
from lightwam.serving.access import Keys, tls
from lightwam.serving.batcher import Act, Batcher
from lightwam.serving.connection import Answering, Connection, Handler, Socket, refused
from lightwam.serving.logs import log_event
from lightwam.serving.metrics import Metrics
from lightwam.serving.refusals import RefusalLog
from lightwam.serving.sentences import CheckSentence
from lightwam.serving.service import Refusal, Service
from lightwam.serving.settings import Serving
from lightwam.wire.robot_schema import RobotSchema

GOODBYE_SECONDS = 2.0
"""so long clients are waited for when the server stops"""
NO_PAGES = "a request with an Origin header needs an API key, to keep web pages out"
NO_ORIGIN = "no Origin header (websocket-client: create_connection(url, suppress_origin=True)), or an API key"


class NewWeights(NamedTuple):
    """Weights that came after those that answer now."""

    act: Act
    step: int


@dataclass(eq=False)
class Server:
    """Serves one policy until it is told to stop.

    `metadata` is the greeting of openpi's protocol. `load_newer(step)` returns weights of a later step or None; it runs
    in its own thread every `settings.follow_seconds`. `on_message` is called first with every message, or with the
    WireError that says why it cannot be read, and the protocol; its exception is sent to the client.
    """

    act: Act
    step: int
    schemas: Sequence[RobotSchema]
    metadata: Mapping[str, Any]
    settings: Serving = field(default_factory=Serving)
    keys: Keys = field(default_factory=Keys)
    load_newer: Callable[[int], NewWeights | None] | None = None
    on_message: Callable[[Mapping[str, Any] | WireError, str], None] | None = None
    check_sentence: CheckSentence | None = None
    """refuses sentences that the policy's text encoder cannot read (`serve.sentences`)"""
    on_refusal: Callable[[str], None] | None = None
    """called with every logged refusal of a client"""

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.ports: dict[str, int] = {}
        """protocol -> the port that it listens on, once it does"""
        self.stopping = asyncio.Event()
        self.draining = False
        self.drain_timed_out = False
        """the model was still thinking when the time to drain was over"""
        self._sockets: dict[Socket, asyncio.Transport] = {}
        self._connections: set[asyncio.Transport] = set()
        self._deaf: set[Socket] = set()

    async def run(self, ready: Callable[[Server], None] | None = None) -> None:
        """Listens and answers until `stopping` is set; then takes nothing new, answers what it has, and returns.

        `ready` is called once when the ports listen.
        """
        settings = self.settings
        self.batcher = Batcher(
            self.act,
            self.step,
            max_queue=settings.max_queue,
            max_batch=settings.max_batch,
            window_seconds=settings.window_ms / 1000,
        )
        self.refusals = RefusalLog(self.on_refusal)
        self.service = Service(
            self.batcher, self.schemas, self.metrics, self.on_message, self.check_sentence, self.refusals
        )
        self.batcher.open()
        try:
            servers = await self._listen()
        except ConfigError:
            await self.batcher.close()
            raise
        log_event("listening", host=settings.host, ports=self.ports)
        beside = [asyncio.create_task(self._follow()), asyncio.create_task(self._cut_off())]
        try:
            if ready is not None:
                ready(self)
            await self.stopping.wait()
        finally:
            for task in beside:
                task.cancel()
            await self._drain(servers)

    async def _listen(self) -> list[tuple[asyncio.Server, Answering]]:
        settings = self.settings
        doors: list[tuple[str, int, Handler]] = [("openpi", settings.port, self._main_door)]
        if settings.xpolicylab_port is not None:
            doors.append(("xpolicylab", settings.xpolicylab_port, self._xpolicylab_door))
        secure = tls(settings.tls_certificate, settings.tls_key)
        servers: list[tuple[asyncio.Server, Answering]] = []
        for name, port, handler in doors:
            answering = Answering(self._guarded(handler), self._unreadable)
            try:
                listening = await asyncio.get_running_loop().create_server(
                    self._connection(answering), settings.host, port, ssl=secure, backlog=settings.max_clients,
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

    def _connection(self, answering: Answering) -> Callable[[], asyncio.Protocol]:
        """Connections that say nothing in time are closed; under TLS, shaking hands has that time of its own."""
        seconds = self.settings.handshake_seconds * (2 if self.settings.tls_certificate else 1)

        def connect() -> asyncio.Protocol:
            protocol = answering()
            asyncio.get_running_loop().call_later(seconds, self._expect, protocol)
            return protocol

        return connect

    def _expect(self, protocol: Any) -> None:
        transport = protocol.transport
        if transport is None or transport in self._connections:
            return
        peer = transport.get_extra_info("peername") or ("unknown",)
        self.refusals.add(str(peer[0]), "a connection asked for nothing in time", setting="--handshake-seconds",
                          expected=f"a request within {self.settings.handshake_seconds:g} s")  # fmt: skip
        transport.abort()

    def _guarded(self, handler: Handler) -> Handler:
        """Behind a door: at most so many connections, no web pages, and nobody without a key."""

        async def guard(request: web.BaseRequest) -> web.StreamResponse:
            response = await admit(request)
            if response.status >= 400 and response.keep_alive is False and isinstance(request.protocol, Connection):
                request.protocol.end_when_quiet()
            return response

        async def admit(request: web.BaseRequest) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                raise web.HTTPBadRequest
            if request.path == "/healthz" and request.method == "GET":
                # openpi's clients and load balancers ask this, without a key
                return self._health()
            if not self.keys.admit(request.headers.get("Authorization")):
                why = Refusal("unauthorized", "the Authorization header", "no valid API key",
                              "Authorization: Api-Key KEY")  # fmt: skip
                return self._refuse(request, 401, why, "--api-keys")
            if "Origin" in request.headers and not self.keys:
                # a page in somebody's browser sends one, and may not drive the robot
                return self._refuse(request, 403, Refusal("unauthorized", "the Origin header", NO_PAGES, NO_ORIGIN),
                                    "--api-keys")  # fmt: skip
            if transport not in self._connections:
                self._connections = {one for one in self._connections if not one.is_closing()}
                if len(self._connections) >= self.settings.max_clients:
                    why = Refusal("too_many_clients", "the server", "too many connections",
                                  f"at most {self.settings.max_clients}")  # fmt: skip
                    return self._refuse(request, 503, why, "--max-clients")
                self._connections.add(transport)
            try:
                return await handler(request)
            except web.HTTPException as error:  # a failed websocket handshake
                why = Refusal("bad_message", request.path, (error.text or error.reason).strip()[:200], "a websocket")
                return self._refuse(request, error.status, why, "the client's library")

        return guard

    def _refuse(self, request: web.BaseRequest, status: int, why: Refusal, setting: str) -> web.Response:
        """Refuse a request, and log it."""
        self.refusals.add(str(request.remote), why.message, setting=setting, expected=why.expected)
        return refused(status, why)

    def _unreadable(self, request: web.BaseRequest, why: Refusal, is_tls: bool) -> None:
        """Log a request that is not HTTP, or whose handler failed."""
        if is_tls:
            self.refusals.add(str(request.remote), "the client speaks TLS, and this server does not",
                              expected="ws:// or http:// in the client", setting="--tls-certificate")  # fmt: skip
        else:
            self.refusals.add(str(request.remote), why.message, setting="the client", expected=why.expected)

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
        why = Refusal("bad_message", request.path[:200], "nothing is here",
                      "a websocket, or POST /act, GET /act, GET /healthz, GET /metrics")  # fmt: skip
        return self._refuse(request, 404, why, "the client's address")

    async def _xpolicylab_door(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() != "websocket":
            why = Refusal("bad_message", request.path[:200], "this port speaks XPolicyLab's websocket only",
                          f"HTTP on port {self.ports['openpi']}")  # fmt: skip
            return self._refuse(request, 426, why, "--xpolicylab-port")
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
        socket = Socket(settings.limits.message_bytes, settings.heartbeat_seconds)
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
        log_event("connected", client=client, protocol=name)
        try:
            if name == "openpi":
                await openpi.talk(socket, client, self.service, self.metadata, settings.limits)
            else:
                await xpolicylab.talk(socket, client, self.service, settings.limits)
            if socket.is_too_large:
                self.metrics.requests.labels(name, "bad_message").inc()
                self.refusals.add(client, "the message is too large", setting="--limits.message-bytes",
                                  expected=f"at most {settings.limits.message_bytes} bytes", protocol=name)  # fmt: skip
                assert isinstance(request.protocol, Connection)
                await socket.linger(request.protocol, request.transport)
        except (ConnectionError, aiohttp.ClientConnectionError):
            log_event("lost", client=client, protocol=name)
        finally:
            gauge.dec()
            self.batcher.num_clients -= 1
            del self._sockets[socket]
            why, level = self._why_left(socket)
            code = aiohttp.WSCloseCode.MESSAGE_TOO_BIG if socket.is_too_large else socket.close_code
            log_event("left", level, client=client, protocol=name, code=code, why=why)
        return socket

    def _why_left(self, socket: Socket) -> tuple[str, int]:
        """Return why a connection ended, and the log level for it."""
        error, code = socket.exception(), socket.close_code
        if self.draining:
            return "the server is stopping", 20
        if socket in self._deaf:
            self._deaf.discard(socket)
            return "cut off: it did not read what was sent", 30
        if socket.is_too_large:
            return "cut off: its message was too large (--limits.message-bytes)", 30
        if isinstance(error, TimeoutError):
            seconds = 1.5 * self.settings.heartbeat_seconds
            return f"cut off: silent for {seconds:g} s, a ping unanswered (--heartbeat-seconds)", 30
        if isinstance(error, aiohttp.WebSocketError):
            return f"cut off: it broke the websocket's protocol: {error}", 30
        if code == aiohttp.WSCloseCode.INTERNAL_ERROR:
            return "a message was refused", 20
        if code in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE):
            return "the connection was lost", 20
        return "the client closed it", 20

    async def _follow(self) -> None:
        """Changes over to newer weights; those that cannot be loaded are noted, and the old ones go on."""
        if self.load_newer is None or self.settings.follow_seconds <= 0:
            return
        while True:
            await asyncio.sleep(self.settings.follow_seconds)
            try:
                load_newer = await asyncio.to_thread(self.load_newer, self.batcher.step)
            except Exception as error:
                # whatever is wrong with a new checkpoint, robots go on with the old one
                self.metrics.reloads.labels("failed").inc()
                log_event("a newer checkpoint was not loaded", 40, error=error)
                continue
            if load_newer is not None:
                log_event("newer weights", before=self.batcher.step, now=load_newer.step)
                self.batcher.swap(load_newer.act, load_newer.step)
                self.metadata = {**self.metadata, "step": load_newer.step}
                self.metrics.reloads.labels("ok").inc()

    async def _drain(self, servers: list[tuple[asyncio.Server, Answering]]) -> None:
        self.draining = True
        log_event("draining", waiting=self.batcher.num_waiting)
        for listening, _ in servers:
            listening.close()
        try:
            await asyncio.wait_for(self.batcher.close(), self.settings.drain_seconds)
        except TimeoutError:
            self.drain_timed_out = True
            log_event("gave up waiting for the model", 40, seconds=self.settings.drain_seconds)
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
        log_event("stopped")

    async def _cut_off(self) -> None:
        """Ends connections whose clients read nothing of what waits for them: no send waits for them longer."""
        stuck: dict[Socket, tuple[int, int]] = {}
        every = self.settings.heartbeat_seconds / 4
        while True:
            await asyncio.sleep(every)
            left = {one: transport.get_write_buffer_size() for one, transport in self._sockets.items()}
            stuck = {one: (size, stuck[one][1] + 1 if one in stuck and size >= stuck[one][0] else 0)
                     for one, size in left.items() if size}  # fmt: skip
            for one, (size, times) in stuck.items():
                if times >= 6:
                    log_event("cut off: it does not read", 30, unread_bytes=size)
                    self._deaf.add(one)
                    self._sockets[one].abort()
