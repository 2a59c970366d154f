"""Playing chunks: on counted steps with a scripted server, and with the real thread."""

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from lightwam.errors import ConfigError, WireError
from lightwam.robot.background import BackgroundRequester, ChunkReceived, Disconnected, Event, RequestFailed
from lightwam.robot.chunks import Crossfade, Ensemble, Plan
from lightwam.robot.errors import ConnectionLost
from lightwam.robot.player import BlockingPlayer, ChunkPlayer, Play, hold_still

HORIZON = 8


class Scripted:
    """A server on counted steps: the chunk that is asked for at world place p says p, p + 1, ... in dimension 0.

    Dimension 1 is the number of the request. The loop counts the steps with `tick`.
    """

    def __init__(self, delays: Sequence[int]) -> None:
        self.delays, self.now, self.asked = list(delays), 0, list[tuple[int, int]]()
        self.open: list[tuple[int, Event]] = []

    def ask(self, number: int, observation: Any) -> None:
        delay = self.delays.pop(0) if len(self.delays) > 1 else self.delays[0]
        self.asked.append((self.now, observation))
        chunk = np.stack([observation + np.arange(HORIZON), np.full(HORIZON, number)], axis=1).astype(np.float32)
        self.open.append((self.now + delay, ChunkReceived(number, chunk, 0.01 * delay)))

    def events(self) -> list[Event]:
        due = [report for at, report in self.open if at <= self.now]
        self.open = [item for item in self.open if item[0] > self.now]
        return due

    def close(self) -> None:
        self.open = []


def held(last: np.ndarray | None) -> np.ndarray:
    return np.array([-1, 0], np.float32)


def drive(player: ChunkPlayer, server: Scripted, steps: int) -> np.ndarray:
    """Actions [steps, 2] of a world whose place is how often it was moved."""
    place, given = 0, []
    for _ in range(steps):
        action = player.action(lambda at=place: at)
        given.append(action)
        place += action[0] != -1
        server.now += 1
    return np.stack(given)


def played(delays: Sequence[int], play: Play, steps: int) -> tuple[list[float], list[float], ChunkPlayer, Scripted]:
    server = Scripted(delays)
    player = ChunkPlayer(server, play, held)
    given = drive(player, server, steps)
    return given[:, 0].tolist(), given[:, 1].tolist(), player, server


def test_without_latency_it_plays_like_the_blocking_player() -> None:
    said, number, player, server = played([0], Play(replan=4), 9)
    assert said == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert number == [1, 1, 1, 1, 2, 2, 2, 2, 3]
    blocking = BlockingPlayer(lambda seen: np.arange(8, dtype=np.float32)[:, None] + seen, 4, held)
    assert [blocking.action(lambda at=at: at)[0] for at in range(9)] == said
    assert player.stats().dropped == 0 and blocking.stats().chunks == player.stats().chunks == 3
    assert server.asked == [(0, 0), (4, 4), (8, 8)]


def test_steps_executed_during_a_request_are_dropped() -> None:
    """A world where the chunk says its place: every action fits the place where it is played."""
    said, number, player, _ = played([3], Play(replan=4), 14)
    assert said == [-1, -1, -1, *range(11)]
    assert number == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    stats = player.stats()
    assert (stats.held, stats.dropped, stats.chunks, stats.steps) == (3, 3, 2, 14)


def test_held_steps_drop_nothing() -> None:
    """The robot stood still while the first chunk came: it is played from its beginning."""
    said, _, player, _ = played([5], Play(replan=4), 7)
    assert said == [-1] * 5 + [0, 1] and player.stats().dropped == 0


