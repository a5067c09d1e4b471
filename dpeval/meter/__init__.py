"""The meter: measures the training loop of a user's own script.

:mod:`dpeval.meter.meter` is what a script uses. Outside dpeval it does nothing, so importing it
costs next to nothing either: what measures is imported once there is something to measure.
"""

from dpeval.meter.meter import Meter

__all__ = ["Meter"]
