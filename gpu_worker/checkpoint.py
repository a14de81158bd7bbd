"""Tensors of a Hugging Face checkpoint: one safetensors file or shards with an index, read by name and shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from gpu_worker.config import read_json
from gpu_worker.engine import Progress
from gpu_worker.errors import BadModelDirectory

__all__ = ["Checkpoint"]

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class Checkpoint:
    """The tensors of a model directory. Memory-mapped: a tensor costs memory only once it is read.

    :raises BadModelDirectory: no safetensors, an index that names files or tensors that are not there, a torn file.
    """

    def __init__(self, directory: Path, progress: Progress | None = None) -> None:
        self._progress = progress
        self._done = 0
        self._files: dict[str, Any] = {}
        index = directory / "model.safetensors.index.json"
        single = directory / "model.safetensors"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise BadModelDirectory(f"{index} has no weight_map; it names the file of each tensor")
            names = sorted(set(weight_map.values()))
        elif single.is_file():
            names = [single.name]
        else:
            others = [p.name for p in sorted(directory.glob("*.bin")) + sorted(directory.glob("*.gguf"))]
            hint = f" (found {', '.join(others[:3])}: convert to safetensors)" if others else ""
            raise BadModelDirectory(f"{directory} has no model.safetensors and no model.safetensors.index.json{hint}")
        for name in names:
            path = directory / name
            if not path.is_file():
                raise BadModelDirectory(f"{path} is missing; {index.name} names it")
            try:
                file = safe_open(str(path), framework="pt")
            except (SafetensorError, OSError) as error:
                raise BadModelDirectory(f"{path} cannot be read as safetensors: {error}") from None
            for key in file.keys():  # type: ignore[no-untyped-call]  # noqa: SIM118
                self._files[key] = file
        self.total_bytes = sum((directory / name).stat().st_size for name in names)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def dtype(self) -> torch.dtype:
        """That of the weights: the widest among them. :raises BadModelDirectory: one is not a float type we read."""
        found = set()
        for name, file in self._files.items():
            stored = file.get_slice(name).get_dtype()
            if stored not in _DTYPES:
                raise BadModelDirectory(f"tensor {name} is stored as {stored}; F32, BF16 and F16 are read")
            found.add(stored)
        return _DTYPES[next((kind for kind in ("F32", "BF16", "F16") if kind in found), "F32")]

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor `name`, which must be of `shape`. Memory-mapped: copy it to keep it."""
        file = self._files.get(name)
        if file is None:
            raise BadModelDirectory(f"the checkpoint has no tensor {name}")
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            raise BadModelDirectory(f"tensor {name} has shape {list(found)}; config.json asks for {list(shape)}")
        tensor: torch.Tensor = file.get_tensor(name)
        self._done += tensor.numel() * tensor.element_size()
        if self._progress is not None:
            self._progress(min(self._done, self.total_bytes), self.total_bytes)
        return tensor
