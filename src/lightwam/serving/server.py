"""The server: ports, admission, routes and life cycle. The protocols are in `openpi`, `xpolicylab`, `vla_eval`, `http`.

There are two ports, because openpi's server speaks first and XPolicyLab's client does; vla-eval's client does too, and
has a path on openpi's. Routes are a few `if`s and not an aiohttp `Application`: any other path may become openpi's
websocket, and `Application` has no place for our `Connection`, which answers invalid HTTP with our errors and knows
when bytes last arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from lightwam.errors import ConfigError
from lightwam.serving import http, openpi, vla_eval
from lightwam.serving.access import Keys, tls
from lightwam.serving.batcher import Act, Batcher
from lightwam.serving.connection import Connection, Socket, error_response, keep_alive
from lightwam.serving.logs import log_event
from lightwam.serving.metrics import Metrics
from lightwam.serving.refusals import SETTINGS, RefusalLog
from lightwam.serving.sentences import CheckSentence
from lightwam.serving.service import OnMessage, Refusal, Service
from lightwam.serving.settings import Serving
from lightwam.serving.xpolicylab import XPolicyLab
from lightwam.wire.openpi import N_OBS_STEPS
from lightwam.wire.robot_schema import RobotSchema, schemas_of
from lightwam.wire.vla_eval import PATH

GOODBYE_SECONDS = 2.0
"""how long a stopping server waits for clients to close"""
ORIGIN = (
    "a request with an Origin header needs an API key, to keep web pages out",
    "no Origin header (websocket-client: create_connection(url, suppress_origin=True)), or an API key",
)
ROUTES = "a websocket, or POST /act, GET /act, GET /healthz, GET /metrics"


class NewWeights(NamedTuple):
    """The policy of a later training step."""

    act: Act
    step: int


@dataclass(eq=False)
class Server:
    """Serves a policy until it is stopped.

    `metadata` is the greeting of openpi's protocol. `load_newer(step)` returns weights of a later step or None; it runs
    in its own thread every `settings.follow_seconds`. `on_message` is called first with every message, or with the
    WireError that says why it cannot be decoded, and the protocol; its exception is sent to the client. `act` is
    kept by the batcher alone, so that a policy's memory is free once a newer one has taken over.
    """

    act: InitVar[Act]
    step: int
    schemas: Sequence[RobotSchema]
    metadata: Mapping[str, Any]
    settings: Serving = field(default_factory=Serving)
    keys: Keys = field(default_factory=Keys)
    load_newer: Callable[[int], NewWeights | None] | None = None
    on_message: OnMessage | None = None
    check_sentence: CheckSentence | None = None
    """refuses sentences that the policy's text encoder cannot take (`serving.sentences`)"""
    on_refusal: Callable[[str], None] | None = None
    """called with every logged refusal of a client"""
    replan: int | None = None
    """actions of a chunk that XPolicyLab's and vla-eval's clients get, as they execute all that they get; None: all"""

    def __post_init__(self, act: Act) -> None:
        self.metrics, self.refusals = Metrics(), RefusalLog(self.on_refusal)
        self.batcher = batcher = Batcher(act, self.step, self.settings)
        if steps := max((schema.n_obs_steps for schema in self.schemas), default=0):
            self.metadata = {**self.metadata, N_OBS_STEPS: steps}
        checks = (self.on_message, self.check_sentence, self.refusals)
        self.service = Service(batcher, schemas_of(self.schemas, "openpi"), self.metrics, *checks)
        self.vla_eval = replace(self.service, schemas=schemas_of(self.schemas, vla_eval.NAME))
        self.xpolicylab = XPolicyLab(self.service, self.settings, self.replan)
        self.ports: dict[str, int] = {}
        """protocol -> its port, while the server listens"""
        self.stopping = asyncio.Event()
        self.draining = False
        self.drain_timed_out = False
        """the model was still running after `settings.drain_seconds`"""
        self._sockets: dict[Socket, asyncio.Transport] = {}
        self._connections: set[asyncio.Transport] = set()
        self._stuck: set[Socket] = set()

    async def run(self, ready: Callable[[Server], None] | None = None) -> None:
        """Listen and answer until `stopping` is set; then accept nothing new, answer what was asked, and return.

        `ready` is called once when the ports listen.
        """
        self.batcher.open()
        try:
            servers = await self._listen()
        except ConfigError:
            await self.batcher.close()
            raise
        log_event("listening", host=self.settings.host, ports=self.ports)
        tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._end_stuck())]
        try:
            if ready is not None:
                ready(self)
            await self.stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await self._drain(servers)

    async def _listen(self) -> list[tuple[asyncio.Server, web.Server]]:
        settings, servers = self.settings, list[tuple[asyncio.Server, web.Server]]()
        context = tls(settings.tls_certificate, settings.tls_key)
        for name, port in (("openpi", settings.port), ("xpolicylab", settings.xpolicylab_port)):
            if port is None:
                continue
            http_server = web.Server(partial(self._handle, name), handler_cancellation=True)
            try:
                listening = await asyncio.get_running_loop().create_server(
                    partial(self._connect, http_server),
                    settings.host,
                    port,
                    ssl=context,
                    backlog=settings.max_clients,
                    ssl_handshake_timeout=settings.handshake_seconds if context else None,
                )
            except OSError as error:
                for before, _ in servers:
                    before.close()
                where, step = f"{settings.host}:{port} ({name})", "another --port or --xpolicylab-port"
                raise ConfigError("cannot listen", where=where, got=f"{error}", next_step=step) from error
            self.ports[name] = listening.sockets[0].getsockname()[1]
            servers.append((listening, http_server))
        return servers

    def _connect(self, http_server: web.Server) -> asyncio.Protocol:
        """Make a connection, which is closed if it sends no request in time; a TLS handshake has its own time."""
        connection = Connection(http_server, self._log_unreadable)
        seconds = self.settings.handshake_seconds * (2 if self.settings.tls_certificate else 1)
        asyncio.get_running_loop().call_later(seconds, self._expect_request, connection)
        return connection

    def _expect_request(self, connection: Connection) -> None:
        transport = connection.transport
        if transport is not None and transport not in self._connections:
            peer = transport.get_extra_info("peername") or ("unknown",)
            expected, setting = f"a request within {self.settings.handshake_seconds:g} s", "--handshake-seconds"
            self.refusals.add(str(peer[0]), "a connection sent no request in time", setting=setting, expected=expected)
            transport.abort()

    async def _handle(self, protocol: str, request: web.BaseRequest) -> web.StreamResponse:
        """Handle a request if it is admitted; the connection of a refused one is closed after its last bytes."""
        response: web.StreamResponse | None = self._admit(request)
        if response is None:
            try:
                response = await self._route(protocol, request)
            except web.HTTPException as error:  # a failed websocket handshake
                why = Refusal("bad_message", request.path, (error.text or error.reason).strip()[:200], "a websocket")
                response = self._refuse(request, error.status, why, "the client's library")
        if response.status >= 400 and response.keep_alive is False and isinstance(request.protocol, Connection):
            request.protocol.close_when_idle()
        return response

    def _admit(self, request: web.BaseRequest) -> web.Response | None:
        """Count the connection of a request; returns a response if it needs no handler or is refused."""
        transport = request.transport
        if transport is None:
            raise web.HTTPBadRequest
        if request.path == "/healthz" and request.method == "GET":  # without a key, for clients and load balancers
            return self._health()
        if not self.keys.admit(request.headers.get("Authorization")):
            why = Refusal("unauthorized", "the Authorization header", "no valid API key", "Authorization: Api-Key KEY")
            return self._refuse(request, 401, why, "--api-keys")
        if "Origin" in request.headers and not self.keys:  # from a web page, which must not drive the robot
            return self._refuse(request, 403, Refusal("unauthorized", "the Origin header", *ORIGIN), "--api-keys")
        if transport not in self._connections:
            self._connections = {known for known in self._connections if not known.is_closing()}
            if len(self._connections) >= (limit := self.settings.max_clients):
                why = Refusal("too_many_clients", "the server", "too many connections", f"at most {limit}")
                return self._refuse(request, 503, why, "--max-clients")
            self._connections.add(transport)
        return None

    def _refuse(self, request: web.BaseRequest, status: int, why: Refusal, setting: str) -> web.Response:
        self.refusals.add(str(request.remote), why.message, setting=setting, expected=why.expected)
        return error_response(status, why)

    def _log_unreadable(self, request: web.BaseRequest, why: Refusal, is_tls: bool) -> None:
        message, expected, setting = why.message, why.expected, "the client"
        if is_tls:
            message, setting = "the client speaks TLS, and this server does not", "--tls-certificate"
            expected = "ws:// or http:// in the client"
        self.refusals.add(str(request.remote), message, setting=setting, expected=expected)

    def _health(self) -> web.Response:
        """Return whether requests are answered, and end the connection: a client without a key must not keep one."""
        text = "draining" if self.draining else "OK" if self.batcher.is_running else "broken"
        response = web.Response(status=200 if text == "OK" else 503, text=f"{text}\n")
        response.force_close()
        return response

    async def _route(self, protocol: str, request: web.BaseRequest) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            is_vla_eval = protocol == "openpi" and request.path == PATH
            return await self._websocket(request, vla_eval.NAME if is_vla_eval else protocol)
        if protocol == "xpolicylab":
            what, expected = "this port speaks XPolicyLab's websocket only", f"HTTP on port {self.ports['openpi']}"
            why = Refusal("bad_message", request.path[:200], what, expected)
            return self._refuse(request, 426, why, "--xpolicylab-port")
        if (request.method, request.path) == ("GET", "/metrics"):
            return self._metrics()
        if request.path == "/act":
            return await http.act(request, self.service, self.settings, self.draining)
        why = Refusal("bad_message", request.path[:200], "unknown path", ROUTES)
        return self._refuse(request, 404, why, "the client's address")

    def _metrics(self) -> web.Response:
        self.metrics.waiting.set(len(self.batcher.waiting))
        self.metrics.pass_seconds.set(self.batcher.pass_seconds)
        self.metrics.step.set(self.batcher.step)
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self.metrics.text(), headers=headers)

    async def _websocket(self, request: web.BaseRequest, protocol: str) -> web.StreamResponse:
        if self.draining:
            return error_response(503, Refusal("closing", "the server", "the server is stopping", ""))
        limits = self.settings.limits
        # vla-eval's harness answers no ping while it steps or loads its simulator, which may take an hour
        heartbeat_seconds = None if protocol == vla_eval.NAME else self.settings.heartbeat_seconds
        socket = Socket(limits.message_bytes, heartbeat_seconds)
        try:
            await socket.prepare(request)
        except ConnectionError:  # the client left during the handshake
            return web.Response(status=400)
        client = f"{request.remote}/{id(socket) & 0xFFFFFF:06x}"
        log = partial(log_event, client=client, protocol=protocol)
        assert request.transport is not None
        if heartbeat_seconds is None:
            keep_alive(request.transport)
        self._sockets[socket] = request.transport
        self.batcher.num_clients += 1
        gauge = self.metrics.clients.labels(protocol)
        gauge.inc()
        log("connected")
        try:
            if protocol == "openpi":
                await openpi.talk(socket, client, self.service, self.metadata, limits)
            elif protocol == vla_eval.NAME:
                await vla_eval.talk(socket, client, self.vla_eval, self.metadata, limits, self.replan)
            else:
                await self.xpolicylab.talk(socket, client)
            if socket.is_too_large:
                self.metrics.requests.labels(protocol, "bad_message").inc()
                why, expected = "the message is too large", f"at most {limits.message_bytes} bytes"
                self.refusals.add(client, why, setting=SETTINGS[why], expected=expected, protocol=protocol)
                assert isinstance(request.protocol, Connection)
                await socket.linger(request.protocol, request.transport)
        except (ConnectionError, aiohttp.ClientConnectionError):
            log("lost")
        finally:
            gauge.dec()
            self.batcher.num_clients -= 1
            del self._sockets[socket]
            why, level = self._why_ended(socket)
            code = aiohttp.WSCloseCode.MESSAGE_TOO_BIG if socket.is_too_large else socket.close_code
            log("left", level, code=code, why=why)
        return socket

    def _why_ended(self, socket: Socket) -> tuple[str, int]:
        """Return why a connection ended, and the log level for it."""
        error, code = socket.exception(), socket.close_code
        silent = f"silent for {1.5 * self.settings.heartbeat_seconds:g} s, a ping unanswered (--heartbeat-seconds)"
        reasons = (
            (self.draining, "the server is stopping", 20),
            (socket in self._stuck, "cut off: it did not read what was sent", 30),
            (socket.is_too_large, "cut off: its message was too large (--limits.message-bytes)", 30),
            (isinstance(error, TimeoutError), f"cut off: {silent}", 30),
            (isinstance(error, aiohttp.WebSocketError), f"cut off: it broke the websocket's protocol: {error}", 30),
            (code == aiohttp.WSCloseCode.INTERNAL_ERROR, "a message was refused", 20),
            (code in (None, aiohttp.WSCloseCode.ABNORMAL_CLOSURE), "the connection was lost", 20),
            (True, "the client closed it", 20),
        )
        self._stuck.discard(socket)
        return next((why, level) for is_reason, why, level in reasons if is_reason)

    async def _follow(self) -> None:
        """Change to newer weights; if they cannot be loaded, log that and keep the old ones."""
        if self.load_newer is None or self.settings.follow_seconds <= 0:
            return
        while True:
            await asyncio.sleep(self.settings.follow_seconds)
            try:
                newer = await asyncio.to_thread(self.load_newer, self.batcher.step)
            except Exception as error:
                # whatever is wrong with a new checkpoint, robots keep the old one
                self.metrics.reloads.labels("failed").inc()
                log_event("a newer checkpoint was not loaded", 40, error=error)
                continue
            if newer is not None:
                log_event("newer weights", before=self.batcher.step, now=newer.step)
                self.batcher.swap(newer.act, newer.step)
                self.metadata = {**self.metadata, "step": newer.step}
                self.metrics.reloads.labels("ok").inc()

    async def _drain(self, servers: list[tuple[asyncio.Server, web.Server]]) -> None:
        self.draining = True
        log_event("draining", waiting=len(self.batcher.waiting))
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
        for transport in self._sockets.values():  # of clients that do not read the close frame
            transport.abort()
        await asyncio.gather(*closing, return_exceptions=True)
        for _, http_server in servers:
            http_server.pre_shutdown()
            await http_server.shutdown(timeout=GOODBYE_SECONDS)
        log_event("stopped")

    async def _end_stuck(self) -> None:
        """End the connections of clients that do not read, so that no send waits for them longer."""
        unread: dict[Socket, int] = {}
        num_checks: dict[Socket, int] = {}
        while True:
            await asyncio.sleep(self.settings.heartbeat_seconds / 4)
            sizes = {socket: transport.get_write_buffer_size() for socket, transport in self._sockets.items()}
            stuck = {socket for socket, size in sizes.items() if 0 < unread.get(socket, size + 1) <= size}
            unread, num_checks = sizes, {socket: num_checks.get(socket, 0) + 1 for socket in stuck}
            for socket, count in num_checks.items():
                if count >= 6:
                    log_event("cut off: it does not read", 30, unread_bytes=sizes[socket])
                    self._stuck.add(socket)
                    self._sockets[socket].abort()
