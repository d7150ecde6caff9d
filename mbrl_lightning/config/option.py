"""One configuration key: default, help text and limits."""

from dataclasses import field
from typing import Any


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field with help text and limits in its metadata; mutable defaults are copied."""
    metadata = {"help": help, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)
