"""Pipeline text, under the name that passes and scripts outside this repository import."""

from ._core.pipeline import Pipeline, as_pipeline, parse

__all__ = ["Pipeline", "as_pipeline", "parse"]
