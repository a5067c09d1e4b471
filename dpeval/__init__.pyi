"""Types of the names that ``dpeval/__init__.py`` loads when they are first used."""

from dpeval.analysis.api import (
    best as best,
)
from dpeval.analysis.api import (
    columns as columns,
)
from dpeval.analysis.api import (
    compare as compare,
)
from dpeval.analysis.api import (
    efficiency as efficiency,
)
from dpeval.analysis.api import (
    plot as plot,
)
from dpeval.analysis.api import (
    read as read,
)
from dpeval.analysis.api import (
    scaling as scaling,
)
from dpeval.components import Rank as Rank
from dpeval.components import Training as Training
from dpeval.meter import Meter as Meter

__version__: str
__all__ = [
    "Meter", "Rank", "Training", "best", "columns", "compare", "efficiency", "plot", "read",
    "scaling",
]  # fmt: skip
