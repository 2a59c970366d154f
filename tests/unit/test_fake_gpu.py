"""Devices of all tensors, on a GPU that is not there (`fake_cuda`): every operator's arguments must lie on one device,
and an engine's second call must touch nothing on the CPU, as a CUDA graph requires."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import small_model
import torch
from diffusers import AutoencoderKLWan
from fake_cuda import CUDA, DeviceWatch, fake_gpu
from small_model import Same, canvas_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import UMT5Config, UMT5EncoderModel

from lightwam.config.schema import DctConfig, TrainConfig, Umt5Config
from lightwam.encoders.dct import DctLatents, pooled_synthesis
from lightwam.encoders.umt5 import Umt5Text
from lightwam.encoders.wan_vae import WanVaeLatents
from lightwam.engine import folding, packed_step
from lightwam.engine.engine import Engine
from lightwam.engine.folded_model import ContextKV, FoldedWAM, PromptKV
from lightwam.engine.folding import Placement, tensors
from lightwam.engine.packed_step import packed_loss
from lightwam.model import flow
from lightwam.model.light_wam import LightWAM
from lightwam.policy.actor import PlainActor
from lightwam.training.optimizer import Optimizer
from lightwam.types import Batch, LatentCodec, to_pixels

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")  # by copy.deepcopy
CPU = torch.device("cpu")
CONFIG = replace(small_model.CONFIG, backbone=replace(small_model.CONFIG.backbone, num_blocks=2, taps=(0,)))
DCT = DctConfig(luma_channels=1, chroma_channels=1)


@pytest.fixture(scope="module")
def mode(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeTensorMode]:
    flow._bell_range(CONFIG.flow)  # cached, as their numbers are needed
    pooled_synthesis(DCT)
    with fake_gpu(tmp_path_factory.mktemp("fake_gpu")) as mode:
        yield mode


@pytest.fixture(autouse=True)
def fake_tensors(mode: FakeTensorMode) -> Iterator[None]:
    with mode:
        yield


def model_on(device: torch.device, dtype: torch.dtype, foresight: int = 0) -> LightWAM:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LightWAM(replace(small_model.config_of(foresight), backbone=CONFIG.backbone))
    finally:
        torch.set_default_dtype(before)


def inputs_on(device: torch.device, size: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, context and state."""
    with device:
        return torch.randn(size, 3, 1, 8, 12), torch.randn(size, 6, 10), torch.randn(size, 2)


def batch_of(size: int = 3) -> Batch:
    paddings = torch.zeros(size, 8, dtype=torch.bool), torch.zeros(size, 9, dtype=torch.bool)
    latent, context, state = inputs_on(CPU, size)
    clip, is_token = torch.randn(size, 3, 3, 4, 6), torch.ones(size, 6, dtype=torch.bool)
    return Batch(latent, clip, context, state, torch.randn(size, 8, 3), *paddings, is_token)


def on_gpu(*results: Tensor) -> bool:
    return all(result.device == CUDA for result in results)


@torch.inference_mode()
def test_the_watch_sees_other_devices_waiting_and_biases() -> None:
    """And fake tensors refuse to mix devices at all."""
    x = torch.randn(4, 4, device=CUDA)
    with DeviceWatch() as watch:
        (x + 1).sum()
    assert watch.calls == 2 and not watch.on_cpu + watch.waiting
    with DeviceWatch() as watch:
        (torch.zeros(4, 4) + 1).to(CUDA)
        x.cpu()
    assert (len(watch.on_cpu), len(watch.waiting)) == (4, 2)
    with DeviceWatch() as watch, pytest.raises(Exception, match=r"nonzero|item"):
        x[x > 0]
    q = x.view(1, 1, 4, 4).bfloat16()
    with DeviceWatch() as watch:
        for dtype in (torch.bfloat16, torch.float32):
            torch.nn.functional.scaled_dot_product_attention(q, q, q, q.new_zeros(1, 1, 1, 4, dtype=dtype))
    assert watch.biases == ["torch.float32 for torch.bfloat16"]
    with pytest.raises(RuntimeError, match=r"two different devices|at least two devices"):
        x + torch.randn(4, 4)
    with pytest.raises(Exception, match="_local_scalar_dense"):
        float(x.sum())


