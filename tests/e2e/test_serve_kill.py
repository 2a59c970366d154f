"""The server is killed, or restarted, while a robot plays its chunks: it holds, connects anew, and goes on."""

import time
from collections.abc import Callable

import numpy as np
import pytest
from served_process import served_process
from serving import message

from lightwam.robot.background import BackgroundRequester
from lightwam.robot.client import Client
from lightwam.robot.player import ChunkPlayer, Play, hold_still


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_robot_outlives_its_server(end: str) -> None:
    """The server answers with the state it was shown, so every action tells when it was asked for."""
    seen, given = 1.0, list[float]()

    def steps_until(wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not wanted():
            assert time.monotonic() < deadline
            given.append(float(player.action(lambda: message(seen))[0]))
            time.sleep(0.02)

    with served_process() as first, Client(f"ws://127.0.0.1:{first.openpi}", timeout_seconds=5.0) as client:
        hold = hold_still(7, keep=(6,))
        with ChunkPlayer(BackgroundRequester(client.act, client.connect), Play(replan=2), hold) as player:
            steps_until(lambda: given.count(1.0) >= 10)
            first.kill() if end == "kill" else first.stop()
            steps_until(lambda: player.stats().connection_errors > 0)
            held = player.stats().held
            steps_until(lambda: player.stats().held >= held + 10)
            assert given[-10:] == [0.0] * 10  # it stands still
            seen = 2.0
            with served_process(port=first.openpi):
                steps_until(lambda: given.count(2.0) >= 10)
                after = given[given.index(2.0) :]
                assert 1.0 not in after  # nothing of before the loss is played
            stats = player.stats()
    assert stats.last_error
    assert np.isfinite(given).all()
