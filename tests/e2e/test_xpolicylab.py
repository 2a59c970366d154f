"""Today's XPolicyLab over real sockets: calls, batches, lost connections, and what is refused."""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from serving import serving
from websockets.exceptions import ConnectionClosed
from xpolicylab_client import Failed, Restarted, XPolicyLabClient, xpolicylab_jpeg

from lightwam.serving.access import Keys
from lightwam.serving.inspect_client import inspect_client
from lightwam.serving.settings import Serving
from lightwam.types import Observation
from lightwam.wire.robot_schemas import schemas_for

CAMERAS = {"cam_head": "head_camera", "cam_left_wrist": "left_camera", "cam_right_wrist": "right_camera"}
ARMS = {"left_arm_joint_state": 6, "left_ee_joint_state": 1, "right_arm_joint_state": 6, "right_ee_joint_state": 1}
SCHEMAS = schemas_for(("xpolicylab",), tuple(CAMERAS.values()), 14, 14, {})
HORIZON, REPLAN = 8, 5
GREY = np.full((8, 8, 3), 7, np.uint8)


def picture() -> np.ndarray:
    """Smooth, red at the left and blue at the right, so that JPEG changes little and swapped colours show."""
    across = np.linspace(0, 1, 48)[None, :, None] * np.ones((32, 1, 1))
    return np.concatenate([230 * (1 - across), 90 + 0 * across, 230 * across], axis=2).astype(np.uint8)


def observed(number: float, env_idx: Any = 0, picture: Any = GREY) -> Any:
    """What RoboTwin sends; its state says which it is."""
    state: dict[str, Any] = {key: np.full(length, number) for key, length in ARMS.items()}
    state |= {"left_ee_joint_state": number, "left_ee_pose": np.zeros(7), "right_ee_pose": np.zeros(7)}
    return {
        "data_format_version": "v1.0", "instruction": "stack the blocks", "instructions": ["stack the blocks"],
        "env_idx": env_idx, "vision": {camera: {"color": picture} for camera in CAMERAS}, "state": state,
        "additional_info": {"frequency": 30},
    }  # fmt: skip


class Policy:
    """Chunks of the state, and every pass's observations."""

    def __init__(self, gate: threading.Event | None = None) -> None:
        self.passes, self.entered, self.gate = list[Sequence[Observation]](), threading.Event(), gate

    def __call__(self, observations: Sequence[Observation]) -> np.ndarray:
        self.passes.append(observations)
        self.entered.set()
        assert self.gate is None or self.gate.wait(20)
        return np.stack([np.tile(one.state, (HORIZON, 1)) for one in observations])


def run(policy: Any, **settings: Any) -> Any:
    return serving(policy, schemas_of=SCHEMAS, replan=REPLAN, **settings)


def first(chunk: Any) -> float:
    return float(chunk[0]["right_arm_joint_state"][3])


def test_the_last_observation_is_answered_and_the_chunk_is_cut() -> None:
    """The client executes all that it gets, and tells what it sees after each action."""
    policy = Policy()
    with run(policy) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.request("prepare_case", {"task_name": "stack_blocks_two"})
        assert client.call("reset") is None
        for number in (1, 2, 3):
            assert client.call("update_obs", observed(number)) is None
        chunk = client.call("get_action")
        client.request("trial_end", {"trial_id": client.trial_id, "success": True})
        assert client.request("heartbeat", {}) == {"ok": True}
        measured = server.metrics.text().decode()
    assert len(chunk) == REPLAN
    assert {key: len(value) for key, value in chunk[0].items()} == ARMS
    assert all(first([action]) == 3 for action in chunk)
    ((seen,),) = policy.passes
    assert seen.instruction == "stack the blocks" and list(seen.frames) == list(CAMERAS.values())
    assert 'lightwam_requests_total{outcome="ok",protocol="xpolicylab"} 1.0' in measured


def test_a_batch_is_answered_by_env_idx_in_one_pass() -> None:
    policy = Policy()
    with run(policy) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs_batch", [observed(10, env_idx="4"), observed(20, env_idx=2), observed(30, env_idx=7)])
        assert [first(chunk) for chunk in client.call("get_action_batch", [7, "4"])] == [30, 10]
        assert [first(chunk) for chunk in client.call("get_action_batch", np.array([2]))] == [20]
        chunks = client.call("get_action_batch")
        assert [first(chunk) for chunk in chunks] == [10, 20, 30] and {len(chunk) for chunk in chunks} == {REPLAN}
        assert [len(batch) for batch in policy.passes] == [2, 1, 3]
        without = [observed(number) for number in (5, 6)]
        for each in without:
            del each["env_idx"]
        client.call("update_obs_batch", without)  # replaces the batch
        assert [first(chunk) for chunk in client.call("get_action_batch", [1, 0])] == [6, 5]
        with pytest.raises(Failed, match="no observation of env_idx 7") as refused:
            client.call("get_action_batch", [0, 7])
        assert refused.value.code == "call_failed" and refused.value.details["expected"] == "one of 0, 1"


