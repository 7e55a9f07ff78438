"""topwork: image classifiers from pretrained CNNs, decided by measuring."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from topwork.answers import Prediction
    from topwork.catalogue import backbones
    from topwork.comparison import compare
    from topwork.elsewhere import export
    from topwork.errors import BackboneError, DataError, ImageError, LostError, MissingError, TopworkError, UsageError
    from topwork.explained import explain
    from topwork.explanation import Explanation, Neighbour
    from topwork.judging import judge
    from topwork.model import Model, load
    from topwork.records import Comparison
    from topwork.runs import Run, load_run
    from topwork.survey import Survey, measure
    from topwork.workflow import check, fit, resume
    from topwork.zoo import pull

_HOMES = {
    "BackboneError": "errors", "DataError": "errors", "ImageError": "errors", "LostError": "errors",
    "MissingError": "errors",
    "TopworkError": "errors", "UsageError": "errors",
    "Explanation": "explanation", "Neighbour": "explanation", "explain": "explained",
    "Comparison": "records", "compare": "comparison", "backbones": "catalogue", "pull": "zoo",
    "Model": "model", "Prediction": "answers", "load": "model",
    "export": "elsewhere",
    "Run": "runs", "load_run": "runs", "Survey": "survey", "measure": "survey",
    "check": "workflow", "fit": "workflow", "judge": "judging", "resume": "workflow",
}  # fmt: skip

__all__ = [
    "BackboneError",
    "Comparison",
    "DataError",
    "Explanation",
    "ImageError",
    "LostError",
    "MissingError",
    "Model",
    "Neighbour",
    "Prediction",
    "Run",
    "Survey",
    "TopworkError",
    "UsageError",
    "backbones",
    "check",
    "compare",
    "explain",
    "export",
    "fit",
    "judge",
    "load",
    "load_run",
    "measure",
    "pull",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'topwork' has no attribute {name!r}")
    return getattr(import_module(f"topwork.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