def test_without_compensation_the_motion_is_made_twice() -> None:
    said, _, player, _ = played([3], Play(replan=4, compensate=False), 13)
    assert said == [-1, -1, -1, 0, 1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert player.stats().max_jump == 2


def test_a_player_requests_sooner_when_the_chunk_would_not_last() -> None:
    said, _, player, server = played([3], Play(replan=8), 30)
    assert said[3:] == list(range(27)), "no hold after the first"
    assert [at for _, at in server.asked][:3] == [0, 5, 10]
    assert player.stats().held == 3


def test_one_request_at_a_time() -> None:
    _, _, player, server = played([6], Play(replan=1), 40)
    gaps = np.diff([at for at, _ in server.asked])
    assert min(gaps) >= 6 and player.stats().requests == len(server.asked)


@pytest.mark.parametrize("delay", [0, 1, 3, 7, 8, 9, 20])
def test_no_action_is_skipped_or_repeated_at_any_latency(delay: int) -> None:
    said, _, player, _ = played([delay], Play(replan=4), 200)
    moved = [place for place in said if place != -1]
    assert moved == list(range(len(moved)))
    assert len(moved) >= 200 * HORIZON / (HORIZON + 2 * delay) - HORIZON
    assert player.stats().held == 200 - len(moved)


def test_the_caller_decides_how_to_hold() -> None:
    seen: list[np.ndarray | None] = []

    def hold(last: np.ndarray | None) -> np.ndarray:
        seen.append(last)
        return np.array([-1, 7 if last is None else last[1]], np.float32)

    server = Scripted([2, 1000])
    given = drive(ChunkPlayer(server, Play(replan=8), hold), server, 14)
    assert given[:2].tolist() == [[-1, 7], [-1, 7]] and given[-1].tolist() == [-1, 1]
    assert seen[0] is None and seen[2] is not None and seen[2].tolist() == [7, 1]
    still = hold_still(3, keep=(2,))
    assert still(None).tolist() == [0, 0, 0] and still(np.array([1, 2, 3], np.float32)).tolist() == [0, 0, 3]


def test_the_loop_cannot_change_the_last_action() -> None:
    server = Scripted([0, 1000])
    player = ChunkPlayer(
        server, Play(replan=100), lambda last: np.array([-1, 0 if last is None else last[0]], np.float32)
    )
    for place in range(HORIZON):
        assert player.action(lambda at=place: at)[0] == place
    player.reset()
    server.delays = [0, 1000]
    for _ in range(HORIZON):
        player.action(lambda: 0)[:] = 99
    assert player.action(lambda: 8).tolist() == [-1, 7]


def test_actions_that_are_too_old_are_not_played() -> None:
    said, _, player, _ = played([3], Play(replan=4, max_age_steps=2), 20)
    assert set(said) == {-1} and player.stats().late == player.stats().requests - 1
    said, _, player, _ = played([3], Play(replan=100, max_age_steps=5), 9)
    assert said == [-1, -1, -1, 0, 1, 2, -1, 3, 4], "the first from 3 to 5 steps of age, the next was asked for at 4"


def test_an_answer_of_the_previous_episode_is_discarded() -> None:
    server = Scripted([2, 5, 3])
    player = ChunkPlayer(server, Play(replan=2), held)
    drive(player, server, 6)  # the second request is open
    player.reset()
    given = drive(player, server, 6)
    assert given[:, 0].tolist() == [-1, -1, -1, 0, 1, 2]
    assert given[3:, 1].tolist() == [3, 3, 3] and player.stats().late == 1
    player.reset()
    assert player.action(lambda: 0)[0] == -1, "what was planned is forgotten, too"


def test_a_crossfade_is_a_straight_line_and_leaves_switches_alone() -> None:
    server = Scripted([1])
    player = ChunkPlayer(server, Play(replan=4, blend=Crossfade(3), switch_dims=(1,), compensate=False), held)
    given = drive(player, server, 9)
    # asked at place 4, there at place 5: the old one says 5, 6, 7, the new one 4, 5, 6
    assert given[6:, 0] == pytest.approx([5 - 1 / 4, 6 - 2 / 4, 7 - 3 / 4])
    assert given[:, 1].tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2]
    assert player.stats().max_jump == 1, "from holding to the first"


def test_a_crossfade_ends_where_the_old_chunk_does() -> None:
    plan = Plan(Crossfade(3), ())
    plan.add(np.array([[0.0]], np.float32))
    plan.add(np.array([[4.0], [4.0]], np.float32))
    assert [plan.pop().item(), plan.pop().item(), plan.remaining] == [1.0, 4.0, 0]


def test_an_ensemble_weighs_the_oldest_most() -> None:
    plan = Plan(Ensemble(0.5), (1,))
    plan.add(np.array([[0, 1], [0, 1], [0, 1]], np.float32))
    assert plan.pop().tolist() == [0, 1]
    plan.add(np.array([[3, 2], [3, 2], [3, 2]], np.float32))
    older, newer = 1.0, np.exp(-0.5)
    assert plan.pop() == pytest.approx([3 * newer / (older + newer), 2])
    plan.add(np.array([[6, 4], [6, 4]], np.float32))
    newest = np.exp(-1.0)
    assert plan.pop() == pytest.approx([(3 * newer + 6 * newest) / (older + newer + newest), 4])
    assert plan.remaining == 1 and plan.pop() == pytest.approx([(3 * older + 6 * newer) / (older + newer), 4])
    plan.clear()
    assert plan.remaining == 0


def test_an_ensemble_plays_every_step() -> None:
    said, _, player, _ = played([2], Play(1, Ensemble(0.01)), 30)
    assert said[:2] == [-1, -1] and said[2:] == pytest.approx(range(28))
    assert player.stats().max_jump <= 1 + 1e-6


