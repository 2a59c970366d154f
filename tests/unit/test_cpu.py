"""bfloat16 on a CPU without units: float32 rounded once, backward passes included; and memory that is kept."""

import platform
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightwam.system import cpu

torch.manual_seed(0)
LINEAR, CONV = nn.Linear(64, 32), nn.Conv3d(4, 8, (1, 2, 2), (1, 2, 2))
WAYS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "linear": (F.linear, [(2, 5, 64), (32, 64), (32,)]),
    "without bias": (F.linear, [(2, 5, 64), (32, 64)]),
    "in place": (lambda y, a, b: (y * 1).addmm_(a, b, alpha=0.5), [(3, 4), (3, 40), (40, 4)]),
    "batched": (torch.bmm, [(2, 3, 40), (2, 40, 5)]),
    "added": (torch.baddbmm, [(2, 3, 5), (2, 3, 40), (2, 40, 5)]),
    "attention": (F.scaled_dot_product_attention, [(1, 2, 7, 16), (1, 2, 9, 16), (1, 2, 9, 16)]),
    "convolution": (lambda x, w, b: F.conv3d(x, w, b, (1, 2, 2)), [(1, 4, 1, 4, 6), (8, 4, 1, 2, 2), (8,)]),
}


def run(way: Callable[..., Tensor], given: list[Tensor], weight: Tensor) -> list[Tensor]:
    """The result, and the gradient of each input."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    y = way(*leaves)
    (y * weight.to(y.dtype)).sum().backward()
    return [y.detach(), *(x.grad for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("name", WAYS)
def test_products_are_computed_in_float32_and_rounded_once(name: str) -> None:
    way, shapes = WAYS[name]
    given = [torch.randn(shape).bfloat16() for shape in shapes]
    weight = torch.randn(way(*given).shape).bfloat16()
    with cpu.Float32Matmuls():
        ours = run(way, given, weight)
    exact = run(way, [x.float() for x in given], weight.float())
    assert len(ours) == len(exact) == 1 + len(given)
    for index, (one, other) in enumerate(zip(ours, exact, strict=True)):
        assert one.dtype == torch.bfloat16
        # the attention's gradient reads its own rounded result
        room = {"atol": 0.01, "rtol": 0.02} if name == "attention" and index else {"atol": 0.0, "rtol": 0.0}
        torch.testing.assert_close(one, other.bfloat16(), **room)


MEASURE = """
import resource, sys, torch
from lightwam.system.cpu import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
for _ in range(40):  # until the heap has grown
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_kept_memory_is_not_fetched_again() -> None:
    faults = {
        way: int(subprocess.run([sys.executable, "-c", MEASURE, way], capture_output=True, check=True).stdout)
        for way in ("keep", "leave")
    }
    assert faults["keep"] < 0.5 * faults["leave"]


class Seen(TorchDispatchMode):
    """Every product that reaches torch, with the dtype of its first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fast_matmuls: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in cpu.OPERATORS:
            self.fast_matmuls.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", WAYS)
def test_no_product_of_bfloat16_is_left(name: str) -> None:
    way, shapes = WAYS[name]
    given = [torch.randn(shape).bfloat16() for shape in shapes]
    with Seen() as seen, cpu.Float32Matmuls():
        run(way, given, torch.ones(way(*given).shape))
    assert len(seen.fast_matmuls) >= 2 and set(seen.fast_matmuls) == {torch.float32}


@pytest.mark.parametrize("name", [*WAYS, "matrices", "pictures", "einsum"])
@torch.inference_mode()
def test_nor_without_gradients(name: str) -> None:
    """Torch then shows other operators: those that it composes of products."""
    more: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]]]] = {
        "matrices": (torch.matmul, [(2, 3, 40), (40, 5)]), "pictures": (F.conv2d, [(1, 4, 6, 6), (8, 4, 3, 3)]),
        "einsum": (lambda a, b: torch.einsum("bij,kj->bki", a, b), [(2, 3, 40), (5, 40)]),
    }  # fmt: skip
    way, shapes = (WAYS | more)[name]
    given = [torch.randn(shape).bfloat16() for shape in shapes]
    with cpu.Float32Matmuls():
        ours = way(*given)
    torch.testing.assert_close(ours, way(*(x.float() for x in given)).bfloat16(), atol=0, rtol=0)
    with Seen() as seen, cpu.Float32Matmuls():
        way(*given)
    assert seen.fast_matmuls and set(seen.fast_matmuls) == {torch.float32}


def test_other_dtypes_are_left_alone() -> None:
    x, weight = torch.randn(3, 64, dtype=torch.float64), torch.randn(32, 64, dtype=torch.float64)
    with Seen() as seen, cpu.Float32Matmuls():
        assert torch.equal(F.linear(x, weight), x @ weight.t())
    assert set(seen.fast_matmuls) == {torch.float64}


@pytest.mark.parametrize(
    ("device", "dtype", "has", "quick"),
    [
        ("cpu", torch.bfloat16, False, True),
        ("cpu", torch.bfloat16, True, False),
        ("cpu", torch.float32, False, False),
        ("cuda", torch.bfloat16, False, False),
    ],
)
def test_only_bfloat16_on_a_cpu_without_units_needs_it(
    monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype, has: bool, quick: bool
) -> None:
    monkeypatch.setattr(cpu, "has_bfloat16", lambda: has)
    assert isinstance(cpu.fast_matmuls(torch.device(device), dtype), cpu.Float32Matmuls) == quick
    computed = "float32" if quick else str(dtype).removeprefix("torch.")
    assert cpu.matmul_dtype(torch.device(device), dtype) == computed