def test_sixteen_robots_fit_in_a_message() -> None:
    seen = [observed(number, number) for number in range(16)]
    for each in seen:
        for camera in each["vision"].values():
            camera |= {"depth": np.zeros((8, 8), np.float32), "shape": (8, 8), "intrinsic_matrix": np.eye(3).tolist()}
    with run(Policy()) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs_batch", seen)
        assert [first(chunk) for chunk in client.call("get_action_batch", list(range(16)))] == list(range(16))


def test_a_batch_that_the_queue_cannot_hold_is_refused_at_once() -> None:
    with run(Policy(), max_queue=2) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs_batch", [observed(number, number) for number in range(2)])
        with pytest.raises(Failed, match="--max-queue") as refused:
            client.call("update_obs_batch", [observed(number, number) for number in range(3)])
    assert refused.value.code == "invalid_frame"


@pytest.mark.parametrize("end", ["reset", "trial_end", "call"])
def test_an_observation_does_not_outlive_its_episode(end: str) -> None:
    with run(Policy()) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs", observed(1))
        client.call("update_obs_batch", [observed(1)])
        client.request(end, {"func_name": "reset"} if end == "call" else {})
        for function in ("get_action", "get_action_batch"):
            with pytest.raises(Failed, match="to answer") as refused:
                client.call(function)
            assert refused.value.code == "call_failed"
        client.call("update_obs", observed(2))
        assert first(client.call("get_action")) == 2


def test_clients_with_trials_of_their_own_are_not_mixed_up() -> None:
    def episode(number: int) -> list[float]:
        with XPolicyLabClient(server.ports["xpolicylab"], f"evaluation {number % 2}", f"trial {number // 2}") as client:
            answers = []
            for i in range(5):
                client.call("update_obs", observed(100 * number + i))
                answers.append(first(client.call("get_action")))
            return answers

    with run(Policy()) as server, ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(episode, range(4)))
    assert answers == [[100 * number + i for i in range(5)] for number in range(4)]


def test_a_second_client_with_the_same_ids_does_not_get_the_first_ones_actions() -> None:
    with run(Policy()) as server, XPolicyLabClient(server.ports["xpolicylab"]) as one:
        one.call("update_obs", observed(1))
        with XPolicyLabClient(server.ports["xpolicylab"]) as two:
            two.call("update_obs", observed(2))
            with pytest.raises(Failed, match="taken this trial over"):
                one.call("get_action")
            assert first(two.call("get_action")) == 2


def test_a_request_that_comes_again_is_answered_by_the_first_ones_answer() -> None:
    policy = Policy()
    with run(policy) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs", observed(1))
        ask = {"func_name": "get_action"}
        told = client.exchange(client.frame("call", ask, "id"))
        client.call("update_obs", observed(2))
        assert str(client.exchange(client.frame("call", ask, "id"))) == str(told)  # sent_at is another
        assert len(policy.passes) == 1
        for kind, payload in (("call", {"func_name": "update_obs", "obs": observed(3)}), ("reset", {})):
            with pytest.raises(Failed, match="used once") as refused:
                client.exchange(client.frame(kind, payload, "id"))
            assert refused.value.code == "invalid_frame"
        assert first(client.call("get_action")) == 2


def test_a_lost_connection_costs_no_second_inference() -> None:
    """The request is sent again while the first one is computed, and the trial goes on."""
    gate = threading.Event()
    policy = Policy(gate)
    with run(policy) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs", observed(1))

        def cut() -> None:
            assert policy.entered.wait(10)
            client.connection.socket.shutdown(2)
            time.sleep(0.3)
            gate.set()

        threading.Thread(target=cut).start()
        assert first(client.call("get_action")) == 1
        assert len(policy.passes) == 1
        assert len(client.call("get_action")) == REPLAN  # of the observation that the lost connection had sent


def test_a_client_knows_a_server_that_was_started_again() -> None:
    with run(Policy()) as server:
        port = server.ports["xpolicylab"]
        client = XPolicyLabClient(port)
        client.call("update_obs", observed(1))
    with run(Policy(), xpolicylab_port=port), pytest.raises((Restarted, ConnectionClosed)) as ended:
        client.call("get_action")
    assert ended.type is Restarted
    client.close()


def test_busy_is_not_the_last_word() -> None:
    gate = threading.Event()
    policy = Policy(gate)
    with run(policy, max_queue=1, max_batch=1) as server, ThreadPoolExecutor(2) as threads:
        clients = [XPolicyLabClient(server.ports["xpolicylab"], trial_id=str(number)) for number in range(3)]
        for number, client in enumerate(clients):
            client.call("update_obs", observed(number))
        waiting = [threads.submit(clients[0].call, "get_action")]
        assert policy.entered.wait(10)
        waiting.append(threads.submit(clients[1].call, "get_action"))
        while not server.batcher.waiting:
            time.sleep(0.01)
        frame = clients[2].frame("call", {"func_name": "get_action"})
        with pytest.raises(Failed, match="too many requests") as refused:
            clients[2].exchange(frame)
        assert refused.value.code == "call_failed" and refused.value.details["code"] == "busy"
        gate.set()
        assert [first(each.result()) for each in waiting] == [0, 1]
        assert first(clients[2].exchange(frame)["result"]) == 2
        for client in clients:
            client.close()