class Posted:
    """An asker whose reports the test writes."""

    def __init__(self) -> None:
        self.post: list[Event] = []
        self.asked: list[tuple[int, Any]] = []

    def ask(self, number: int, observation: Any) -> None:
        self.asked.append((number, observation))

    def events(self) -> list[Event]:
        found, self.post = self.post, []
        return found

    def close(self) -> None:
        pass


def chunk(value: float, horizon: int = 3) -> np.ndarray:
    return np.full((horizon, 2), value, np.float32)


def test_after_a_lost_connection_it_requests_with_a_new_observation() -> None:
    server = Posted()
    player = ChunkPlayer(server, Play(replan=1), held)
    lost = Disconnected(ConnectionLost("gone"))

    def act(seen: str) -> float:
        return float(player.action(lambda: seen)[0])

    assert act("a") == -1
    server.post = [ChunkReceived(1, chunk(5), 0.1)]
    assert [act("b"), act("c")] == [5, 5]
    server.post = [lost, lost]
    assert [act("d"), act("e"), act("f")] == [5, -1, -1]
    assert server.asked == [(1, "a"), (2, "c")], "not asked while it is being mended"
    server.post = [RequestFailed(2)]
    assert act("g") == -1 and server.asked[-1] == (3, "g")
    server.post = [ChunkReceived(2, chunk(6), 0.1)]
    assert act("h") == -1, "asked before the disconnect"
    server.post = [ChunkReceived(3, chunk(7), 0.1)]
    assert act("i") == 7
    assert (player.stats().connection_errors, player.stats().late, player.stats().last_error) == (2, 1, "gone")


def test_errors_in_the_background_are_raised_once_each() -> None:
    server = Posted()
    player = ChunkPlayer(server, Play(), held)
    player.action(lambda: 0)
    server.post = [RequestFailed(1, WireError("no such camera")), RequestFailed(1, RuntimeError("a bug"))]
    with pytest.raises(WireError, match="no such camera"):
        player.action(lambda: 0)
    with pytest.raises(RuntimeError, match="a bug"):
        player.action(lambda: 0)
    assert player.action(lambda: 0)[0] == -1 and len(server.asked) == 2
    server.post = [RequestFailed(2, WireError("told at the end"))]
    with pytest.raises(WireError, match="told at the end"), player:
        pass


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (np.zeros(3, np.float32), "must be a chunk"),
        (np.zeros((0, 2), np.float32), "must be a chunk"),
        (np.array([["a"]]), "must be a chunk"),
        (chunk(np.nan), "must be finite"),
        (np.full((1, 2), 1e300), "must be finite"),
        (np.zeros((3, 1), np.float32), "switch_dims must be 0 to 0"),
    ],
)
def test_an_unchecked_number_never_reaches_a_robot(answer: np.ndarray, word: str) -> None:
    server = Posted()
    player = ChunkPlayer(server, Play(switch_dims=(1,)), held)
    player.action(lambda: 0)
    server.post = [ChunkReceived(1, answer, 0.1)]
    with pytest.raises((WireError, ConfigError), match=word):
        player.action(lambda: 0)
    with pytest.raises((WireError, ConfigError), match=word):
        BlockingPlayer(lambda seen: answer, 1, held, (1,)).action(lambda: 0)


