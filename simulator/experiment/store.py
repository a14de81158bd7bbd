"""Results of cells on disk: one small file each, written whole or not at all, so that a killed run loses only what it
was computing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from simulator.experiment.cell import Cell
from simulator.metrics import Metrics

__all__ = ["CellResult", "Store"]

_T = TypeVar("_T")


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """A cell and what came of it. `relative_load`: its load, in multiples of the anchor."""

    cell: Cell
    relative_load: float
    metrics: Metrics


class Store:
    """A folder of results by the digest of their cells."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, cell: Cell) -> Metrics | None:
        """What is there of a cell; None if nothing, or nothing that can be read (an older form, say)."""
        return self._read(f"{cell.digest()}.json", Metrics)

    def put(self, cell: Cell, metrics: Metrics) -> None:
        """Keep the result of a cell."""
        self._write(f"{cell.digest()}.json", msgspec.json.encode(metrics))

    def get_capacity(self, cell: Cell, attainment: float) -> float | None:
        """The capacity that was found for a cell."""
        return self._read(f"anchor-{attainment:g}-{cell.digest()}.json", float)

    def put_capacity(self, cell: Cell, attainment: float, load: float) -> None:
        """Keep the capacity of a cell."""
        self._write(f"anchor-{attainment:g}-{cell.digest()}.json", msgspec.json.encode(load))

    def _read(self, name: str, type_: type[_T]) -> _T | None:
        try:
            return msgspec.json.decode((self._folder / name).read_bytes(), type=type_)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def _write(self, name: str, data: bytes) -> None:
        part = self._folder / f"{name}.{os.getpid()}.part"
        part.write_bytes(data)
        part.replace(self._folder / name)
