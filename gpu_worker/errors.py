"""What can go wrong in the engine. A message says what was wrong, the value, and what would be right."""

from __future__ import annotations

__all__ = [
    "BadModelDirectory",
    "DeviceFailed",
    "DeviceOutOfMemory",
    "EngineError",
    "IntegrityError",
    "StepRefused",
    "UnsupportedModel",
]


class EngineError(Exception):
    """Base of all errors of this package."""


class BadModelDirectory(EngineError):
    """The directory does not hold a readable model: a missing or torn file, a missing or misshapen tensor."""


class UnsupportedModel(EngineError):
    """The model is readable, but the engine cannot run it: its architecture, quantisation or a setting."""


class DeviceOutOfMemory(EngineError):
    """What was asked for at load does not fit the device."""


class DeviceFailed(EngineError):
    """The device cannot be used, or failed while it ran a step. The process is to end; its requests go elsewhere."""


class StepRefused(EngineError):
    """A step breaks the protocol or does not fit. Nothing of it was done. `StepDone.error` carries the text."""


class IntegrityError(EngineError):
    """The bookkeeping of slots and blocks contradicts itself: a defect of the engine."""