def test_a_chunk_of_another_width_is_refused() -> None:
    server = Posted()
    player = ChunkPlayer(server, Play(replan=1), held)
    player.action(lambda: 0)
    server.post = [ChunkReceived(1, chunk(1), 0.1)]
    player.action(lambda: 0)
    player.action(lambda: 0)
    server.post = [ChunkReceived(2, np.zeros((3, 4), np.float32), 0.1)]
    with pytest.raises(WireError, match="must be a chunk"):
        player.action(lambda: 0)
    assert player.action(lambda: 0)[0] == 1, "the chunk before is played on"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Play(replan=0),
        lambda: Play(max_age_steps=0),
        lambda: Play(switch_dims=(-1,)),
        lambda: Crossfade(-1),
        lambda: Ensemble(-0.1),
        lambda: BlockingPlayer(lambda seen: chunk(0), 0, held),
    ],
)
def test_settings_out_of_range_are_refused(wrong: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        wrong()


def test_latencies_are_counted() -> None:
    _, _, player, _ = played([0, 1, 2, 3], Play(replan=1), 30)
    stats = player.stats()
    assert stats.latency_p50_ms == pytest.approx(30, abs=5) and stats.latency_p99_ms == pytest.approx(30)
    empty = ChunkPlayer(Posted(), Play(), held).stats()
    assert empty.latency_p50_ms is None and empty.steps == 0


def test_the_blocking_player_holds_while_the_server_is_gone() -> None:
    gone = [True, True, False]

    def act(seen: Any) -> np.ndarray:
        if gone.pop(0):
            raise ConnectionLost("gone")
        return chunk(4)

    player = BlockingPlayer(act, 2, held)
    assert [player.action(lambda: 0)[0] for _ in range(4)] == [-1, -1, 4, 4]
    stats = player.stats()
    assert (stats.connection_errors, stats.held, stats.requests, stats.chunks, stats.last_error) == (2, 2, 3, 1, "gone")
    player.reset()
    player.close()


# --- the thread


def until(happened: Callable[[], bool]) -> None:
    """Waits; a test that waits in vain is ended here."""
    waiting = threading.Event()
    for _ in range(2000):
        if happened():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not happen in 10 s")


def collect(background: BackgroundRequester, count: int) -> list[Event]:
    found: list[Event] = []
    until(lambda: len(found.extend(background.events()) or found) >= count)
    return found


def test_the_loop_never_waits() -> None:
    answer = threading.Event()

    def act(seen: Any) -> np.ndarray:
        assert answer.wait(10)
        return chunk(3)

    with ChunkPlayer(BackgroundRequester(act), Play(), held) as player:
        assert [player.action(lambda: 0)[0] for _ in range(50)] == [-1] * 50
        answer.set()
        until(lambda: player.action(lambda: 0)[0] == 3)
    assert player.stats().latency_p50_ms is not None
    player.reset()
    with pytest.raises(ConnectionLost, match="closed"):
        player.action(lambda: 0)


def test_the_background_reconnects_and_reports_it() -> None:
    script: list[Exception | None] = [ConnectionLost("lost"), None]
    tries: list[Exception | None] = [ConnectionLost("not yet"), ConnectionLost("not yet"), None]

    def act(seen: Any) -> np.ndarray:
        if (error := script.pop(0)) is not None:
            raise error
        return chunk(seen)

    def connect() -> None:
        if (error := tries.pop(0)) is not None:
            raise error

    background = BackgroundRequester(act, connect)
    background.ask(1, 1)
    *failures, lost = collect(background, 4)
    assert [type(failure) for failure in failures] == 3 * [Disconnected] and lost == RequestFailed(1)
    background.ask(2, 2)
    (arrived,) = collect(background, 1)
    assert isinstance(arrived, ChunkReceived) and arrived.number == 2 and arrived.actions[0, 0] == 2
    background.close()
    background.close()


def test_requests_made_while_disconnected_are_reported_lost() -> None:
    """A reset while the server is gone: the new episode's first look is as old as the trouble when it ends."""
    back, inside = threading.Event(), threading.Event()

    def act(seen: Any) -> np.ndarray:
        if seen == "before":
            raise ConnectionLost("gone")
        return chunk(1)

    def connect() -> None:
        inside.set()
        assert back.wait(10)

    background = BackgroundRequester(act, connect)
    background.ask(1, "before")
    assert inside.wait(10)
    background.ask(2, "during")
    back.set()
    assert collect(background, 3)[1:] == [RequestFailed(1), RequestFailed(2)]
    background.close()


def test_an_abandoned_request_is_not_sent() -> None:
    inside, go, seen = threading.Event(), threading.Event(), list[int]()

    def act(observation: int) -> np.ndarray:
        seen.append(observation)
        inside.set()
        assert go.wait(10)
        return chunk(observation)

    background = BackgroundRequester(act)
    background.ask(1, 1)
    assert inside.wait(10)
    background.ask(2, 2)
    background.ask(3, 3)
    go.set()
    assert [report.number for report in collect(background, 2) if isinstance(report, ChunkReceived)] == [1, 3]
    assert seen == [1, 3]
    background.close()


def test_a_bug_in_the_thread_is_raised_in_the_loop() -> None:
    def act(seen: Any) -> np.ndarray:
        raise ZeroDivisionError("in the thread")

    player = ChunkPlayer(BackgroundRequester(act), Play(), held)
    with pytest.raises(ZeroDivisionError, match="in the thread"):
        until(lambda: player.action(lambda: 0)[0] != -1)
    player.close()


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    with ChunkPlayer(BackgroundRequester(lambda seen: chunk(1)), Play(), held) as player:
        until(lambda: player.action(lambda: 0)[0] == 1)
    until(lambda: threading.active_count() == before)
    ChunkPlayer(BackgroundRequester(lambda seen: chunk(1)), Play(), held).close()  # never begun


def test_a_robots_computer_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'jaxtyping', 'websockets', 'msgpack']))\n"
        "import lightwam.robot.player, lightwam.robot.client\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'pyarrow', 'av', 'tyro', 'safetensors'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