@pytest.mark.parametrize(
    ("payload", "code", "what"),
    [
        ({}, "invalid_frame", "must be a function of the policy"),
        ({"func_name": "get_actions"}, "invalid_frame", "did you mean 'get_action'"),
        ({"func_name": "__init__"}, "invalid_frame", "must be a function of the policy"),
        ({"func_name": ["reset"]}, "invalid_frame", "must be a function of the policy"),
        ({"func_name": "update_obs"}, "invalid_frame", "must be a map"),
        ({"func_name": "update_obs", "obs": [observed(1)]}, "invalid_frame", "must be a map"),
        ({"func_name": "update_obs_batch", "obs": observed(1)}, "invalid_frame", "must have a list of observations"),
        ({"func_name": "update_obs_batch", "obs": []}, "invalid_frame", "must have a list of observations"),
        ({"func_name": "update_obs_batch", "obs": [7]}, "invalid_frame", "must be a map"),
        ({"func_name": "update_obs_batch", "obs": [observed(1, 3), observed(1, "3")]}, "invalid_frame", "twice"),
        ({"func_name": "update_obs_batch", "obs": [observed(1, -1)]}, "invalid_frame", "whole number"),
        ({"func_name": "get_action", "obs": observed(1)}, "invalid_frame", "update_obs first"),
        ({"func_name": "get_action_batch", "obs": ["one"]}, "invalid_frame", "whole number"),
        ({"func_name": "get_action_batch", "obs": {"env_idx": 0}}, "invalid_frame", "list of env_idx"),
        ({"func_name": "get_action"}, "call_failed", "no observation to answer"),
    ],
)
def test_calls_that_nobody_can_answer_are_refused(payload: Any, code: str, what: str) -> None:
    with run(Policy()) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        with pytest.raises(Failed, match=what) as refused:
            client.request("call", payload)
        assert refused.value.code == code
        client.call("update_obs", observed(4))  # the connection goes on
        assert first(client.call("get_action")) == 4


def test_an_observation_that_does_not_fit_is_refused_with_its_key() -> None:
    with run(Policy()) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs", observed(1, picture=np.zeros((8, 8), np.uint8)))
        with pytest.raises(Failed, match="wrong shape") as refused:
            client.call("get_action")
        assert refused.value.code == "call_failed"
        assert refused.value.details["where"] == "vision > cam_head > color"


FORMS = {
    "bytes": bytes,
    "uint8": lambda data: np.frombuffer(data, np.uint8),
    "numpy's bytes": lambda data: np.bytes_(data),
    "array without axes": lambda data: np.array(data + b"\0\0\0", f"S{len(data) + 40}"),
}


@pytest.mark.parametrize("kind", ["legacy", "standard"])
@pytest.mark.parametrize("form", FORMS)
def test_encoded_pictures_have_the_same_colours_as_plain_ones(kind: str, form: str) -> None:
    policy, told = Policy(), FORMS[form](xpolicylab_jpeg(picture(), kind))
    with run(policy) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs", observed(1, picture=told))
        client.call("get_action")
        client.call("update_obs_batch", [observed(1, picture=told), observed(2, 1, picture())])
        client.call("get_action_batch")
    for seen in (policy.passes[0][0], *policy.passes[1]):
        for frame in seen.frames.values():
            assert np.abs(frame.astype(int) - picture()).max() < 12


def test_the_older_dialect_gets_as_many_actions() -> None:
    policy = Policy()
    with run(policy) as server, XPolicyLabClient(server.ports["xpolicylab"]) as client:
        client.call("update_obs", observed(1))
        told = client.request("infer", {"observation": observed(2)})
        assert first(told["actions"]) == 2 and len(told["actions"]) == REPLAN
        assert first(client.call("get_action")) == 1  # what infer carries is answered, and not kept
        plain = {"observation": observed(2), "sampling": {"mode": "default"}}
        assert first(client.request("infer", plain)["actions"]) == 2
        with pytest.raises(Failed, match="no other sampling"):
            client.request("infer", plain | {"sampling": {"mode": "rtc"}})


def test_a_check_of_a_client_reports_what_update_obs_has() -> None:
    told: list[str] = []
    refused: list[str] = []
    threads: list[threading.Thread] = []

    def client(port: int) -> None:
        with XPolicyLabClient(port) as client:
            client.call("reset")
            try:
                client.call("update_obs", observed(1))
            except Failed as error:
                refused.append(str(error))

    async def check() -> bool:
        def ready(server: Any) -> None:
            threads.append(threading.Thread(target=client, args=(server.ports["xpolicylab"],)))
            threads[0].start()

        settings = Serving(port=0, xpolicylab_port=0)
        return await inspect_client(SCHEMAS, settings, Keys(), 1, told.append, ready)

    assert asyncio.run(check())
    threads[0].join(10)  # the check ends with the message, and the client may read its answer later
    assert "camera head_camera" in told[0] and "vision > cam_head > color" in told[0]
    assert "this is a check" in refused[0]
