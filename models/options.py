"""Options that a person gives by name to something out of a registry: checked before anything is done."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from models.errors import UsageError


def check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises UsageError, naming what there is, for an option that `function` does not have or of another type.

    Args:
        what: in the message, such as "adapter 'mlp'".
        function: its options are its parameters with a default, annotated as int, float or str; an int is a float too.
    """
    parameters = inspect.signature(function).parameters.values()
    known = [each.name for each in parameters if each.default is not inspect.Parameter.empty]
    types = get_type_hints(function.__init__ if inspect.isclass(function) else function)
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"{what} cannot take {name}; it has {', '.join(known) or 'no options'}")
        wanted = types[name]
        accepted = (int, float) if wanted is float else wanted
        if not isinstance(value, accepted) or isinstance(value, bool):
            raise UsageError(f"{what} needs {name} as {wanted.__name__}, not {value!r}")


def at_least(least: float, **options: float) -> None:
    """Raises UsageError for the first of the options that is below `least`, or no number."""
    for name, value in options.items():
        if not value >= least:
            raise UsageError(f"the option {name} must be at least {least}, not {value}")


def above_zero(**options: float) -> None:
    """Raises UsageError for the first of the options that is not above 0."""
    for name, value in options.items():
        if not value > 0:
            raise UsageError(f"the option {name} must be above 0, not {value}")


def share(**options: float) -> None:
    """Raises UsageError for the first of the options that is not at least 0 and below 1."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise UsageError(f"the option {name} must be at least 0 and below 1, not {value}")
