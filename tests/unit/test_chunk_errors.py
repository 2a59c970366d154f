"""policy/chunk_errors.py: errors of chunks and baselines, against numbers worked out by hand."""

import numpy as np
import pytest

from lightwam.config.schema import CodecConfig
from lightwam.policy.chunk_errors import RecordedWindows, chunk_errors, standing_still, state_dims, windows_of

START = np.array([0, 4, 5, 11])
STATE = np.arange(11, dtype=np.float32)[:, None] * [1.0, 10.0]
ACTION = STATE + np.float32([1.0, 0.0])


def windows(episodes: tuple[int, ...] = (0, 2), most: int = 100, every: int = 1) -> RecordedWindows:
    return windows_of(STATE.astype(np.float32), ACTION.astype(np.float32), START, episodes, 3, most, every)


def test_windows_stay_in_their_episode_and_have_an_action_before() -> None:
    found = windows()
    assert found.start.tolist() == [1, 2, 3, 6, 7, 8, 9, 10]
    np.testing.assert_array_equal(found.previous, ACTION[found.start - 1])
    assert found.valid.sum(1).tolist() == [3, 2, 1, 3, 3, 3, 2, 1]
    assert found.action[2, :, 0].tolist() == [4.0, 4.0, 4.0], "the last action is repeated past the end"
    assert windows(every=2).start.tolist() == [1, 3, 6, 8, 10]
    assert windows((0, 1, 2), most=3).start.tolist() == [1, 7, 10]
    assert len(windows((1,)).start) == len(windows(()).start) == 0


def test_standing_still_is_the_state_zero_or_as_before() -> None:
    config = CodecConfig(canvas=(32, 32), places=(), delta_action_dims=(1,))
    found = windows()
    assert state_dims(config, ("a", "b"), ("b", "a")) == {0: 1}, "dim 1 is a motion"
    assert state_dims(config) == {}
    still = standing_still(found, config, {0: 1})
    np.testing.assert_array_equal(still[:, 0], found.state[:, 1])
    assert not still[:, 1].any()
    np.testing.assert_array_equal(standing_still(found, config, {})[:, 0], found.previous[:, 0])


def test_errors_by_step_and_dim() -> None:
    config = CodecConfig(canvas=(32, 32), places=())
    found = windows((0,))  # steps 1, 2, 3 of four
    predicted = found.action + np.float32([0.5, -2.0])
    predicted[~found.valid] = 99.0  # what is past the end does not count
    errors = chunk_errors(predicted, found, config, {0: 0, 1: 1})
    assert errors.count.tolist() == [3, 2, 1]
    np.testing.assert_allclose(errors.policy, np.tile([0.5, 2.0], (3, 1)))
    np.testing.assert_allclose(errors.hold, [[1, 0], [2, 10], [3, 20]])
    np.testing.assert_allclose(errors.repeat, [[1, 10], [2, 20], [3, 30]])
    assert errors.first_step() == {"policy": 1.25, "hold": 0.5, "repeat": 5.5}
    assert errors.overall()["hold"] == pytest.approx((3 * 0.5 + 2 * 6 + 11.5) / 6)
    np.testing.assert_allclose(errors.by_dim()["repeat"], [10 / 6, 100 / 6])
    np.testing.assert_allclose(errors.by_step()["policy"], [1.25] * 3)
    short = chunk_errors(predicted[:, :2], found, config, {})
    assert short.policy.shape == (2, 2) and short.count.tolist() == [3, 2]
