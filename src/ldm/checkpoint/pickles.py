"""A pickle's opcodes, walked by a small machine that can only ever arrive at tensors.

A pickle is a program: GLOBAL names any function, REDUCE calls it. Here a name is a name, a call of one of
three known makers gives the place of a tensor, and any other name is an error that says it.
"""

import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm.errors import CheckpointError

STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}  # fmt: skip
PARAMETERS = ("torch.nn.modules.container", "ParameterDict")
MAKERS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    PARAMETERS,
}
# Names in the training state that official files carry beside the weights: never called, only passed over.
INERT = {
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
    ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("__builtin__", "set"),
    ("builtins", "set"),
}


class Name(NamedTuple):
    """A global that a pickle mentions."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Storage(NamedTuple):
    """What a persistent id says: the bytes of one or several tensors."""

    dtype: torch.dtype
    member: str
    items: int


class Place(NamedTuple):
    """Where a tensor lies in a ckpt: what an `Entry` is made of."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    member: str
    items: int  # of the storage
    first: int  # of them


def items_in(shape: tuple[int, ...]) -> int:
    """How many numbers a tensor of a shape has."""
    count = 1
    for n in shape:
        count *= n
    return count


@dataclass(frozen=True)
class Nothing:
    """What was passed over."""

    name: Name


class Parameters(dict[str, Any]):
    """What a ParameterDict holds."""


class Machine:
    """A pickle's opcodes, walked on a stack."""

    def __init__(self, path: Path):
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """What the pickle holds."""
        try:
            for opcode, value, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    return self.stack.pop()
                self.step(opcode.name, value)
        except (IndexError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: its data.pkl is damaged ({error!r})") from error
        raise CheckpointError(f"{self.path}: its data.pkl has no end; download it again")

    def step(self, name: str, value: Any) -> None:
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_DICT":
                push({})
            case "EMPTY_LIST":
                push([])
            case "EMPTY_TUPLE":
                push(())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                push({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case (
                "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT"
                | "SHORT_BINSTRING" | "BINBYTES" | "SHORT_BINBYTES"
            ):  # fmt: skip
                push(value)
            case "TUPLE":
                push(tuple(self.since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                push(tuple([pop() for _ in range(count)][::-1]))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[value] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                push(self.memo[value])
            case "APPEND":
                item = pop()
                self.stack[-1].append(item)
            case "APPENDS":
                items = self.since_mark()
                self.stack[-1].extend(items)
            case "SETITEM":
                item, key = pop(), pop()
                self.put(self.stack[-1], [key, item])
            case "SETITEMS":
                items = self.since_mark()
                self.put(self.stack[-1], items)
            case "GLOBAL":
                push(self.allowed(Name(*value.split(" ", 1))))
            case "STACK_GLOBAL":
                last, module = pop(), pop()
                push(self.allowed(Name(str(module), str(last))))
            case "BINPERSID":
                push(self.storage(pop()))
            case "REDUCE":
                arguments, maker = pop(), pop()
                push(self.made(maker, arguments))
            case "NEWOBJ":
                pop()  # no arguments
                push(self.new(pop()))
            case "BUILD":
                attributes = pop()  # else of an OrderedDict or of what is passed over
                if isinstance(self.stack[-1], Parameters):
                    self.stack[-1].update(attributes["_parameters"])
            case _:
                raise CheckpointError(f"{self.path}: its data.pkl has {name}, which no state dict needs")

    def since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def put(self, into: Any, items: list[Any]) -> None:
        if not isinstance(into, dict):
            raise CheckpointError(f"{self.path}: its data.pkl is damaged: items for a {type(into).__name__}")
        for key, item in zip(items[::2], items[1::2], strict=True):
            if key in into:
                raise CheckpointError(f"{self.path} has the key {key!r} twice; write it again")
            into[key] = item

    def allowed(self, name: Name) -> Name:
        storage = name.module in ("torch", "torch.storage") and name.name in STORAGES
        if storage or name in MAKERS or name in INERT:
            return name
        raise CheckpointError(
            f"{self.path} asks for {name}, which is no part of a state dict: the file may be malicious. "
            "Nothing was executed; get the model as safetensors"
        )

    def storage(self, said: Any) -> Storage:
        kind, name, member, _, count = said
        if kind != "storage" or not isinstance(name, Name) or name.name not in STORAGES:
            raise CheckpointError(f"{self.path}: a tensor is kept in {name}, not in a plain storage")
        if type(count) is not int or count < 0 or not isinstance(member, str):
            raise CheckpointError(f"{self.path}: the storage {member!r} has {count!r} items")
        return Storage(STORAGES[name.name], member, count)

    def made(self, maker: Any, arguments: tuple[Any, ...]) -> Any:
        if maker == ("collections", "OrderedDict"):
            return {}
        if maker == ("torch._utils", "_rebuild_parameter"):
            return arguments[0]
        if maker == ("torch._utils", "_rebuild_tensor_v2"):
            return self.tensor(*arguments[:4])
        if isinstance(maker, Name) and maker in INERT:
            return Nothing(maker)
        raise CheckpointError(f"{self.path}: its data.pkl calls {maker!r}; nothing was executed")

    def new(self, kind: Any) -> "Parameters":
        if kind != PARAMETERS:
            raise CheckpointError(f"{self.path}: its data.pkl makes a {kind!r}; nothing was executed")
        return Parameters()

    def tensor(self, storage: Storage, first: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Place:
        numbers = (first, *shape, *stride)
        if not isinstance(storage, Storage) or not all(type(n) is int and n >= 0 for n in numbers):
            raise CheckpointError(f"{self.path}: a tensor of shape {shape} has an impossible place")
        dense: list[int] = [items_in(shape[i + 1 :]) for i in range(len(shape))]
        plain = all(n == 1 or s == d for n, s, d in zip(shape, stride, dense, strict=True))
        if not plain and items_in(shape):
            raise CheckpointError(f"{self.path}: a tensor of shape {shape} has the strides {stride}")
        if first + items_in(shape) > storage.items:
            raise CheckpointError(
                f"{self.path}: a tensor of shape {shape} reaches beyond its storage of {storage.items} items"
            )
        return Place(storage.dtype, tuple(shape), storage.member, storage.items, first)
