"""A GPU that is not there: fake tensors on cuda:0 have shapes, dtypes and a device, and no numbers.

An operator whose arguments lie on different devices raises, as on a real GPU, and so does one that needs the numbers.
Backward passes cannot run.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightwam.encoders.dct import analysis
from lightwam.kernels import choice
from lightwam.model.layers import rope_3d

CUDA = torch.device("cuda", 0)
ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_consecutive", "_unique2"}
"""operators whose result the CPU waits for"""


@cache
def load_guard(folder: Path) -> None:
    """Compile the device's stand-in for torch's core, and load it; skip the test without a compiler."""
    compiler, library = shutil.which("g++"), folder / "guard.so"
    if compiler is None:
        pytest.skip("g++ is not installed")
    home = Path(torch.__file__).parent
    source = Path(__file__).with_name("fake_cuda_guard.cpp")
    options = ["-O0", "-shared", "-fPIC", "-std=c++20", f"-I{home / 'include'}"]
    links = [f"-L{home / 'lib'}", "-lc10", f"-Wl,-rpath,{home / 'lib'}"]
    subprocess.run([compiler, *options, str(source), "-o", str(library), *links], check=True)
    ctypes.CDLL(str(library))


@contextmanager
def fake_gpu(folder: Path) -> Iterator[FakeTensorMode]:
    """Make every tensor inside a fake one, those on the CPU too. Tables that the library caches are forgotten after."""
    load_guard(folder)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", _apply)  # torch's would swap tensors in place, which fake ones forbid
        patch.setattr(FakeTensorMode, "__deepcopy__", lambda self, memo: self, raising=False)
        patch.setattr(choice, "on", lambda device: device.type == "cuda")  # which would run kernels to tell
        try:
            _forget_tables()
            yield mode
        finally:
            _forget_tables()


def _forget_tables() -> None:
    for cached in (rope_3d, analysis):
        cached.cache_clear()


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    for child in module.children():
        child._apply(change)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(change(parameter.detach()), parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else change(buffer)
    return module


class DeviceWatch(TorchDispatchMode):
    """Notes what is wrong with operators inside.

    `on_cpu`: those that touch a tensor on the CPU. `waiting`: those that may make the CPU wait for the GPU, copies
    between the two among them. `biases`: in inference mode, attention whose scores have a bias in another dtype than
    the queries, which cuDNN's kernel misreads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.on_cpu: list[str] = []
        self.waiting: list[str] = []
        self.biases: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # a question about a tensor
            return func(*args, **kwargs)
        if func is not ATTENTION:
            with self:  # in inference mode torch shows operators that are composed of others
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        self.calls += 1
        kinds = {leaf.device.type for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
        if "cpu" in kinds:
            self.on_cpu.append(str(func))
        if "cuda" in kinds and ("cpu" in kinds or func._schema.name.removeprefix("aten::") in WAITS):
            self.waiting.append(str(func))
        if func is ATTENTION and len(args) > 3 and args[3] is not None and args[3].dtype != args[0].dtype:
            self.biases.append(f"{args[3].dtype} for {args[0].dtype}")
        return result
