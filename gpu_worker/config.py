"""What a model is, read from its Hugging Face directory without torch.

Llama, Mistral, Qwen2 and Qwen3 are one architecture with a few switches. `ModelConfig` holds exactly those, so that the
model file has no family names in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_worker.errors import BadModelDirectory, UnsupportedModel

__all__ = ["ModelConfig", "Rope", "read_config"]

_FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary embedding: base frequency and how it is stretched beyond the trained context."""

    theta: float = 10000.0
    kind: str = "default"  # default, linear, llama3, yarn
    factor: float = 1.0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    original_context: int = 0  # llama3, yarn
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    attention_factor: float | None = None  # yarn
    truncate: bool = True  # yarn


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shapes and switches of a decoder-only transformer of the Llama kind."""

    family: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    norm_eps: float
    max_context: int  # sliding windows are honoured by not going beyond them
    tied: bool  # lm_head is the embedding
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: Rope
    dtype: str  # of the checkpoint, as config.json names it
    eos_token_ids: tuple[int, ...]

    def kv_elements_per_block(self, block_size: int) -> int:
        """Elements of K and V in one block, all layers."""
        return self.layers * 2 * self.kv_heads * block_size * self.head_dim


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. :raises BadModelDirectory: it is not there, or not an object."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BadModelDirectory(f"{path} is missing; a Hugging Face model directory has it") from None
    except (OSError, ValueError) as error:
        raise BadModelDirectory(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise BadModelDirectory(f"{path} holds a {type(value).__name__}; a JSON object is expected")
    return value


def read_config(directory: Path) -> ModelConfig:
    """Read config.json (and generation_config.json for the EOS ids, where it is there).

    :raises BadModelDirectory: a file is missing or a field absent or misshapen.
    :raises UnsupportedModel: the architecture or one of its settings is not supported.
    """
    if not directory.is_dir():
        raise BadModelDirectory(f"{directory} is not a directory; a local Hugging Face model directory is expected")
    raw = read_json(directory / "config.json")
    family = _family(raw)
    _refuse_unsupported(raw, family)
    hidden, heads = _positive(raw, "hidden_size"), _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    head_dim = _positive(raw, "head_dim", hidden // heads)
    if heads % kv_heads:
        raise BadModelDirectory(f"config.json: {heads} attention heads are not a multiple of {kv_heads} KV heads")
    if head_dim % 2:
        raise BadModelDirectory(f"config.json: head_dim is {head_dim}; rotary embedding needs an even one")
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        family=family,
        vocab_size=_positive(raw, "vocab_size"),
        hidden=hidden,
        layers=_positive(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_positive(raw, "intermediate_size"),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        max_context=_max_context(raw),
        tied=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2" or (attention_bias and family != "mistral"),
        o_bias=attention_bias and family in ("llama", "qwen3"),
        mlp_bias=family == "llama" and bool(raw.get("mlp_bias", False)),
        qk_norm=family == "qwen3",
        rope=_rope(raw),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32").removeprefix("torch."),
        eos_token_ids=_eos(directory, raw),
    )


def _family(raw: dict[str, Any]) -> str:
    architectures = raw.get("architectures") or []
    for name in architectures:
        if name in _FAMILIES:
            return _FAMILIES[name]
    if not architectures and raw.get("model_type") in _FAMILIES.values():
        return str(raw["model_type"])
    found = ", ".join(map(str, architectures)) or raw.get("model_type") or "none named"
    raise UnsupportedModel(f"architecture {found} is not supported; one of {', '.join(_FAMILIES)} is")


def _refuse_unsupported(raw: dict[str, Any], family: str) -> None:
    quantisation = raw.get("quantization_config")
    if quantisation:
        method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else quantisation
        raise UnsupportedModel(f"the checkpoint is quantised ({method}); float32, bfloat16 or float16 is needed")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise UnsupportedModel(f"activation {activation!r} of this {family} model is not supported; silu is")
    if raw.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(f"partial_rotary_factor {raw['partial_rotary_factor']} is not supported; 1.0 is")


def _positive(raw: dict[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise BadModelDirectory(f"config.json: {name} is {value!r}; a positive integer is expected")
    return value


def _max_context(raw: dict[str, Any]) -> int:
    """The trained context, cut to the sliding window where layers use one: inside it, both attend to everything."""
    context = _positive(raw, "max_position_embeddings", 2048)
    window = raw.get("sliding_window")
    layer_types = raw.get("layer_types")
    if layer_types is not None:
        windowed = any(kind != "full_attention" for kind in layer_types)
        unknown = {kind for kind in layer_types if kind not in ("full_attention", "sliding_attention")}
        if unknown:
            raise UnsupportedModel(f"layer types {sorted(unknown)} are not supported; full_attention is")
    else:
        windowed = bool(raw.get("use_sliding_window", raw.get("model_type") == "mistral"))
    if windowed and isinstance(window, int) and window > 0:
        return min(context, window)
    return context


def _rope(raw: dict[str, Any]) -> Rope:
    """From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise BadModelDirectory(f"config.json: rope_scaling is {given!r}; an object is expected")
    if any(isinstance(value, dict) for value in given.values()):
        raise UnsupportedModel("rope parameters that differ by layer type are not supported; one set for all layers is")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise UnsupportedModel(f"rope type {kind!r} is not supported; default, linear, llama3 and yarn are")
    theta = given.get("rope_theta", raw.get("rope_theta", 10000.0))
    original = given.get("original_max_position_embeddings") or _positive(raw, "max_position_embeddings", 2048)
    if "mscale" in given or "mscale_all_dim" in given:
        raise UnsupportedModel("yarn with mscale is not supported; plain yarn is")
    if kind != "default" and not isinstance(given.get("factor"), int | float):
        raise BadModelDirectory(f"config.json: rope {kind!r} has factor {given.get('factor')!r}; a number is expected")
    return Rope(
        theta=float(theta),
        kind=kind,
        factor=float(given.get("factor", 1.0)),
        low_freq_factor=float(given.get("low_freq_factor", 1.0)),
        high_freq_factor=float(given.get("high_freq_factor", 4.0)),
        original_context=int(original),
        beta_fast=float(given.get("beta_fast") or 32.0),
        beta_slow=float(given.get("beta_slow") or 1.0),
        attention_factor=given.get("attention_factor"),
        truncate=bool(given.get("truncate", True)),
    )


def _eos(directory: Path, raw: dict[str, Any]) -> tuple[int, ...]:
    value = raw.get("eos_token_id")
    generation = directory / "generation_config.json"
    if generation.is_file():
        value = read_json(generation).get("eos_token_id", value)
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list) else (int(value),)
