"""The reference models: their specs, checkpoints and counts."""

from mf_deploy.models.checkpoint import load_model
from mf_deploy.models.registry import ModelSpec, get_spec, list_models

__all__ = ["ModelSpec", "get_spec", "list_models", "load_model"]