@torch.inference_mode()
def test_the_plain_model() -> None:
    model, given = model_on(CUDA, torch.bfloat16), inputs_on(CUDA)
    noise = torch.randn(2, 3, 3, 4, 6, device=CUDA)
    assert on_gpu(model.imagine(*given, noise, 2), *model.attention(*given))
    with DeviceWatch() as watch:
        assert on_gpu(model.act(*given))
    assert not watch.on_cpu + watch.waiting


def test_a_batch_moves_as_a_whole() -> None:
    moved = batch_of().to(CUDA)
    assert on_gpu(moved.present, moved.clip, moved.context, moved.state, moved.action)
    assert on_gpu(moved.action_is_pad, moved.frame_is_pad)


@pytest.mark.parametrize("foresight", [0, 2])
def test_the_losses(foresight: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward only. Places of tokens are numbers of the CPU's, found before."""
    model, batch = model_on(CUDA, torch.bfloat16, foresight), batch_of().to(CUDA)
    u, noise = torch.rand(2, device=CUDA), torch.randn(2, 3, 3, 4, 6, device=CUDA)
    monkeypatch.setattr(packed_step, "token_places", lambda batch: torch.arange(15, device=CUDA))
    assert on_gpu(*model.loss(batch, u, noise))  # makes tables
    with DeviceWatch() as watch:
        assert on_gpu(*packed_loss(model, batch, u, noise))
    assert not watch.waiting


@pytest.mark.parametrize(
    ("dtype", "settings"), [(torch.float32, {"muon_learning_rate": 0.01}), (torch.bfloat16, {})], ids=["Muon", "AdamW"]
)
def test_the_optimizer_and_the_average(dtype: torch.dtype, settings: dict[str, float]) -> None:
    model = model_on(CUDA, dtype)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = Optimizer(trained, TrainConfig(steps=9, batch_size=2, **settings))
    for _ in range(2):
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        assert on_gpu(optimizer.clip(1.0))
        optimizer.step(0.5)
    masters = [master.detach() for master in optimizer.masters.values()]
    average = [master.clone() for master in masters]
    torch._foreach_lerp_(average, masters, 0.1)
    assert on_gpu(*masters, *average, *trained.values())


def folded_on(model: LightWAM, dtype: torch.dtype, *, int8: bool = False) -> FoldedWAM:
    return FoldedWAM(model, Placement(CUDA, dtype, int8))


def prompt_of(folded: FoldedWAM, num_keys: int) -> PromptKV:
    """As `encode_prompt` returns, whose number of keys depends on the numbers of the states."""
    dtype = folded.placement.dtype
    keys, values = folded._keys_values(folded.embed1(torch.randn(num_keys, 10, device=CUDA, dtype=dtype)))
    return PromptKV(keys, values, torch.zeros(num_keys, device=CUDA, dtype=dtype))


@pytest.mark.parametrize(
    ("dtype", "source", "survives", "int8"),
    [(torch.bfloat16, CPU, True, False), (torch.float32, CPU, False, True), (torch.bfloat16, CUDA, False, False)],
)
@torch.inference_mode()
def test_folding_takes_place_on_the_gpu_wherever_the_model_is(
    dtype: torch.dtype, source: torch.device, survives: bool, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`survives`: whether rounding leaves LoRA's updates, which is a number."""
    monkeypatch.setattr(folding, "INT8_FROM", 1)
    compared: list[torch.device] = []
    monkeypatch.setattr(
        folding, "survives_rounding", lambda place, base, update: (compared.append(update.device), survives)[1]
    )
    model = model_on(source, torch.float32)
    folded = folded_on(model, dtype, int8=int8)
    assert {*compared} == {CUDA} and on_gpu(*tensors(folded))
    assert {parameter.device for parameter in model.parameters()} == {source}
    context_kv = folded.batch_prompts([prompt_of(folded, 3), prompt_of(folded, 5)], 16)
    latent, _, state = inputs_on(CUDA)
    action = folded.act(latent, context_kv, state)
    assert action.shape == (2, 8, 3) and on_gpu(action, *context_kv)


def wan_vae() -> WanVaeLatents:
    with CUDA:
        return WanVaeLatents(
            AutoencoderKLWan(base_dim=4, z_dim=3, num_res_blocks=1, latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
        )


def dct() -> DctLatents:
    return DctLatents(DCT, [0.0] * 3, [1.0] * 3)


@pytest.mark.parametrize("make", [wan_vae, dct])
def test_latents_of_frames_and_clips_both_ways(make: Any) -> None:
    latents = make()
    frame, clip = torch.randn(2, 3, 1, 32, 64, device=CUDA), torch.randn(2, 3, 9, 32, 64, device=CUDA)
    z = latents.encode(clip)
    assert z.shape == (2, 3, 3, 4, 8)
    assert on_gpu(z, latents.encode(frame), latents.decode(z), latents.decode_pooled(z))


@pytest.mark.parametrize(
    ("make", "dtype", "foresight"), [(wan_vae, torch.bfloat16, 0), (dct, torch.float32, 0), (dct, torch.bfloat16, 2)]
)
@torch.inference_mode()
def test_the_second_call_of_an_engine_touches_nothing_on_the_cpu(
    make: Any, dtype: torch.dtype, foresight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a CUDA graph holds: bytes of a canvas to actions. The first call makes tables."""
    monkeypatch.setattr(folding, "survives_rounding", lambda *_: True)
    latents: LatentCodec = make()
    folded = folded_on(model_on(CPU, torch.float32, foresight), dtype)
    context_kv = folded.batch_prompts([prompt_of(folded, 5)], 16)
    canvas, state = torch.zeros(1, 32, 64, 3, dtype=torch.uint8, device=CUDA), torch.randn(1, 2, device=CUDA)
    for call in range(2):
        with DeviceWatch() as watch:
            folded.act(latents.encode(to_pixels(canvas[:, None])), context_kv, state)
        assert watch.calls > 100
        assert not watch.biases and (call == 0 or not watch.on_cpu + watch.waiting)


@torch.inference_mode()
def test_actors_take_canvases_and_states_from_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "survives_rounding", lambda *_: True)
    monkeypatch.setattr(FoldedWAM, "encode_prompt", lambda folded, states: prompt_of(folded, len(states)))

    def states(sentences: Sequence[str]) -> Tensor:
        return torch.randn(len(sentences), 6, 10)

    canvas, sentences, state = canvas_of(2), ["a", "b"], torch.randn(2, 2)
    plain = PlainActor(model_on(CUDA, torch.float32), Same(), states)
    engine = Engine(model_on(CPU, torch.float32), Same(), states, CUDA, torch.bfloat16)
    assert on_gpu(plain.act(canvas, sentences, state), engine.act_eagerly(canvas, sentences, state))
    plain.warm((1, 2), canvas[:1], sentences, state[:1])
    context_kv: ContextKV = engine.context_kv(("a",))
    assert context_kv.score_bias.shape[-1] == 16


def test_a_text_encoder_reads_on_the_gpu_and_stays_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(vocab_size=30, d_model=24, d_kv=4, d_ff=32, num_layers=2, num_heads=3)
    text = Umt5Text(UMT5EncoderModel(UMT5Config(**sizes)), None, Umt5Config(num_tokens=12, dim=24), CUDA)
    monkeypatch.setattr(text, "_tokens", lambda sentence: [5, 6, 1])
    states = text.encode(["a b"])
    assert states.device == CPU and states.shape == (1, 12, 24)
    assert {parameter.device for parameter in text.encoder.parameters()} == {CPU}
