"""The Triton kernels: interpreted on the CPU, and compiled ahead for the GPUs that they are meant for."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightwam.kernels import choice, plain

WIDTH, HEADS, HIDDEN, RANK = 1536, 12, 8960, 64
"""the paper's sizes"""
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
CUDA = torch.device("cuda")


def test_interpreted(tmp_path: Path) -> None:
    """In a process of its own: Triton decides at its import whether kernels are compiled or interpreted."""
    pytest.importorskip("triton")
    file = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path), str(file)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    assert choice.difference(torch.device("cuda", 0)) is None


def half(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16)


def launches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Sequence[Any], Mapping[str, Any]]]:
    """Every kernel with its arguments, as they are at the paper's sizes."""
    from lightwam.kernels import launch

    recorded: list[tuple[Any, Sequence[Any], Mapping[str, Any]]] = []
    monkeypatch.setattr(
        launch, "run", lambda kernel, grid, given, constants: recorded.append((kernel, given, constants))
    )
    batch, tokens, dim = 2, 6, WIDTH // HEADS
    x, qkv, weight, rope = (
        half(batch, tokens, WIDTH),
        half(batch, tokens, 3 * WIDTH),
        half(2, WIDTH),
        torch.empty(6, 1, dim // 2, 2),
    )
    shift, scale, gate = torch.empty(1 + batch, 6, WIDTH).unbind(1)[:3]
    launch.add_norm(x, x, gate, shift, scale, 1.0, 2, 3 * RANK)
    launch.norm_backward(x, x, torch.empty(batch, tokens, 2), shift, scale, 1.0, x, 2, 3 * RANK)
    launch.gated(x, gate, 2, RANK)
    launch.head_norm(qkv, weight, rope, HEADS)
    out = half(batch, tokens, 3 * (WIDTH + RANK))
    launch.head_norm_backward([half(batch, 2, HEADS, dim) for _ in range(5)], qkv, weight, rope, 2, out)
    launch.gelu_backward(half(batch, tokens, HIDDEN), half(batch, tokens, HIDDEN), RANK)
    launch.norm_silu(half(1, 96, 4, 4).contiguous(memory_format=torch.channels_last), half(96), True)
    return recorded


def compiled(kernel: Any, given: Sequence[Any], constants: Mapping[str, Any], architecture: int) -> Any:
    """Compile a kernel for an NVIDIA architecture, with what Triton would know of these arguments at a launch."""
    import triton
    from triton.backends.compiler import GPUTarget

    constants = dict(constants) | {"COMPUTE": triton.language.float32}
    signature, known, hints = {name: "constexpr" for name in kernel.arg_names}, {}, {}
    for i, value in enumerate(given):
        tensor, name = isinstance(value, Tensor), kernel.arg_names[i]
        if value is None or (not tensor and value == 1):
            known[(i,)] = value
            continue
        signature[name] = TYPES[value.dtype] if tensor else "i32"
        if tensor or value % 16 == 0:
            hints[(i,)] = [["tt.divisibility", 16]]
    known |= {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=known, attrs=hints)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})


@pytest.mark.parametrize("architecture", [90, 89])
def test_compiled_ahead(architecture: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For H100 and H200 (9.0) and RTX 4090 (8.9): no register spills, tokens are read 16 bytes at a time."""
    triton = pytest.importorskip("triton")
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    seen = set()
    for kernel, given, constants in launches(monkeypatch):
        file = tmp_path / "kernel.cubin"
        made = compiled(kernel, given, constants, architecture).asm
        assert "cvt.rn.bf16" in made["ptx"] and "cvt.rz.bf16" not in made["ptx"], "rounded to the nearest"
        file.write_bytes(made["cubin"])
        usage, code = (
            subprocess.run([tools / tool, *options, file], capture_output=True, text=True, check=True).stdout
            for tool, options in (("cuobjdump", ["--dump-resource-usage"]), ("nvdisasm", []))
        )
        registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", usage).groups())  # type: ignore[union-attr]
        name = kernel.fn.__name__
        assert stack == 0 and not re.search(r"\b(LDL|STL)\b", code), f"{name} spills"
        assert registers <= 80, f"{name} has {registers} registers: fewer than 6 blocks fit"
        loads, stores = (re.findall(rf"\b{word}\.E(?:\.\w+)*", code) for word in ("LDG", "STG"))
        wide_tensors = sum(isinstance(value, Tensor) and value.ndim > 2 for value in given)
        assert sum("128" in access for access in loads + stores) >= wide_tensors, (name, loads, stores)
        assert sum("128" not in access for access in loads + stores) <= 2, (name, loads, stores)
        seen.add(name)
    assert len(seen) == 7


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice.difference(torch.device("cpu")) is None
    monkeypatch.setattr(plain, "gated", lambda x, *rest: 1.01 * torch.nn.functional.pad(x, (0, rest[2])))
    assert "gated in torch.float32 differs" in str(choice.difference(torch.device("cpu")))


def test_a_kernel_that_does_not_run_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(choice, "operator", lambda name: fails)
    assert "norm in torch.float32 does not run (RuntimeError: no such instruction" in str(
        choice.difference(torch.device("cpu"))
    )


def test_kernels_are_off_with_one_warning_where_they_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.on.cache_clear()
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(choice, "difference", lambda device: "gated differs")
    with pytest.warns(UserWarning, match="kernels are off on cuda.*gated differs") as warned:
        assert not choice.on(CUDA) and not choice.on(CUDA)
    assert len(warned) == 1
    choice.on.cache_clear()


def test_kernels_are_off_without_triton_and_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    choice.on.cache_clear()
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(choice, "difference", lambda device: None)
    assert not choice.on(CUDA) and not choice.on(torch.device("cpu"))
    monkeypatch.setattr(choice.importlib.util, "find_spec", lambda name: object())
    choice.on.cache_clear()
    assert choice.on(CUDA)
    choice.on.cache_clear()
