"""bench serve: it measures what it says, in turns, and prints it."""

import json

import pytest

from lightwam.serving import benchmark as bench_serve


def test_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_serve, "WARM_UP", 1)
    monkeypatch.setattr(bench_serve, "ROUND_TRIPS", 5)
    monkeypatch.setattr(bench_serve, "GLANCES", 10)
    told: list[str] = []
    result = bench_serve.bench_serve(as_json=True, say=told.append)
    assert json.loads(told[0]) == result
    assert result["message_bytes"] > 2 * 224 * 224 * 3
    assert result["repetitions"] == {"round_trip": 5, "healthz": 10}
    for row in ("round_trip", "bare_sockets", "healthz_while_thinking"):
        assert 0 < result[row]["p50_ms"] <= result[row]["p99_ms"]
