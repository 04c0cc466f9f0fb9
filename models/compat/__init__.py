"""Compatible training: one file a method, each a term that is added to the classification loss.

A new method is a new file with a subclass of CompatMethod and one line in METHODS.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from models.compat.base import CompatBatch, CompatMethod, OldModel, leading_coordinates
from models.errors import UsageError
from models.options import check_options

METHODS: dict[str, str] = {
    "independent": "models.compat.independent:Independent",
    "bct": "models.compat.bct:BCT",
    "ract": "models.compat.ract:RACT",
    "ract_triplet": "models.compat.ract_triplet:RACTTriplet",
    "ract_classifier": "models.compat.ract_classifier:RACTClassifier",
    "unibct": "models.compat.unibct:UniBCT",
    "bict": "models.compat.bict:BiCT",
    "dmu": "models.compat.dmu:DMU",
    "lce": "models.compat.lce:LCE",
    "advbct": "models.compat.advbct:AdvBCT",
}
"""Method name -> module:class."""


def create_method(name: str, options: Mapping[str, Any] | None = None) -> CompatMethod:
    """The method by name, built with `options`. Raises UsageError for an unknown name or option."""
    if name not in METHODS:
        raise UsageError(f"unknown compatible-training method {name!r}: choose one of {', '.join(METHODS)}")
    module, _, attribute = METHODS[name].partition(":")
    kind: type[CompatMethod] = getattr(importlib.import_module(module), attribute)
    check_options(f"method {name!r}", kind, options or {})
    return kind(**(options or {}))


__all__ = ["METHODS", "CompatBatch", "CompatMethod", "OldModel", "create_method", "leading_coordinates"]
