"""What can be wrong with a simulation."""

from __future__ import annotations

__all__ = ["LawBroken", "SimulationError"]


class SimulationError(Exception):
    """The root of them."""


class LawBroken(SimulationError):
    """A run lost or invented something: a defect of the simulator, or of what it runs."""
