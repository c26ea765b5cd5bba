from typing import Any

from stsimdiff.api import Model as Model
from stsimdiff.api import compress as compress
from stsimdiff.api import load as load
from stsimdiff.api import read as read

__version__: str

# The classes of the methods.
def __getattr__(name: str) -> Any: ...
