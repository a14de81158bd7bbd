"""The kernels under test, on each device that can run them.

Without CUDA they run in Triton's interpreter. Triton decides for it when a kernel is defined, and for its own library
when it is first imported, which another test in this process may have done already. So a second copy of the kernels is
defined here for the interpreter, and the library is put in place while a test of this folder runs: other tests see the
kernels and Triton as they would without this folder.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton import JITFunction
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import InterpretedFunction

PACKAGE = "gpu_worker.kernels"
SWITCH = "TRITON_INTERPRET"
CUDA = torch.cuda.is_available() and os.environ.get(SWITCH, "0") != "1"


@dataclass(frozen=True, slots=True)
class Kernels:
    """The functions of `gpu_worker.kernels`, and the device to give them tensors of."""

    device: torch.device
    package: Any

    def module(self, name: str) -> Any:
        """One of its modules, to look into."""
        return sys.modules[f"{self.package.__name__}.{name}"] if self.device.type == "cuda" else _COPY[name]


_COPY: dict[str, Any] = {}


def _modules() -> dict[str, Any]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[:2] == PACKAGE.split(".")}


@pytest.fixture(scope="session")
def interpreted_package() -> Any:
    """A copy of the kernels defined for the interpreter; `sys.modules` is left as it was."""
    before = _modules()
    for name in before:
        del sys.modules[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "1")
        package = importlib.import_module(PACKAGE)
    for name, module in _modules().items():
        _COPY[name.removeprefix(PACKAGE + ".")] = module
        del sys.modules[name]
    sys.modules.update(before)
    parent = importlib.import_module("gpu_worker")
    if PACKAGE in before:
        parent.kernels = before[PACKAGE]  # type: ignore[attr-defined]
    else:
        del parent.kernels
    return package


def _count(out: Any, bound: Any) -> None:
    for _ in tl.range(0, tl.load(bound)):
        tl.store(out, tl.load(out) + 1)


@pytest.fixture(scope="session")
def interpreter_runs() -> bool:
    """Whether a loop to a loaded bound runs: with numpy from 2.4 on, it does not in the interpreter of Triton 3.6."""
    out = torch.zeros(1, dtype=torch.int32)
    try:
        InterpretedFunction(_count)[(1,)](out, torch.tensor([3], dtype=torch.int32))
    except InterpreterError:
        return False
    return out.item() == 3


@pytest.fixture(scope="session")
def interpreted_library() -> dict[str, Any]:
    """What Triton's own library would be, had it been imported for the interpreter."""
    compiled = {name: value for name, value in vars(tl).items() if isinstance(value, JITFunction)}
    return {name: InterpretedFunction(function.fn) for name, function in compiled.items()}


@pytest.fixture(
    params=[
        "interpreter",
        pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not CUDA, reason="no CUDA device")]),
    ]
)
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    """The kernels on one device after the other, with random tensors that are the same in every run."""
    torch.manual_seed(0)
    if request.param == "cuda":
        yield Kernels(torch.device("cuda"), importlib.import_module(PACKAGE))
        return
    if not request.getfixturevalue("interpreter_runs"):
        pytest.skip(f"the interpreter of triton {triton.__version__} does not run with numpy {np.__version__}")
    package = request.getfixturevalue("interpreted_package")
    library = request.getfixturevalue("interpreted_library")
    # exp(1000) is infinity on a GPU and no event; numpy, which interprets, would warn of it.
    with pytest.MonkeyPatch.context() as patch, np.errstate(over="ignore"):
        patch.setenv(SWITCH, "1")
        for name, function in library.items():
            patch.setattr(tl, name, function)
        yield Kernels(torch.device("cpu"), package)
