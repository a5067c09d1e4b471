"""The meter: measures the training loop of a user's script.

Scripts use :mod:`dpeval.meter.meter`. Outside dpeval it does nothing and importing it costs almost
nothing: the code that measures is imported only when there is something to measure.
"""

from dpeval.meter.meter import Meter

__all__ = ["Meter"]
