"""The tensors listed in a data.pkl of `torch.save`, without executing the pickle.

A pickle is a program: even an Unpickler with a list of allowed names runs its opcodes, which can take any memory. Here
`pickletools` splits it into opcodes, and the two dozen that `torch.save` writes work on a stack of plain data. A name
stays a string; a call makes a tensor's description or an empty dict, or is refused. Each opcode is one step, and the
pickle's length bounds the memory.
"""

from __future__ import annotations

import pickletools
from typing import Any

from msgspec import Struct

from dllama_zmq.errors import FormatError
from dllama_zmq.spec import FloatType

MAX_PICKLE_BYTES = 1 << 20
MAX_OPCODES = 1 << 18
"""Both limits are five times what a shard of Llama 3.1 405B has, with 1,138 tensors."""

_TYPES = {"BFloat16Storage": FloatType.BF16, "HalfStorage": FloatType.F16, "FloatStorage": FloatType.F32}
_TENSOR, _DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"
_ALLOWED = {_TENSOR, _DICT, *(f"torch {name}" for name in _TYPES)}
_MAX_SIZE = 1 << 62


class Storage(Struct, frozen=True):
    """The values of the record `data/KEY`, of one type."""

    key: str
    float_type: FloatType
    n_values: int


class PickledTensor(Struct, frozen=True):
    """A row-major tensor of `shape`, from value number `first` of its storage."""

    storage: Storage
    first: int
    shape: tuple[int, ...]


class _Name(Struct, frozen=True):
    """`module name` in the pickle; never imported."""

    text: str


class _Refused(Exception):
    """A mistake in the pickle; `read_tensors` adds file and offset."""


_MARK = object()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


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
            machine.step(opcode.name, argument)
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

    def step(self, opcode: str, argument: Any) -> None:
        """Execute an opcode on plain data."""
        match opcode:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self.stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                self.stack.append(_CONSTANTS[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE" | "SHORT_BINUNICODE":
                self.stack.append(argument)
            case "EMPTY_DICT":
                self.stack.append({})
            case "TUPLE":
                self.stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(reversed([self.pop() for _ in range(int(opcode[-1]))])))
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.pop(keep=True)
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise _Refused(f"it reads memo {argument}, which it has not written")
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                if argument not in _ALLOWED:
                    raise _Refused(f"it imports {argument.replace(' ', '.')[:200]}, which no file of tensors needs")
                self.stack.append(_Name(argument))
            case "REDUCE":
                self.call()
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "BUILD":  # of a dict: its attributes are ignored, such as a state_dict's `_metadata`
                attributes = self.pop()
                if type(attributes) is not dict or type(self.pop(keep=True)) is not dict:
                    raise _Refused("it sets attributes of something other than a dict")
            case "BINPERSID":
                self.storage()
            case _:
                raise _Refused(f"the opcode {opcode}, which torch.save never writes for tensors")

    def pop(self, keep: bool = False) -> Any:
        """The value on top of the stack, which stays there with `keep`."""
        if not self.stack or self.stack[-1] is _MARK:
            raise _Refused("a value is taken from an empty stack")
        return self.stack[-1] if keep else self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """The values pushed since the last mark, in order."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise _Refused("there is no mark on the stack")

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _Refused("it calls something other than PyTorch's functions for tensors")
        if function.text == _DICT and not arguments:
            self.stack.append({})
        elif function.text == _TENSOR:
            self.stack.append(_tensor(arguments))
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
        self.stack.append(target)

    def storage(self) -> None:
        value = self.pop()
        if not isinstance(value, tuple) or len(value) != 5 or value[0] != "storage" or not isinstance(value[2], str):
            raise _Refused("it refers to something other than a storage")
        _, kind, key, _, n_values = value
        float_type = _TYPES.get(kind.text.removeprefix("torch ")) if isinstance(kind, _Name) else None
        if float_type is None or not _is_size(n_values):
            raise _Refused(f"the storage {key[:80]!r} has a type or size that no model has")
        self.stack.append(Storage(key, float_type, n_values))


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
