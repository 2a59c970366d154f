"""The kernels, run by Triton's interpreter. test_kernels.py starts this file in a process with TRITON_INTERPRET=1."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lora_models import FROZEN, batch_of, gradients, model_of, worst
from torch import Tensor
from triton.runtime import interpreter

from lightwam.encoders import wan_vae_frame
from lightwam.engine.folded_model import FoldedWAM
from lightwam.engine.folding import Placement
from lightwam.engine.packed_step import packed_loss
from lightwam.kernels import choice, gpu_code, launch, operators, plain
from lightwam.types import Batch

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts bfloat16 off; round it to the nearest, as a GPU does (test_kernels.py reads its code)."""
    assert operators.interpreted(), "this file is started by test_kernels.py"
    convert = interpreter._convert_float

    def rounded(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return convert(data, source, target, mode)
        values = torch.from_numpy(np.ascontiguousarray(data).view(np.float32))
        return values.bfloat16().view(torch.uint16).numpy().reshape(data.shape)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that ran."""
    names: list[str] = []
    run = launch.run
    monkeypatch.setattr(launch, "run", lambda kernel, *rest: (names.append(kernel.fn.__name__), run(kernel, *rest)))
    return names


def test_each_kernel_equals_plain_torch(launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.on(CPU)
    monkeypatch.setattr(choice, "MAX_ERROR", {torch.float64: 1e-13})
    assert choice.difference(CPU) is None
    code = {name for name, value in vars(gpu_code).items() if type(value).__name__ == "InterpretedFunction"}
    assert set(launched) == {name for name in code if not name.startswith("_")}


def widened(value: Any) -> Any:
    if isinstance(value, list):
        return [part.double() for part in value]
    return value.double() if isinstance(value, Tensor) else value


def test_bfloat16_is_as_near_to_float64_as_plain_torch_is() -> None:
    for name, arguments, columns in choice.examples(CPU, torch.bfloat16):
        exact = choice.results(getattr(plain, name), tuple(map(widened, arguments)), columns)
        ours, theirs = (
            choice.results(function, arguments, columns)
            for function in (getattr(torch.ops.lightwam, name), getattr(plain, name))
        )
        for truth, one, two in zip(exact, ours, theirs, strict=True):
            errors = [float((part.double() - truth).norm() / truth.norm()) for part in (one, two)]
            assert errors[0] <= 1.05 * errors[1] + 1e-6, (name, errors)


def cropped(size: int) -> tuple[Batch, Tensor, Tensor]:
    """Samples of seven tokens, as each takes the interpreter milliseconds: four of the action pass, three later."""
    batch, u, noise = batch_of(size=2)
    batch = replace(batch, present=batch.present[..., :4, :4], clip=batch.clip[..., :2, :2])
    return batch.rows(0, size), u[:size], noise[:size, ..., :2, :2]


def test_packed_step_equals_the_plain_model(launched: list[str]) -> None:
    """With foresight, whose tokens have further calls of the same kernels."""
    model, given = model_of(replace(FROZEN, num_blocks=2, taps=(0,)), foresight=1), cropped(2)
    plain_losses, packed = model.loss(*given), packed_loss(model, *given)
    torch.testing.assert_close(tuple(packed), tuple(plain_losses), rtol=1e-12, atol=0)
    assert worst(gradients(model, packed), gradients(model, plain_losses)) < 1e-12
    assert {"add_norm", "norm_backward", "gated", "head_norm", "head_norm_backward", "gelu_backward"} == set(launched)


@pytest.mark.parametrize("foresight", [0, 2])
def test_engine_equals_the_plain_model(foresight: int, launched: list[str]) -> None:
    model, (batch, _, _) = model_of(replace(FROZEN, num_blocks=3, taps=(0, 2)), foresight=foresight), cropped(2)
    folded = FoldedWAM(model, Placement(CPU, torch.float64))
    context_kv = folded.batch_prompts([folded.encode_prompt(states) for states in batch.context])
    with torch.inference_mode():
        expected = model.act(batch.present, batch.context, batch.state)
        found = folded.act(batch.present, context_kv, batch.state)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert {"add_norm", "head_norm"} == set(launched)


@pytest.mark.parametrize("silu", [True, False])
def test_norm_of_the_frame_encoder(silu: bool, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, norm = torch.randn(2, 12, 3, 5).double(), wan_vae_frame._Norm(torch.randn(12, 1, 1).double(), silu)
    ours = norm(x)
    assert launched == ["norm_silu"]
    monkeypatch.setattr(choice, "on", lambda device: False)
    torch.testing.assert_close(ours, norm(x), rtol=1e-12, atol=1e-14)
