"""Code an artifact only names ("module:function"): installed beside the predictor, never carried inside."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from redline.errors import UsageError


def resolve(name: str) -> Callable[..., Any]:
    """The function that "module:function" names.

    Raises:
        UsageError: the name is malformed, the module can't be imported or has no such function.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise UsageError(f"wanted module:function, got {name!r}")
    try:
        target: Any = import_module(module)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as e:
        raise UsageError(f"can't find {name!r} ({e}); is its package installed, or its folder on PYTHONPATH?") from e
    if not callable(target):
        raise UsageError(f"{name!r} is not callable")
    return target  # type: ignore[no-any-return]
