"""What a run of training is told: a frozen dataclass, from a TOML file and `key=value` words.

    read(Kind, "run.toml", ["steps=1000", "prompts=['a cat', 'a dog']"])

A word wins over the file, the file over the default. Keys are the dataclass' fields; of a nested dataclass
`part.key`, in the file a table `[part]`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ldm.checks import nearest, shown
from ldm.errors import InputError

T = TypeVar("T")
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", tuple: "a list"}


def read(kind: type[T], path: str | Path | None = None, words: Sequence[str] = ()) -> T:
    """A config of a kind. Raises InputError naming file and key, with the nearest key for one not known."""
    table = {} if path is None else parsed(Path(path))
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise InputError(f"{word!r} must look like key=value")
        put(table, key.strip(), value_of(text.strip()))
    return made(kind, table, str(path) if path is not None else "the config")


def parsed(path: Path) -> dict[str, Any]:
    """The tables of a TOML file."""
    try:
        return toml(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; give a TOML file") from error
    except ValueError as error:  # TOML's, and Unicode's
        raise InputError(f"{path} is no TOML: {error}; correct it") from error


def toml(text: str) -> dict[str, Any]:
    """The tables of TOML. Raises ValueError."""
    try:
        import tomllib
    except ImportError as error:
        raise InputError("configs need Python 3.11 or later, which reads TOML") from error
    return tomllib.loads(text)


def value_of(text: str) -> Any:
    """A value as TOML has it, or else a text."""
    try:
        table = toml(f"value = {text}")
    except ValueError:
        return text
    return table["value"] if table.keys() == {"value"} else text


def put(table: dict[str, Any], key: str, value: Any) -> None:
    """table[a][b] = value for the key "a.b"."""
    *parts, last = key.split(".")
    for part in parts:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise InputError(f"{key} is no key: {part} is {shown(inner)}")
        table = inner
    table[last] = value


def checked(config: T) -> T:
    """A config that was made in Python, with a list where a tuple is meant and a text for a path.

    Raises InputError for a field of another type.
    """
    return made(type(config), inside(config), type(config).__name__)


def inside(config: Any) -> dict[str, Any]:
    """The fields of a dataclass."""
    return {field.name: getattr(config, field.name) for field in fields(config)}


def made(kind: type[T], table: Mapping[str, Any], place: str, path: str = "") -> T:
    """A dataclass of the values in a table."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise InputError(f"{place}: unknown key {path}{key}; {nearest(key, known)}")
    hints = get_type_hints(kind)
    return kind(**{key: fitted(hints[key], value, place, f"{path}{key}") for key, value in table.items()})


def fitted(wanted: Any, value: Any, place: str, key: str) -> Any:
    """A value of the type that a field has: a whole number is a number too, a list is a tuple."""
    if is_dataclass(wanted) and isinstance(wanted, type):
        if isinstance(value, wanted):
            value = inside(value)
        if isinstance(value, dict):
            return made(wanted, value, place, f"{key}.")
    elif get_origin(wanted) is tuple:
        item, *_ = get_args(wanted)
        if isinstance(value, (list, tuple)):
            return tuple(fitted(item, one, place, f"{key}[{i}]") for i, one in enumerate(value))
    elif wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif wanted is str and isinstance(value, PurePath):
        return str(value)
    elif type(value) is wanted:
        return value
    name = "a table" if is_dataclass(wanted) else KINDS.get(get_origin(wanted) or wanted, "something else")
    raise InputError(f"{place}: {key} must be {name}, not {shown(value)}")


def plain(config: Any) -> dict[str, Any]:
    """A config as plain data, by the same keys, for a checkpoint and for `changes.differing`."""
    return {name: plain(value) if is_dataclass(value) else value for name, value in inside(config).items()}
