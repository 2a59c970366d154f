"""system/devices.py and the process group's device, on machines that are not here."""

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lightwam.system.devices import use_gpu
from lightwam.training.distributed import process_group


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    return devices


@pytest.mark.parametrize(
    ("capability", "dtype", "warns"),
    [
        ((7, 5), torch.bfloat16, True),
        ((7, 5), torch.float32, False),
        ((8, 0), torch.bfloat16, False),
        ((9, 0), torch.bfloat16, False),
    ],
)
def test_a_gpu_becomes_the_current_one_and_slow_bfloat16_is_told(
    capability: tuple[int, int],
    dtype: torch.dtype,
    warns: bool,
    made_current: list[torch.device],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        use_gpu(device, dtype)
        use_gpu(torch.device("cpu"), torch.bfloat16)
    assert made_current == [device]
    assert [("Tesla T4 of compute capability 7.5" in str(each.message)) for each in told] == [True] * warns


def test_processes_with_gpus_tell_nccl_which_one_is_theirs(
    made_current: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **named: given.update(named, backend=backend))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with process_group("auto") as world:
        assert (world.device, world.process) == (torch.device("cuda", 1), (1, 2))
    assert (given["backend"], given["device_id"]) == ("nccl", torch.device("cuda", 1))
    assert made_current == [torch.device("cuda", 1)]
