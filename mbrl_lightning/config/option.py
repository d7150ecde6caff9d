"""One option of a configuration or a command: default, help text and limits; what is wrong with a value; its line of help."""

import math
import re
import textwrap
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from mbrl_lightning.errors import did_you_mean

MOST = 10**9  # of anything that is counted, unless a limit of its own says less


def option(default: Any, help: str, **limits: Any) -> Any:
    """A dataclass field; a mutable default is copied.

    Its metadata: `minimum` and `maximum` (inclusive), `above` and `below` (exclusive), `choices`, `pattern` (what a name may
    look like), `why` (what the error adds where a limit needs a reason), `shown` (default in the help).
    """
    metadata = {"help": help, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def limits_broken(value: Any, limits: Mapping[str, Any]) -> str:
    """What is wrong with one value, or nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return "must be finite"
    if "choices" in limits and value not in limits["choices"]:
        return f"must be one of {', '.join(limits['choices'])}{did_you_mean(value[:60], limits['choices'])}"
    if "pattern" in limits and not re.fullmatch(limits["pattern"], value):
        return f"is not a name: lower-case letters, digits and _ only ({limits['pattern']})"
    if type(value) is int:
        limits = {"maximum": MOST} | dict(limits)
    for name, text, broken in (
        ("minimum", "at least", lambda bound: value < bound),
        ("maximum", "at most", lambda bound: value > bound),
        ("above", "more than", lambda bound: value <= bound),
        ("below", "less than", lambda bound: value >= bound),
    ):
        if name in limits and broken(limits[name]):
            reason = f" ({limits['why']})" if "why" in limits else ""
            return f"must be {text} {limits[name]}{reason}"
    return ""


def help_line(key: str, default: Any, metadata: Mapping[str, Any]) -> str:
    """The line of `--help` for one key: default, meaning, limits."""
    signs = {"minimum": ">=", "maximum": "<=", "above": ">", "below": "<"}
    limits = [f"{sign} {metadata[name]}" for name, sign in signs.items() if name in metadata]
    limits += [" | ".join(metadata["choices"])] if "choices" in metadata else []
    text = "null" if default is None else str(default).replace(" ", "")
    text = metadata.get("shown", text.lower() if isinstance(default, bool) else text)
    return help_entry(f"{key}={text}", metadata["help"] + (f" [{', '.join(limits)}]" if limits else ""))


def help_entry(word: str, meaning: str) -> str:
    """A word and, in a column of its own, what it means."""
    return textwrap.fill(f"  {word:<38} {meaning}", 128, subsequent_indent=" " * 41, break_long_words=False)
