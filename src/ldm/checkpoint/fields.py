"""Values of JSON that others wrote, each checked as it is read.

file  where the JSON stands, for errors. All raise CheckpointError naming file and field.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from reprlib import repr as brief
from typing import Any, TypeVar

from ldm.errors import CheckpointError

Json = dict[str, Any]
T = TypeVar("T")


def whole(
    file: str, config: Mapping[str, Any], field: str, default: int, low: int = 1, high: int = 10**6
) -> int:
    """A whole number from low to high."""
    value = config.get(field, default)
    if type(value) is not int or not low <= value <= high:
        raise wrong(file, field, f"a whole number from {low} to {high}", value)
    return value


def real(file: str, config: Mapping[str, Any], field: str, default: float, low: float, high: float) -> float:
    """A number between low and high, neither of which it may be."""
    value = config.get(field, default)
    if type(value) not in (int, float) or not low < value < high:
        raise wrong(file, field, f"a number between {low:g} and {high:g}", value)
    return float(value)


def flag(file: str, config: Mapping[str, Any], field: str, default: bool) -> bool:
    """True or false."""
    value = config.get(field, default)
    if type(value) is not bool:
        raise wrong(file, field, "true or false", value)
    return value


def text(file: str, config: Mapping[str, Any], field: str, default: str) -> str:
    """A string."""
    value = config.get(field, default)
    if not isinstance(value, str):
        raise wrong(file, field, "a text", value)
    return value


def choose(file: str, config: Mapping[str, Any], field: str, table: Mapping[str, Any], default: str) -> Any:
    """table[config[field]]."""
    value = config.get(field, default)
    if not isinstance(value, str) or value not in table:
        raise wrong(file, field, f"one of {', '.join(table)}", value)
    return table[value]


def wrong(file: str, field: str, expected: str, value: Any) -> CheckpointError:
    """The error for a value that is not what it must be."""
    return CheckpointError(f"{file}: {field} must be {expected}, not {brief(value)}; correct it there")


def name_in(table: Mapping[str, Any], value: Any) -> str:
    """The name under which a table has a value."""
    for name, known in table.items():
        if known == value:
            return name
    raise CheckpointError(f"{value!r} has no name in the file format; use one of {', '.join(table)}")


def at(source: Path, read: Callable[[], T]) -> T:
    """What `read` gives, with the source named in its errors."""
    try:
        return read()
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
