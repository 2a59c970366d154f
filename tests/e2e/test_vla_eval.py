"""vla-eval's own client and episode runner over real sockets, on a benchmark as its own are written."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from serving import serving
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.connection import Connection
from vla_eval.protocol.messages import MessageType
from vla_eval.runners.sync_runner import SyncEpisodeRunner
from websockets.sync.client import connect

from lightwam.serving.access import Keys
from lightwam.serving.inspect_client import inspect_client
from lightwam.serving.server import Server
from lightwam.serving.settings import Serving
from lightwam.types import Observation
from lightwam.wire.robot_schemas import schemas_for

SCHEMAS = schemas_for((), ("agentview", "wrist"), 8, 7, {})
HORIZON, REPLAN = 8, 3
KEY = "k" * 40
TASK = {"name": "put the bowl on the plate", "suite": "libero_goal", "task_id": 1}


class Policy:
    """Chunks whose actions have the state's first number and their place in the chunk; the gripper is open."""

    def __init__(self) -> None:
        self.passes = list[Sequence[Observation]]()

    def __call__(self, observations: Sequence[Observation]) -> np.ndarray:
        self.passes.append(observations)
        chunks = np.zeros((len(observations), HORIZON, 7), np.float32)
        chunks[:, :, 0] = [[one.state[0]] for one in observations]
        chunks[:, :, 1], chunks[:, :, 6] = np.arange(HORIZON), 1
        return chunks


class Benchmark(StepBenchmark):
    """What LIBERO's sends; it succeeds after `steps`."""

    def __init__(self, steps: int = 7) -> None:
        super().__init__()
        self.steps, self.executed = steps, list[np.ndarray]()

    def get_tasks(self) -> list[Any]:
        return [TASK]

    def reset(self, task: Any) -> Any:
        self.executed = []
        return 0

    def step(self, action: Any) -> StepResult:
        self.executed.append(action["actions"])
        return StepResult(len(self.executed), 0.0, len(self.executed) == self.steps, {})

    def make_obs(self, raw_obs: Any, task: Any) -> Any:
        return observed(raw_obs, task["name"])

    def get_step_result(self, step_result: StepResult) -> Any:
        return {"success": step_result.done}


def observed(number: float, sentence: str = "put the bowl on the plate") -> dict[str, Any]:
    picture = np.full((8, 8, 3), 7, np.uint8)
    state = np.full(8, number)
    return {"images": {"agentview": picture, "wrist": picture}, "task_description": sentence, "states": state}


def run(policy: Any, **settings: Any) -> Any:
    return serving(policy, **{"schemas_of": SCHEMAS, "replan": REPLAN} | settings)


def harness(server: Server, talk: Callable[[Connection], Coroutine[Any, Any, Any]], user: str = "") -> Any:
    """Connect as their orchestrator does."""

    async def main() -> Any:
        url = f"ws://{user}127.0.0.1:{server.ports['openpi']}/vla-eval"
        connection = Connection(url, timeout=20, max_retries=1)
        try:
            await connection.connect(benchmark="vla_eval.benchmarks.libero.benchmark:LIBEROBenchmark")
            return await talk(connection)
        finally:
            await connection.close()

    return asyncio.run(main())


