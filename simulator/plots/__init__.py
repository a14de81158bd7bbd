"""Pictures of runs, as PNG. Importing this needs matplotlib, which nothing else of the simulator does."""

from __future__ import annotations

from simulator.errors import SimulatorError

try:
    import matplotlib  # noqa: F401
except ImportError as error:

    class PlotsMissing(SimulatorError, ImportError):
        """matplotlib is not installed."""

    raise PlotsMissing("plots need matplotlib, which is not installed: pip install 'headgate[plots]'") from error
