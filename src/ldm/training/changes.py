"""Whether a run goes on with the config it was begun with."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ldm.checks import shown
from ldm.errors import InputError


def differing(was: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> list[str]:
    """What differs between two configs, in their order: "name: was X, is Y".

    Fields of fields are named with dots, `data.size`. A tuple equals the list of its items, for JSON has no
    tuples.

    free  names of fields that may change, each with all that is in it
    """
    old, new = dict(fields(was)), dict(fields(now))
    names = [name for name in dict.fromkeys([*old, *new]) if not is_free(name, free)]
    there = {name: (place(old, name), place(new, name)) for name in names}
    return [f"{name}: was {a}, is {b}" for name, (a, b) in there.items() if not same(old, new, name)]


def check_same(was: Mapping[str, Any], now: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Raises InputError, naming every field that differs and is not free."""
    if found := differing(was, now, free):
        raise InputError(
            f"the run was begun with another config ({'; '.join(found)}); go on with the old one, or begin "
            "anew in another folder"
        )


def fields(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a nested config with their dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", listed(value)


def is_free(name: str, free: Collection[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in free)


def same(old: Mapping[str, Any], new: Mapping[str, Any], name: str) -> bool:
    """Whether both have the field, with one value; True is not 1."""
    if name not in old or name not in new:
        return False
    a, b = old[name], new[name]
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def place(config: Mapping[str, Any], name: str) -> str:
    return shown(config[name]) if name in config else "not there"


def listed(value: Any) -> Any:
    return [listed(item) for item in value] if isinstance(value, (list, tuple)) else value