def test_their_runner_plays_episodes() -> None:
    """It asks before every step: a chunk is answered action by action, and ends with its episode."""
    policy, benchmark = Policy(), Benchmark()

    async def talk(connection: Connection) -> None:
        told = connection.server_info
        assert told["model_server"] == "lightwam" and told["recipe"] == "test" and told["protocol_version"] == 1
        wanted = {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": True}
        assert told["observation_params"] == wanted
        json.dumps(told)  # they write it into their results
        for _ in range(2):
            result = await SyncEpisodeRunner().run_episode(benchmark, TASK, connection, max_steps=20)
            assert result["metrics"] == {"success": True} and result["steps"] == 7
            assert [action[:2].tolist() for action in benchmark.executed] == [
                *([0, 0], [0, 1], [0, 2], [3, 0], [3, 1], [3, 2], [6, 0])
            ]
            assert {float(action[6]) for action in benchmark.executed} == {-1.0}  # open, in LIBERO's units

    with run(policy) as server:
        harness(server, talk)
        measured = server.metrics.text().decode()
    assert [float(seen.state[0]) for (seen,) in policy.passes] == [0, 3, 6] * 2
    assert policy.passes[0][0].instruction == TASK["name"] and policy.passes[0][0].frames["wrist"].shape == (8, 8, 3)
    assert 'lightwam_requests_total{outcome="ok",protocol="vla-eval"} 6.0' in measured


def test_a_chunk_may_be_executed_without_pictures_and_ends_where_it_is_told() -> None:
    """RoboTwin's `render_every` leaves pictures out within a chunk; CALVIN marks the next subtask of an episode."""

    async def talk(connection: Connection) -> list[list[float]]:
        sent = [observed(1), {"task_description": "x"}, observed(3) | {"episode_restart": True}, {}]
        return [(await connection.act(each))["actions"][:2].tolist() for each in sent]

    with run(Policy()) as server:
        assert harness(server, talk) == [[1, 0], [1, 1], [3, 0], [3, 1]]


def test_a_bad_message_is_answered_and_the_connection_stays(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(connection: Connection) -> None:
        for bad, told in (
            (observed(1) | {"states": np.zeros(7)}, "wrong length"),
            ({"task_description": "x"}, "matches no robot schema"),
            (observed(np.nan), "must be finite"),
        ):
            with pytest.raises(RuntimeError, match=f"Server error: .*{told}") as refused:
                await connection.act(bad)
            assert "'code': 'bad_message'" in str(refused.value)
        await connection.send(MessageType.ACTION, {})
        assert "only the server" in (await connection.recv(timeout=20)).payload["error"]
        await connection.send(MessageType.ERROR, {"error": "theirs"})
        await connection.end_episode({"metrics": {}})
        assert (await connection.act(observed(5)))["actions"][0] == 5
        await connection.send(MessageType.HELLO, {"protocol_version": 2})
        reply = await connection.recv(timeout=20)
        assert reply.type is MessageType.ERROR and "protocol_version" in reply.payload["error"]

    with run(Policy()) as server:
        harness(server, talk)
        with connect(f"ws://127.0.0.1:{server.ports['openpi']}/vla-eval") as client:
            for bad in (b"\xc1", "text"):
                client.send(bad)
                assert b"bad_message" in client.recv(timeout=20)
    assert {vars(record)["fields"]["protocol"] for record in caplog.records if record.message == "refused"} == {
        "vla-eval"
    }


def test_harnesses_are_batched_and_not_mixed_up() -> None:
    def shard(number: int) -> list[float]:
        async def talk(connection: Connection) -> list[float]:
            answers = [await connection.act(observed(100 * number + i)) for i in range(2 * REPLAN)]
            return [float(answer["actions"][0]) for answer in answers]

        return harness(server, talk)

    with run(Policy(), window_ms=50.0) as server, ThreadPoolExecutor(3) as threads:
        answers = list(threads.map(shard, range(3)))
    assert answers == [[100 * n] * REPLAN + [100 * n + REPLAN] * REPLAN for n in range(3)]


def test_the_key_is_in_the_address() -> None:
    async def talk(connection: Connection) -> float:
        return float((await connection.act(observed(4)))["actions"][0])

    with run(Policy(), keys=[KEY]) as server:
        assert harness(server, talk, user=f"vla-eval:{KEY}@") == 4
        for user in ("", f"vla-eval:{KEY[:-1]}x@"):
            with pytest.raises(ConnectionError):
                harness(server, talk, user=user)


def test_a_harness_that_answers_no_ping_is_kept() -> None:
    """Its event loop stands still while the simulator steps or loads."""
    shake = (
        b"GET /vla-eval HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with (
        run(Policy(), heartbeat_seconds=0.1) as server,
        socket.create_connection(("127.0.0.1", server.ports["openpi"]), timeout=10) as silent,
    ):
        silent.sendall(shake)
        assert b" 101 " in silent.recv(4000)
        time.sleep(0.6)
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # neither a ping nor the end
            silent.recv(1)


def test_a_harness_at_openpis_address_is_told_where_to_go(caplog: pytest.LogCaptureFixture) -> None:
    async def main(url: str) -> None:
        connection = Connection(url, timeout=20, max_retries=1)
        with pytest.raises(ValueError, match="missing required fields"):
            await connection.connect()
        while not refused():
            await asyncio.sleep(0.01)
        await connection.close()

    def refused() -> list[str]:
        return [vars(record)["fields"]["why"] for record in caplog.records if record.message == "refused"]

    with run(Policy()) as server:
        asyncio.run(main(f"ws://127.0.0.1:{server.ports['openpi']}"))
    assert "vla-eval's protocol at openpi's address" in refused()[0]


def test_a_client_check_reads_it() -> None:
    said, servers, listening = list[str](), list[Server](), threading.Event()

    def ready(server: Server) -> None:
        servers.append(server)
        listening.set()

    async def talk(connection: Connection) -> None:
        with pytest.raises(RuntimeError, match="this is a check, and the message fits"):
            await connection.act(observed(1))

    check = inspect_client(SCHEMAS, Serving(port=0, xpolicylab_port=None), Keys(), 1, said.append, ready)
    with ThreadPoolExecutor(1) as thread:
        fits = thread.submit(asyncio.run, check)
        assert listening.wait(10)
        harness(servers[0], talk)
        assert fits.result(20)
    assert "over vla-eval" in said[0] and "'vla-eval-libero'" in said[0]
