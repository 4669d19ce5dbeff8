"""What a run consists of beside its weights, as tensors and JSON, and back exactly.

Lists, texts, numbers and dicts of names are JSON's own. What JSON lacks is an object with one `$` key:
{"$tensor": name, "strides": […]}, {"$tuple": […]}, {"$dict": [[key, value], …]} for keys that are not names.
"""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.checks import shown
from ldm.errors import CheckpointError, InputError, NumericError

Flat = tuple[dict[str, Tensor], Any]  # tensors by name, and the JSON in which the names stand


def flatten_optimiser(state_dict: Mapping[str, Any]) -> Flat:
    """The state_dict of any torch optimiser as tensors and JSON; `restore_optimiser` is its inverse.

    Raises InputError, or NumericError for a number that is not finite, with its name.
    """
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise InputError(f"state_dict must be an optimiser's state_dict(), not {shown(state_dict)}")
    return flatten(state_dict)


def restore_optimiser(tensors: Mapping[str, Tensor], facts: Any) -> dict[str, Any]:
    """The state_dict that was flattened, bit for bit. It holds the tensors themselves, and
    load_state_dict may adopt them. Raises CheckpointError."""
    state_dict: dict[str, Any] = restored(tensors, facts)
    return state_dict


def random_states() -> Flat:
    """The states of the global generators: torch's on the CPU, Python's and numpy's. Raises InputError."""
    version, words, gauss = random.getstate()
    state: Any = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        raise InputError(
            f"numpy's global generator is {state['bit_generator']}, not MT19937; leave it alone and save the "
            "bit_generator.state of your own among the facts"
        )
    numpy_words = torch.from_numpy(state["state"]["key"].astype(np.int64))
    more = {"position": int(state["state"]["pos"]), "has_gauss": int(state["has_gauss"])}
    return flatten(
        {
            "torch": torch.get_rng_state(),
            "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
            "numpy": {"words": numpy_words, "gauss": float(state["gauss"]), **more},
        }
    )


def set_random_states(tensors: Mapping[str, Tensor], facts: Any) -> None:
    """Put the global generators back into the states that `random_states` gave. Raises CheckpointError."""
    states = restored(tensors, facts)
    try:
        ours, theirs = states["python"], states["numpy"]
        python = ours["version"], tuple(ours["words"].tolist()), ours["gauss"]
        words = theirs["words"].numpy().astype(np.uint32)
        random.setstate(python)
        np.random.set_state(("MT19937", words, theirs["position"], theirs["has_gauss"], theirs["gauss"]))
        torch.set_rng_state(states["torch"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"these are no states of random generators ({error!r}); give what random_states() gave"
        ) from error


def flatten(value: Any, name: str = "") -> Flat:
    """Nested dicts, lists, tuples, numbers, texts, None and tensors as tensors and JSON.

    The tensors are not copied. Raises InputError; NumericError for a number that is not finite.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, encode(value, name, tensors)


def restored(tensors: Mapping[str, Tensor], facts: Any) -> Any:
    """What was flattened, bit for bit, every tensor with its strides. Raises CheckpointError."""
    used: list[str] = []
    value = decode(facts, tensors, used)
    if unused := sorted(tensors.keys() - set(used)):
        raise CheckpointError(f"the tensor {unused[0]} has no place in the facts; give what belongs together")
    return value


def encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON of a value; its tensors are put among `tensors`."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise NumericError(f"{name} is {value}, and nothing is saved that is not finite; go back a step")
        return float(value)
    if isinstance(value, Tensor):
        return encode_tensor(value, name or "tensor", tensors)
    if isinstance(value, list) or type(value) is tuple:
        items = [encode(item, join(name, i), tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        pairs = {key: encode(item, join(name, key), tensors) for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in pairs):
            return pairs
        return {"$dict": [[encode(key, name, tensors), item] for key, item in pairs.items()]}
    raise InputError(
        f"{name or 'this'} is a {type(value).__name__}, which has no JSON: {shown(value)}; make it a number, "
        "text, list, tuple, dict or tensor"
    )


def encode_tensor(value: Tensor, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The JSON of a tensor, which is put among `tensors` under a name that none has yet."""
    while name in tensors:  # {"a.b": …} and {"a": {"b": …}} would share one
        name += "'"
    tensors[name] = value
    # sums run in the order of memory, so channels_last must come back as it was
    if value.layout != torch.strided or value.is_contiguous():
        return {"$tensor": name}
    dense = torch.empty_like(value, device="meta").stride() == value.stride()
    return {"$tensor": name, "strides": list(value.stride())} if dense else {"$tensor": name}


def decode(fact: Any, tensors: Mapping[str, Tensor], used: list[str]) -> Any:
    """The value of a JSON; the names of the tensors in it are put into `used`."""
    if isinstance(fact, list):
        return [decode(item, tensors, used) for item in fact]
    if not isinstance(fact, dict):
        return fact
    if "$tuple" in fact:
        return tuple(decode(fact["$tuple"], tensors, used))
    if "$dict" in fact:
        return dict(decode(pair, tensors, used) for pair in fact["$dict"])
    if "$tensor" not in fact:
        return {key: decode(item, tensors, used) for key, item in fact.items()}
    name = fact["$tensor"]
    if name not in tensors:
        raise CheckpointError(f"there is no tensor {name}, which the facts name; give what belongs together")
    used.append(name)
    tensor = tensors[name]
    if "strides" not in fact:
        return tensor
    room = torch.empty_strided(tensor.shape, fact["strides"], dtype=tensor.dtype, device=tensor.device)
    return room.copy_(tensor)


def join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)
