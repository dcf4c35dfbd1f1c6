"""The running service: a FastAPI app, served by BentoML on a laptop and by uvicorn in the container.

Here what a serving process must not be able to do: import the training stack, and unpickle.
"""

import sys
from typing import Any

FORBIDDEN = ("pandas", "sklearn", "scipy", "joblib", "matplotlib")


def seal() -> None:
    """From here on this process cannot import FORBIDDEN and cannot load a class or function from a pickle."""
    for name in [name for name in sys.modules if name.split(".")[0] in FORBIDDEN]:
        del sys.modules[name]
    for name in FORBIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]  # Python's own way to make an import fail
    sys.addaudithook(_refuse_pickle)


def _refuse_pickle(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class":
        raise PermissionError(f"nothing is unpickled where requests are served: {arguments}")
