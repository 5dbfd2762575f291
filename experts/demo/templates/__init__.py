"""The sentences that training data are made of, as YAML, and the one way of reading them."""

from pathlib import Path
from typing import Any

import yaml


def load_template(name: str) -> Any:
    """What `name`.yaml in this folder holds."""
    path = Path(__file__).with_name(f"{name}.yaml")
    return yaml.safe_load(path.read_text(encoding="utf-8"))
