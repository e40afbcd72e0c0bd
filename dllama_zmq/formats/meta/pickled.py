"""The tensors listed in a data.pkl of `torch.save`, without executing the pickle.

A pickle is a program: even an Unpickler with a list of allowed names runs its opcodes, which can take any memory. Here
`pickletools` splits it into opcodes, and the two dozen that `torch.save` writes work on a stack of plain data. A name
stays a string; a call makes a tensor's description or an empty dict, or is refused. Each opcode is one step, and the
pickle's length bounds the memory.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dllama_zmq.errors import FormatError
from dllama_zmq.spec import FloatType

MAX_PICKLE_BYTES = 1 << 20
MAX_OPCODES = 1 << 18
"""Both limits are five times what a shard of Llama 3.1 405B has, with 1,138 tensors."""

_TYPES = {"BFloat16Storage": FloatType.BF16, "HalfStorage": FloatType.F16, "FloatStorage": FloatType.F32}
_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_ALLOWED = {_TENSOR, _DICT, *(f"torch {name}" for name in _TYPES)}
_MAX_SIZE = 1 << 62


@dataclass(frozen=True, slots=True)
class Storage:
    """The values of the record `data/KEY`, of one type."""

    key: str
    float_type: FloatType
    n_values: int


@dataclass(frozen=True, slots=True)
class PickledTensor:
    """A row-major tensor of `shape`, from value number `first` of its storage."""

    storage: Storage
    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Name:
    """`module name` in the pickle; never imported."""

    text: str


class _Refused(Exception):
    """A mistake in the pickle; `read_tensors` adds file and offset."""


_MARK = object()


def read_tensors(data: bytes, where: str) -> dict[str, PickledTensor]:
    """The tensors of a pickled dict, by name. Raises FormatError, which begins with `where`."""
    if len(data) > MAX_PICKLE_BYTES:
        raise FormatError(f"{where}: {len(data)} bytes long; expected at most {MAX_PICKLE_BYTES}. It is damaged.")
    machine = _Machine()
    offset = 0
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            offset = position or 0
            if count >= MAX_OPCODES:
                raise _Refused(f"more than {MAX_OPCODES} opcodes")
            step = _STEPS.get(opcode.name)
            if step is None:
                raise _Refused(f"the opcode {opcode.name}, which torch.save never writes for tensors")
            step(machine, argument)
            if opcode.name == "STOP":
                break
        top = machine.pop()
    except _Refused as error:
        raise FormatError(
            f"{where}: offset {offset}: {error}. Nothing was executed; get the model from a source that you trust."
        ) from None
    except (ValueError, IndexError, OverflowError) as error:  # genops: truncated, or not a pickle
        raise FormatError(f"{where}: offset {offset}: {str(error)[:200]}. It is damaged; download it again.") from error
    if not isinstance(top, dict) or not top:
        raise FormatError(f"{where}: not a dict of tensors. Give the consolidated.*.pth of a model.")
    for name, value in top.items():
        if not isinstance(name, str) or not isinstance(value, PickledTensor):
            raise FormatError(f"{where}: {str(name)[:80]!r} is not a tensor. Give the consolidated.*.pth of a model.")
    return top


class _Machine:
    """A pickle's stack and memo, of plain data."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("a value is taken from an empty stack")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """The values pushed since the last mark, in order."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise _Refused("there is no mark on the stack")

    def pop_tuple(self, n_values: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(n_values)])))

    def put(self, index: int) -> None:
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("a value is taken from an empty stack")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _Refused(f"it reads memo {index}, which it has not written")
        self.push(self.memo[index])

    def name(self, text: str) -> None:
        if text not in _ALLOWED:
            raise _Refused(f"it imports {text.replace(' ', '.')[:200]}, which no file of tensors needs")
        self.push(_Name(text))

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Refused("it calls something other than PyTorch's functions for tensors")
        if function.text == _DICT and not arguments:
            self.push({})
        elif function.text == _TENSOR:
            self.push(_tensor(arguments))
        else:
            raise _Refused(f"it calls {function.text.replace(' ', '.')} in a way that torch.save never does")

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is not dict or len(items) % 2:
            raise _Refused("it sets items of something other than a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise _Refused("it uses a key that is not text")
            if key in target:
                raise _Refused(f"it has {key[:80]!r} twice")
            target[key] = value
        self.push(target)

    def build(self) -> None:
        """Ignore the attributes of a dict (a state_dict's `_metadata`)."""
        attributes, target = self.pop(), self.pop()
        if type(target) is not dict or type(attributes) is not dict:
            raise _Refused("it sets attributes of something other than a dict")
        self.push(target)

    def storage(self) -> None:
        value = self.pop()
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage" or not isinstance(value[2], str):
            raise _Refused("it refers to something other than a storage")
        _, kind, key, _, n_values = value
        float_type = _TYPES.get(kind.text.removeprefix("torch ")) if isinstance(kind, _Name) else None
        if float_type is None or not _is_size(n_values):
            raise _Refused(f"the storage {key[:80]!r} has a type or size that no model has")
        self.push(Storage(key, float_type, n_values))


def _tensor(arguments: tuple[Any, ...]) -> PickledTensor:
    """The tensor that `_rebuild_tensor_v2(storage, first, shape, strides, ...)` would make."""
    if len(arguments) < 4:
        raise _Refused("a tensor with too few arguments")
    storage, first, shape, strides = arguments[:4]
    whole = isinstance(storage, Storage) and _is_size(first)
    for numbers in (shape, strides):
        whole = whole and isinstance(numbers, tuple) and len(numbers) <= 8 and all(map(_is_size, numbers))
    if not whole or len(shape) != len(strides):
        raise _Refused("a tensor whose shape and strides are not sizes")
    step = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length > 1 and stride != step:
            raise _Refused(f"a tensor of shape {list(shape)} with strides {list(strides)}, which is not contiguous")
        step *= length
    if first + step > storage.n_values:
        raise _Refused(f"a tensor of shape {list(shape)} from value {first} of a storage of {storage.n_values}")
    return PickledTensor(storage, first, shape)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_SIZE


def _push(value: object) -> Callable[[_Machine, Any], None]:
    return lambda machine, argument: machine.push(value)


def _push_argument(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


def _set_item(machine: _Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _ignore(machine: _Machine, argument: Any) -> None:
    """For PROTO and STOP."""


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _ignore,
    "STOP": _ignore,
    "MARK": _push(_MARK),
    "NONE": _push(None),
    "NEWTRUE": _push(True),
    "NEWFALSE": _push(False),
    "EMPTY_TUPLE": _push(()),
    "EMPTY_DICT": lambda machine, argument: machine.push({}),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"), _push_argument),
    "TUPLE": lambda machine, argument: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, argument: machine.pop_tuple(1),
    "TUPLE2": lambda machine, argument: machine.pop_tuple(2),
    "TUPLE3": lambda machine, argument: machine.pop_tuple(3),
    "BINPUT": lambda machine, argument: machine.put(argument),
    "LONG_BINPUT": lambda machine, argument: machine.put(argument),
    "BINGET": lambda machine, argument: machine.get(argument),
    "LONG_BINGET": lambda machine, argument: machine.get(argument),
    "GLOBAL": lambda machine, argument: machine.name(argument),
    "REDUCE": lambda machine, argument: machine.call(),
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, argument: machine.set_items(machine.pop_to_mark()),
    "BUILD": lambda machine, argument: machine.build(),
    "BINPERSID": lambda machine, argument: machine.storage(),
}
