"""The packed step by torch.compile against the plain step, at several sizes of batches.

Inductor's code takes minutes of a CPU to make, so the fast test compiles to torch's own operators.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightwam.engine.cpu_attention import KeptAttention
from lightwam.errors import ConfigError
from lightwam.system import cpu, devices

SHARED = Path(__file__).parents[1] / "shared"
PROGRAM = """
import json, sys
from dataclasses import replace
from functools import partial
import torch
torch.compile = partial(torch.compile, backend=sys.argv[4])
from lora_models import FROZEN, batch_of, gradients, model_of, worst
from lightwam.engine.packed_step import packed_loss

backbone = replace(FROZEN, **json.loads(sys.argv[1]), taps=(0,), num_blocks=int(sys.argv[2]))
graphs, errors = [], []
for size in (3, 2, 1):
    model, (batch, u, noise) = model_of(backbone), batch_of()
    given = batch.rows(0, size), u[:int(sys.argv[3]) or size], noise[:int(sys.argv[3]) or size]
    plain, ours = model.loss(*given), packed_loss(model, *given, compiled=True)
    torch.testing.assert_close(tuple(ours), tuple(plain), rtol=1e-12, atol=0)
    errors.append(worst(gradients(model, ours), gradients(model, plain)))
    graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
print(json.dumps({"graphs": graphs, "errors": errors}))
"""


SCRATCH = {"lora_rank": 0, "frozen": False}


def run(backbone: dict[str, object], blocks: int, videos: int, backend: str) -> dict[str, list[float]]:
    """Run the program in a process without the tests' type checks, which torch.compile cannot look through."""
    command = [sys.executable, "-c", PROGRAM, json.dumps(backbone), str(blocks), str(videos), backend]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SHARED)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_one_graph_serves_batches_of_any_size() -> None:
    """Of two samples or more; one alone has a graph of its own."""
    found = run({}, blocks=1, videos=0, backend="aot_eager")
    assert max(found["errors"]) < 1e-12
    assert found["graphs"] == [1, 1, 2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("backbone", [{}, SCRATCH], ids=["LoRA", "scratch"])
def test_four_kinds_of_blocks_in_inductors_code(backbone: dict[str, object]) -> None:
    """With all tokens, after the last tap, the last block, and the action pass alone."""
    found = run(backbone, blocks=3, videos=1, backend="inductor")
    assert max(found["errors"]) < 1e-12


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(ConfigError, match=r"(?s)needs a compiler.*no no-such-compiler\n"):
        devices.check_compiler(torch.device("cpu"), torch.float32)


def test_bfloat16_without_units_for_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.precision float32"):
        devices.check_compiler(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("size", [1, 3])
def test_attention_with_kept_probabilities_is_off_by_two_roundings(size: int) -> None:
    """In bfloat16 against float64; scores with a standard deviation of 9, too, which must not be rounded."""
    torch.manual_seed(0)
    q, k, v = size * torch.randn(6, 40, 128), size * torch.randn(6, 24, 128), torch.randn(6, 24, 128)
    grad = torch.randn(6, 40, 128).bfloat16()

    def all_of(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.bfloat16().to(dtype).requires_grad_() for x in (q, k, v)]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))]

    exact = all_of(torch.nn.functional.scaled_dot_product_attention, torch.float64)
    for ours, theirs in zip(all_of(KeptAttention.apply, torch.bfloat16), exact, strict=True):
        assert (ours - theirs).norm() < 2**-7 * theirs.norm()
