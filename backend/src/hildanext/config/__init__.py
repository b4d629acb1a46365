# The configuration of every command: frozen pydantic sections, JSON files with "extends", --set overrides.
# Entry points: Config, load_config, config_schema. A section's file holds its fields, with units in the descriptions.
# Imports neither torch nor transformers.
"""Configuration: declared once, validated together, saved with every run."""

from hildanext.config.loader import load_config, resolved_json
from hildanext.config.root import Config, config_schema

__all__ = ["Config", "config_schema", "load_config", "resolved_json"]
