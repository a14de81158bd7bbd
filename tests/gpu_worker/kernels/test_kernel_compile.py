"""The compiler's view of the kernels, for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SHARED_LIMIT = {80: 166912, 89: 101376, 90: 232448, 100: 232448}  # bytes a program may use, by compute capability


def compile_for(capability: int, cases: list[str], cache: Path) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT), "TRITON_DEFAULT_FP_FUSION": "1"}
    script = Path(__file__).with_name("compile_offline.py")
    command = [sys.executable, str(script), "--capability", str(capability)]
    done = subprocess.run(
        [*command, *(word for case in cases for word in ("--case", case))],
        env=environment, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("capability", "cases"),
    [
        (90, ["128,4,bf16", "80,7,bf16", "64,1,fp16", "256,8,bf16", "128,1,fp32"]),
        (80, ["128,4,bf16"]),
        (89, ["256,8,fp16"]),
        (100, ["128,8,bf16"]),
    ],
)
def test_every_kernel_compiles_and_fits(capability: int, cases: list[str], tmp_path: Path) -> None:
    """Each kernel compiles for each architecture in the table, within the shared memory that it has."""
    variants = compile_for(capability, cases, tmp_path)
    assert {variant["kernel"] for variant in variants} == {
        "attention_kernel",
        "merge_kernel",
        "_write_kv_kernel",
        "_rope_kernel",
        "_rms_norm_kernel",
        "_silu_mul_kernel",
    }
    assert max(variant["shared"] for variant in variants) <= SHARED_LIMIT[capability]
    attention = [v for v in variants if v["kernel"] == "attention_kernel" and v["dtype"] != "fp32"]
    assert len(attention) == 4 * sum("fp32" not in case for case in cases)
    for variant in attention:
        assert variant["tensor_core_products"] > 0, variant
        # KV comes in asynchronous loads of 16 bytes: the compiler has seen alignment and contiguity, and pipelines.
        assert variant["wide_async_loads"] >= 8, variant
        if capability >= 90:
            assert variant.get("stack", 0) == 0, f"registers spill: {variant}"
