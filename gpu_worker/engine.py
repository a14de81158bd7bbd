"""The seam between the worker actor and whatever runs the steps: an `Engine`, real or mock.

Importing this module does not import torch: a mock worker and the gateway's tests never load it.

An engine is driven from one thread, in order. `execute` is `collect(launch(step))`; a driver that keeps two steps in
flight launches step n + 1 before it collects step n. Collecting is in launch order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gpu_worker.errors import UnsupportedModel
from policies.vocabulary import Step, StepDone, WorkerSpec

__all__ = ["Engine", "Progress", "SampledRows", "StepResult", "load_engine"]

#: Called while weights load with (bytes done, bytes in all).
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class SampledRows:
    """The tokens of one step, as parallel lists: what goes to the gateways."""

    slots: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    gateways: list[str] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)  # of the output: position minus prompt tokens
    tokens: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)  # Finish
    logprobs: list[list[tuple[int, float]] | None] = field(default_factory=list)
    """(token, log-probability) of the chosen token, then of the n most likely, best first; None where nobody asked.
    Natural logarithms of the softmax of the raw logits, before any penalty or temperature."""

    def __len__(self) -> int:
        return len(self.slots)


@dataclass(slots=True)
class StepResult:
    """`done` goes to the scheduler, `rows` to the gateways. Both list the same rows in the same order."""

    done: StepDone
    rows: SampledRows


class Engine(Protocol):
    """Runs steps on one device. Not thread-safe: one thread calls it."""

    @property
    def spec(self) -> WorkerSpec: ...

    @property
    def asynchronous(self) -> bool:
        """Whether `launch` returns before the step is done, so that it pays to launch ahead."""

    def reset(self) -> None:
        """Forget every slot and block: a new scheduler attached, and its steps count from 1 again."""

    def execute(self, step: Step) -> StepResult:
        """Run a step and wait for it.

        A step that breaks the protocol or does not fit in memory is refused whole: `done.error` says why, beginning
        with ``protocol:`` or ``out-of-memory:``, and slots are as they were.

        :raises DeviceFailed: the device failed; the engine is unusable.
        """

    def launch(self, step: Step) -> Any:
        """Start a step, and return a handle to collect it by. On a CPU the step is done then; on CUDA it is not.

        :raises DeviceFailed: as `execute`.
        """

    def is_done(self, handle: Any) -> bool:
        """Whether `collect` would not wait."""

    def collect(self, handle: Any) -> StepResult:
        """Wait for the oldest launched step.

        :raises DeviceFailed: as `execute`.
        """

    def close(self) -> None:
        """Give the memory back. Idempotent."""


def load_engine(
    directory: str | Path | None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    model: str | None = None,
    kv_bytes: int | None = None,
    blocks: int | None = None,
    host_blocks: int | None = None,
    slots: int = 64,
    tokens_per_step: int | None = None,
    max_context: int | None = None,
    threads: int | None = None,
    mock_step_s: float | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Load the model in `directory` and make it ready to run: weights, KV pools, compiled kernels, self-benchmark.

    :param directory: a Hugging Face model directory; None only for the mock device.
    :param device: ``cpu``, ``cuda``, ``auto`` (cuda where there is one) or ``mock`` (no torch, modelled time).
    :param dtype: ``auto``, ``float32``, ``bfloat16``, ``float16``. `auto` is the checkpoint's where the device is fast
        with it, else bfloat16 or float32; never float16 on a CPU.
    :param model: name in the spec; the directory's name by default.
    :param kv_bytes: memory for KV blocks on the device, all layers; `blocks` says it in blocks instead. By default a
        share of what is free.
    :param host_blocks: blocks of the host pool to swap to; by default as many as the device has, where memory allows.
    :param slots: rows at most in a step.
    :param tokens_per_step: tokens at most in a step; by default what the device does efficiently.
    :param max_context: tokens of one request at most; by default, and at most, what the model and the pool allow.
    :param threads: of the CPU device; by default all the process may use.
    :param mock_step_s: length of every step of the mock device; by default what its timing model says.
    :raises BadModelDirectory: a file or tensor is missing or wrong.
    :raises UnsupportedModel: the architecture, quantisation or a setting is not supported.
    :raises DeviceOutOfMemory: the sizes asked for do not fit.
    :raises DeviceFailed: the device asked for is not there.
    """
    if device not in ("auto", "cpu", "cuda", "mock"):
        raise UnsupportedModel(f"device {device!r} is unknown; use auto, cpu, cuda or mock")
    if device == "mock":
        from gpu_worker.mock import (
            MockEngine,
            constant_step_time,
        )  # keeps the two engines apart: neither needs the other's imports

        return MockEngine.load(
            directory,
            model=model,
            blocks=blocks,
            host_blocks=host_blocks,
            slots=slots,
            tokens_per_step=tokens_per_step,
            max_context=max_context,
            step_time=None if mock_step_s is None else constant_step_time(mock_step_s),
            progress=progress,
        )
    if directory is None:
        raise UnsupportedModel(f"device {device!r} needs a model directory; only the mock device runs without one")
    # Read by libgomp and oneDNN when torch is first imported; the operator may set others. A thread that waits for
    # the others must sleep, not spin: where other processes want the cores, spinning makes steps 3 to 15 times slower
    # (measured on two cores). And oneDNN keeps a kernel for each shape it meets: let it keep those of every batch size.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "4096")
    from gpu_worker.load import load_torch_engine  # imports torch, which a mock worker must not

    return load_torch_engine(
        Path(directory),
        device=device,
        dtype=dtype,
        model=model,
        kv_bytes=kv_bytes,
        blocks=blocks,
        host_blocks=host_blocks,
        slots=slots,
        tokens_per_step=tokens_per_step,
        max_context=max_context,
        threads=threads,
        progress=progress,
    )
