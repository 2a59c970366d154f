"""serving/serve.py: what happens to policies between loading and serving."""

import gc
import weakref
from typing import Any

import pytest
import torch

from lightwam.policy.policy import Policy
from lightwam.serving.access import Keys
from lightwam.serving.serve import make_server
from lightwam.serving.settings import Serving


def test_policies_are_warmed_before_they_serve_and_freed_after(
    tiny_once: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    warmed: list[tuple[int, object]] = []
    loaded: list[weakref.ref[Policy]] = []
    monkeypatch.setattr(Policy, "warm", lambda policy, sizes: warmed.append((policy.step, sizes)))

    def load(step: int | None) -> Policy:
        policy = Policy.load(tiny_once.run, step, device="cpu", engine=True)
        policy.device = torch.device("cuda", 0)
        loaded.append(weakref.ref(policy))
        return policy

    server = make_server(tiny_once.run, load, Serving(max_batch=6), Keys(), 4)
    assert warmed == [(4, (1, 2, 4, 6))]
    assert server.load_newer is not None
    newer = server.load_newer(server.step)
    assert newer is not None and newer.step == 6
    assert warmed[1:] == [(6, (1, 2, 4, 6))], "before it serves"
    log = capsys.readouterr().err
    assert log.count("ready for batches") == 2 and "step=6 sizes=(1, 2, 4, 6) device=cuda:0 seconds=" in log
    gc.collect()
    assert loaded[0]() is not None
    server.batcher.swap(newer.act, newer.step)
    gc.collect()
    assert loaded[0]() is None, "the first policy's memory is kept"
    assert loaded[1]() is not None
    assert server.load_newer(6) is None


def test_a_cpu_is_not_warmed(
    tiny_once: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Policy, "act_batch", lambda *_: pytest.fail("it acted"))
    make_server(tiny_once.run, lambda step: Policy.load(tiny_once.run, step, device="cpu"), Serving(), Keys())
    assert "ready" not in capsys.readouterr().err
