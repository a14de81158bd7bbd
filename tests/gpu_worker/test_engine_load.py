"""Loading: what is wrong with a directory is said, sizes are kept, and the device is measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_harness import Driver, greedy_reference, load, prompt, save_model
from safetensors.torch import load_file, save_file

from gpu_worker.config import read_config
from gpu_worker.cpu.compiled import _cache_directory, compile_kernel
from gpu_worker.cpu.elementwise import silu_mul_f32
from gpu_worker.cpu.threads import Team
from gpu_worker.engine import load_engine
from gpu_worker.errors import BadModelDirectory, DeviceFailed, DeviceOutOfMemory, UnsupportedModel
from gpu_worker.linear import Linear, packing_works
from gpu_worker.load import load_torch_engine
from gpu_worker.sizes import choose_dtype
from policies.step_time import step_time

Models = dict[str, tuple[Any, Path]]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model to spoil."""
    save_model("llama", tmp_path)
    return tmp_path


def edit(directory: Path, **changes: Any) -> None:
    """Change config.json; None takes a field out."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def without(name: str) -> Callable[[Path], None]:
    """Take a tensor out of the checkpoint."""

    def spoil(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        del tensors[name]
        save_file(tensors, directory / "model.safetensors")

    return spoil


def index_of_nothing(directory: Path) -> None:
    """Name a shard that is not there."""
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "config.json is missing"),
        (lambda d: (d / "config.json").write_text("[1"), "config.json cannot be read"),
        (lambda d: (d / "config.json").write_text("[1]"), "holds a list; a JSON object"),
        (lambda d: edit(d, hidden_size=None), "hidden_size is None; a positive integer"),
        (lambda d: edit(d, num_key_value_heads=3), "4 attention heads are not a multiple of 3"),
        (lambda d: (d / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "convert to safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes(b"x" * 50), "cannot be read as safetensors"),
        (index_of_nothing, "gone.safetensors is missing"),
        (without("model.layers.1.mlp.up_proj.weight"), "no tensor model.layers.1.mlp.up_proj.weight"),
        (without("lm_head.weight"), "no tensor lm_head.weight"),
        (
            lambda d: edit(d, intermediate_size=100),
            r"mlp.gate_proj.weight has shape \[96, 64\]; config.json asks for \[100",
        ),
    ],
)
def test_a_bad_directory_is_refused_with_what_is_wrong(
    directory: Path, spoil: Callable[[Path], object], words: str
) -> None:
    """The message names the file or tensor, the value, and what would be right."""
    spoil(directory)
    with pytest.raises(BadModelDirectory, match=words):
        load(directory)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; one of LlamaForCausalLM"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\)"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1.0}}, "rope type 'longrope'"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
    ],
)
def test_an_unsupported_model_is_refused(directory: Path, changes: dict[str, Any], words: str) -> None:
    """What the engine cannot compute it does not compute wrongly."""
    edit(directory, **changes)
    with pytest.raises(UnsupportedModel, match=words):
        load(directory)


def test_other_mistakes_are_refused(models: Models, tmp_path: Path) -> None:
    """Devices, dtypes and sizes that cannot be."""
    directory = models["llama"][1]
    with pytest.raises(BadModelDirectory, match="is not a directory"):
        load_engine(tmp_path / "nowhere", device="cpu")
    with pytest.raises(UnsupportedModel, match="device 'tpu' is unknown"):
        load_engine(directory, device="tpu")
    with pytest.raises(UnsupportedModel, match="needs a model directory"):
        load_engine(None, device="cpu")
    with pytest.raises(UnsupportedModel, match="float16 on a CPU"):
        load(directory, dtype="float16")
    with pytest.raises(UnsupportedModel, match="max_context 513 is beyond the model's 512"):
        load(directory, max_context=513)
    with pytest.raises(DeviceOutOfMemory, match="hold no block; one takes"):
        load(directory, blocks=None, kv_bytes=100)
    if not torch.cuda.is_available():
        with pytest.raises(DeviceFailed, match="torch finds none"):
            load_engine(directory, device="cuda")


def test_a_sliding_window_bounds_the_context(tmp_path: Path) -> None:
    """Inside the window, windowed and full attention are one; so the context ends there."""
    model = save_model("mistral", tmp_path, sliding_window=128)
    driver = Driver(load(tmp_path))
    assert driver.engine.spec.max_context == 128
    ids = prompt(120)
    driver.run({0: 120}, new=[driver.row(0, ids, outputs=8, room=8)])
    for _ in range(7):
        driver.run({0: 1})
    assert driver.tokens[0] == greedy_reference(model, ids, 8)[0]


def test_config_fields_of_older_checkpoints_are_read(directory: Path) -> None:
    """rope_theta, rope_scaling and torch_dtype, as transformers wrote them before version 5."""
    edit(
        directory,
        rope_parameters=None,
        dtype=None,
        rope_theta=5e5,
        rope_scaling={"type": "linear", "factor": 2.0},
        torch_dtype="bfloat16",
    )
    config = read_config(directory)
    assert (config.rope.theta, config.rope.kind, config.rope.factor) == (5e5, "linear", 2.0)
    assert config.dtype == "bfloat16"


def test_eos_ids_come_from_the_generation_config(directory: Path) -> None:
    """It has the last word, and may name several."""
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 9]}))
    assert read_config(directory).eos_token_ids == (5, 9)


def test_sizes_are_what_was_asked_for(models: Models) -> None:
    """Blocks by bytes, slots and budget; the context is no longer than the pool."""
    engine = load(models["llama"][1], blocks=None, kv_bytes=10 * 12288 + 5, host_blocks=3, slots=5, tokens_per_step=77)
    spec = engine.spec
    assert spec.block_bytes == 3 * 2 * 2 * 16 * 16 * 4
    assert (spec.blocks, spec.host_blocks, spec.slots, spec.tokens_per_step) == (10, 3, 5, 77)
    assert spec.max_context == 160
    assert spec.model == models["llama"][1].name


def test_half_precision_checkpoints_find_a_type_the_cpu_is_fast_with() -> None:
    """float16 becomes bfloat16 or float32 on a CPU; float32 stays."""
    cpu = torch.device("cpu")
    assert choose_dtype("auto", torch.float32, cpu) == torch.float32
    assert choose_dtype("auto", torch.float16, cpu) in (torch.bfloat16, torch.float32)
    assert choose_dtype("auto", torch.float16, cpu) == choose_dtype("auto", torch.bfloat16, cpu)


def test_the_self_benchmark_predicts_steps_and_leaves_nothing(models: Models) -> None:
    """Coefficients are not negative, and predict the order of magnitude; the engine is as new."""
    engine = load_torch_engine(models["llama"][1], device="cpu", blocks=64, host_blocks=8, slots=8, threads=1)
    spec = engine.spec
    assert min(spec.step_time.__getattribute__(name) for name in spec.step_time.__struct_fields__) >= 0
    assert spec.step_time.floor_s > 0
    assert spec.swap_bytes_per_s > 1e6
    assert set(engine.load_times_s) == {"weights", "pools", "kernels", "self_benchmark"}
    driver = Driver(engine)
    first = driver.run({0: 100}, new=[driver.row(0, prompt(100))])
    assert first.done.duration_s > 0
    assert step_time(spec.step_time, 100, 5000, 0, 1) > 0


def test_packed_layers_compute_what_plain_ones_do() -> None:
    """With and without bias, for one row and many."""
    assert packing_works(torch.float32)
    weight, bias = torch.randn(48, 32), torch.randn(48)
    for rows in (1, 3, 70):
        x = torch.randn(rows, 32)
        for b in (None, bias):
            torch.testing.assert_close(Linear(weight, b, packed=True)(x), Linear(weight, b)(x), rtol=1e-5, atol=1e-5)


def test_without_the_private_operators_layers_are_plain(monkeypatch: pytest.MonkeyPatch, models: Models) -> None:
    """A torch that lacks them costs speed, nothing else."""

    def gone(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_reorder_linear_weight'")

    monkeypatch.setattr("gpu_worker.linear._pack", gone)
    assert not packing_works(torch.float32)
    model, directory = models["llama"]
    driver = Driver(load(directory))
    driver.run({0: 20}, new=[driver.row(0, prompt(20))])
    driver.run({0: 1})
    assert driver.tokens[0] == greedy_reference(model, prompt(20), 2)[0]


def test_without_torchs_openmp_kernels_run_on_one_thread(monkeypatch: pytest.MonkeyPatch, models: Models) -> None:
    """The entry may be missing on another platform."""
    monkeypatch.setattr("gpu_worker.cpu.threads._gomp_parallel", lambda: None)
    model, directory = models["qwen3"]
    try:
        driver = Driver(load(directory, threads=2))
        assert Team()._parallel is None
        driver.run({0: 60}, new=[driver.row(0, prompt(60))])
        driver.run({0: 1})
        assert driver.tokens[0] == greedy_reference(model, prompt(60), 2)[0]
    finally:
        torch.set_num_threads(1)


def test_kernels_compile_where_no_cache_can_be_written() -> None:
    """An installation on a read-only disk, with no home, serves all the same."""
    kernel = compile_kernel(silu_mul_f32, cached=False)
    x = torch.randn(3, 10)
    out = torch.empty(3, 5)
    Team().run(kernel.address, x.data_ptr(), out.data_ptr(), 3, 5, 1)
    torch.testing.assert_close(out, torch.nn.functional.silu(x[:, :5]) * x[:, 5:], rtol=1e-6, atol=1e-6)


def test_the_cache_is_found_where_it_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first place that can be written, named for the kernels' sources."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(blocked))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = _cache_directory()
    assert found is not None
    assert found.startswith(str(tmp_path / "cache" / "headgate" / "kernels-"))


def test_the_triton_backend_matches_in_the_interpreter(tmp_path: Path) -> None:
    """The whole model on the CUDA backend's kernels, interpreted on CPU tensors, gives the plain backend's logits."""
    save_model("qwen3", tmp_path, num_hidden_layers=2, hidden_size=32, intermediate_size=48)
    program = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from engine_harness import Driver, load, prompt

def run(backend):
    driver = Driver(load(Path(sys.argv[1]), backend=backend))
    driver.engine.keep_logits = True
    driver.run({0: 20}, new=[driver.row(0, prompt(37))])
    driver.run({0: 17, 1: 5}, new=[driver.row(1, prompt(5, 1))])
    driver.run({0: 1, 1: 1})
    return driver

a, b = run("triton"), run("reference")
assert a.tokens == b.tokens, (a.tokens, b.tokens)
worst = max((x - y).abs().max().item() for s in (0, 1) for x, y in zip(a.logits[s], b.logits[s], strict=True))
assert worst < 1e-4, worst
print(len(a.logits[0]), len(a.logits[1]))
"""
    found = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(ROOT), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["2", "2"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_gpu_matches(models: Models) -> None:
    """On CUDA, with two steps in flight and blocks swapped: transformers' greedy tokens."""
    model, directory = models["qwen3"]
    ids = prompt(60)
    expected = greedy_reference(model, ids, 12)[0]
    driver = Driver(load(directory, device="cuda", dtype="float32"))
    ahead = [driver.engine.launch(driver.step({0: 60}, new=[driver.row(0, ids, room=10)]))]
    for _ in range(5):
        ahead.append(driver.engine.launch(driver.step({0: 1})))
        driver.take(driver.engine.collect(ahead.pop(0)))
    driver.take(driver.engine.collect(ahead.pop(0)))
    seen, used = driver.tokens[0], driver.blocks[0]
    driver.run({}, swap_out=[(block, i) for i, block in enumerate(used)], drop=[0])
    back = driver.row(1, ids + seen, prompt_tokens=60, computed=65)
    swaps = [(i, driver.blocks[1][i]) for i in range(5)]
    driver.run({1: 1}, swap_in=swaps, new=[back])
    for _ in range(5):
        driver.run({1: 1})
    assert seen + driver.tokens[1] == expected
