"""What a step needs and tells besides LeRobot's batch, without waiting for a GPU: draws, prompts, losses."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lightwam.encoders.frozen import Prompts
from lightwam.training.batches import ON_DEVICE


class DrawCount:
    """Seed and number of the draws so far, from a policy's buffer, which is read from a GPU only if it changed."""

    def __init__(self) -> None:
        self._buffer: tuple[Tensor, int] | None = None
        self._known = (0, 0)

    def next(self, drawn: Tensor, counts: bool) -> tuple[int, int]:
        """Return seed and number of the next draw from `drawn`, and with `counts` add one to its number."""
        if self._buffer is None or self._buffer[0] is not drawn or self._buffer[1] != drawn._version:
            seed, number = drawn.tolist()  # it was moved, or loaded
            self._known = seed, number
        known = self._known
        drawn[1] += counts
        self._known, self._buffer = (known[0], known[1] + counts), (drawn, drawn._version)
        return known


class PromptTable:
    """Token states of every sentence so far, on the policy's device."""

    def __init__(self, prompts: Prompts) -> None:
        self._prompts, self._row_of = prompts, dict[str, int]()
        self._states: Float[Tensor, "sentences L E"] | None = None
        self.is_token = torch.zeros(0, 0, dtype=torch.bool)
        """[sentences, L]: what is not padding, on the CPU"""

    def rows(self, sentences: list[str]) -> Int64[Tensor, " B"]:
        """Return the rows of these sentences; new ones are encoded. PromptError for one that does not fit."""
        if new := [each for each in dict.fromkeys(sentences) if each not in self._row_of]:
            states = self._prompts.states(new)
            known = [] if self._states is None else [self._states]
            self._states = torch.cat([*known, states.to(known[0]) if known else states])
            self.is_token = torch.cat([*([self.is_token] if known else []), states.any(dim=2)])
            self._row_of |= {sentence: len(self._row_of) + i for i, sentence in enumerate(new)}
        return torch.tensor([self._row_of[sentence] for sentence in sentences])

    def context(self, rows: Int64[Tensor, " B"], device: torch.device) -> Float[Tensor, "B L E"]:
        """Return the states of these rows on `device`, where the table then stays if it is not large."""
        assert self._states is not None
        if self._states.numel() * self._states.element_size() > ON_DEVICE:
            self._states = self._states.cpu()
            return self._states.index_select(0, rows).to(device)
        self._states = self._states.to(device)
        return self._states.index_select(0, rows.to(device, non_blocking=True))


class LastNumbers:
    """Numbers of the call before. A GPU's are copied to the CPU while it goes on: this call's would be waited for."""

    def __init__(self) -> None:
        self._sent: tuple[Tensor, torch.cuda.Event] | None = None

    def next(self, numbers: Tensor) -> list[float]:
        """Return the numbers of the call before; `numbers` themselves at the first call, and on a CPU."""
        if numbers.device.type != "cuda":
            return [float(number) for number in numbers]
        sent = numbers.to("cpu", non_blocking=True), torch.cuda.Event()
        sent[1].record(torch.cuda.current_stream(numbers.device))
        (known, copied), self._sent = self._sent or sent, sent
        copied.synchronize()
        return [float(number) for number in known]
