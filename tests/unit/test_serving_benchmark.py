"""serving/benchmark.py: round trips and health checks of a server that is measured from another process."""

import json
import time
from typing import Any

import pytest

from lightwam.serving import benchmark
from lightwam.serving.benchmark import ACTION_DIM, HORIZON, bench_serve, openpi_client, served, table


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "WARM_UP", 1)
    monkeypatch.setattr(benchmark, "ROUND_TRIPS", 5)
    monkeypatch.setattr(benchmark, "HEALTH_CHECKS", 10)


def test_the_result_has_every_measurement(few: None) -> None:
    result = bench_serve()
    assert json.loads(json.dumps(result)) == result, "plain JSON values"
    assert result["message_bytes"] > 2 * 224 * 224 * 3
    assert result["repetitions"] == {"round_trip": 5, "healthz": 10} and result["warm_up"] == 1
    for row in ("round_trip", "bare_sockets", "healthz_while_thinking"):
        assert 0 < result[row]["p50_ms"] <= result[row]["p95_ms"] <= result[row]["p99_ms"]
    assert result["healthz_while_thinking"]["p99_ms"] <= result["healthz_while_thinking"]["max_ms"]
    assert result["healthz_while_thinking"]["max_ms"] < 1000 * benchmark.THINKING_SECONDS, (
        "it does not wait for a chunk"
    )
    assert {"cores", "processor"} <= result["machine"].keys() and result["versions"]["aiohttp"]
    assert "5 round trips after 1, 10 health checks" in table(result)


def test_the_measured_round_trip_is_one_chunk_and_as_long_as_the_policy_computes() -> None:
    with served(0.2) as port, openpi_client(port) as (ask, _):
        began = time.perf_counter()
        answer: Any = ask()
        assert time.perf_counter() - began > 0.2
    assert answer["actions"].shape == (HORIZON, ACTION_DIM)


def test_a_server_that_does_not_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="ended before it listened"), benchmark._process(int, "no port"):
        pass


def test_round_trips_and_bare_sockets_take_turns_and_the_first_do_not_count(
    few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th call takes n ms: those of the warm-up are 1 and 2, and then the two alternate, in either order."""
    calls: list[float] = []

    def milliseconds(call: Any, number: int = 0) -> float:
        call()
        calls.append(len(calls) + 1.0)
        return calls[-1]

    monkeypatch.setattr(benchmark, "_milliseconds", milliseconds)
    result = bench_serve()
    assert result["round_trip"]["p50_ms"] == 8.0 and result["bare_sockets"]["p50_ms"] == 7.0
    assert result["healthz_while_thinking"]["max_ms"] == 22.0


def test_the_table_aligns_milliseconds() -> None:
    row = {"p50_ms": 1.5, "p95_ms": 2.25, "p99_ms": 13.0}
    result = {
        "round_trip": row,
        "bare_sockets": row,
        "healthz_while_thinking": row | {"max_ms": 20.0},
        "message_bytes": 2048,
        "warm_up": 1,
        "repetitions": {"round_trip": 5, "healthz": 10},
        "machine": {"cores": 2, "processor": "a chip"},
    }
    heads, *rows, about = table(result).splitlines()
    assert heads.split() == ["ms", "p50", "p95", "p99", "max"]
    assert rows[0].startswith("openpi round trip, 2 KiB there, no-op policy") and rows[0].split()[-3:] == [
        "1.50",
        "2.25",
        "13.00",
    ]
    assert rows[2].split()[-1] == "20.00" and rows[1].index("13.00") == rows[2].index("13.00")
    assert about == "5 round trips after 1, 10 health checks; 2 cores of a chip"
