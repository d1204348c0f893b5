"""Pickles read without running anything: a class that is not known becomes an inert note.

The standard library's ``Unpickler`` imports and calls what a file names. This one only builds containers,
numbers and texts, and hands every other name to ``torch_globals``. The bytes are taken apart by ``pickletools``.
"""

from __future__ import annotations

import encodings.raw_unicode_escape  # noqa: F401 - else a pickle in text would make Python load it
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from polyak.errors import DamagedFile
from polyak.files.torch_values import Budget, Name, Refused, Stub, set_key

Call = Callable[[Name, tuple[Any, ...], Budget], Any]
Find = Callable[[str, str], Name]
Persistent = Callable[[Any], Any]
_Op = Callable[["Machine", Any], None]


@dataclass
class Machine:
    """The stack machine of one pickle.

    Attributes:
        find: makes a Name of a global's module and name, or raises Refused.
        call: makes the value that calling a Name would make.
        persistent: makes the value of a persistent id (a storage).
    """

    find: Find
    call: Call
    persistent: Persistent
    budget: Budget = field(default_factory=Budget)
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        """The top of the stack, which may not reach below the last mark."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Refused("a value where the stack is empty")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        """Everything above the last mark."""
        if not self.marks:
            raise Refused("a mark where there is none")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value


class Stream(Protocol):
    """What is read of a pickle: a binary file, or the start of one."""

    def tell(self) -> int: ...
    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


def load(file: Stream, machine: Machine, origin: str) -> Any:
    """The value of the pickle that starts at the file's position; the position moves behind it.

    Raises:
        DamagedFile: it is not readable, asks for too much, or names a global that could run something.
    """
    opcode, position, charge = "start", 0, machine.budget.charge
    try:
        while opcode != "STOP":
            position = file.tell()
            opcode, argument, run, cost = _OPCODES[file.read(1)]
            charge(cost)
            run(machine, None if argument is None else argument(file))
        return machine.pop()
    except Refused as error:
        raise DamagedFile(
            f"{origin}: the pickle at byte {position} ({opcode}) asks for {error}: refused",
            hint="polyak runs nothing that a file brings; ask its author for the weights alone",
        ) from error
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError, MemoryError) as error:
        raise DamagedFile(
            f"{origin}: the pickle is not readable at byte {position}, behind {opcode}: {error!s:.80}",
            hint="the file is damaged; restore it from a copy",
        ) from error


def _global_name(file: Stream) -> list[str]:
    """``pickletools`` reads escapes in names, which ``pickle`` does not."""
    return [file.readline().removesuffix(b"\n").decode() for _ in range(2)]


def _unknown(machine: Machine, argument: Any) -> NoReturn:
    raise Refused("an operation that no file of weights needs")


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], Any]) -> _Op:
    return lambda machine, _: machine.stack.append(make())


def _nothing(machine: Machine, argument: Any) -> None:
    """Marks of protocol and frame carry no value."""


def _mark(machine: Machine, argument: Any) -> None:
    machine.marks.append(len(machine.stack))


def _drop(machine: Machine, argument: Any) -> None:
    machine.pop()


def _drop_mark(machine: Machine, argument: Any) -> None:
    machine.pop_mark()


def _duplicate(machine: Machine, argument: Any) -> None:
    machine.stack.append(machine.top())


def _put(machine: Machine, argument: Any) -> None:
    machine.memo[argument] = machine.top()


def _memoize(machine: Machine, argument: Any) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(machine: Machine, argument: Any) -> None:
    if argument not in machine.memo:
        raise Refused(f"the remembered value {argument}, which there is not")
    machine.stack.append(machine.memo[argument])


def _tuple(machine: Machine, argument: Any) -> None:
    machine.stack.append(tuple(machine.pop_mark()))


def _tuple_of(count: int) -> _Op:
    def op(machine: Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(values)))

    return op


def _list(machine: Machine, argument: Any) -> None:
    machine.stack.append(machine.pop_mark())


def _dict(machine: Machine, argument: Any) -> None:
    values = machine.pop_mark()
    machine.stack.append({})
    _set_all(machine.top(), values)


def _append(machine: Machine, argument: Any) -> None:
    value = machine.pop()
    _extend(machine.top(), [value])


def _appends(machine: Machine, argument: Any) -> None:
    values = machine.pop_mark()
    _extend(machine.top(), values)


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, Stub):
        target.entries.extend(values)
    elif isinstance(target, list):
        target.extend(values)
    else:
        raise Refused(f"entries of a {type(target).__name__}")


def _set_item(machine: Machine, argument: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _set_all(machine.top(), [key, value])


def _set_items(machine: Machine, argument: Any) -> None:
    values = machine.pop_mark()
    _set_all(machine.top(), values)


def _set_all(target: Any, values: list[Any]) -> None:
    held = target.items if isinstance(target, Stub) else target
    if not isinstance(held, dict) or len(values) % 2:
        raise Refused(f"{len(values)} keys and values of a {type(target).__name__}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        set_key(held, key, value)


def _frozen_set(machine: Machine, argument: Any) -> None:
    machine.stack.append(Stub("builtins.frozenset", entries=machine.pop_mark()))


def _global(machine: Machine, argument: Any) -> None:
    machine.stack.append(machine.find(*argument))


def _stack_global(machine: Machine, argument: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not isinstance(name, str) or not isinstance(module, str):
        raise Refused("a global without a name")
    machine.stack.append(machine.find(module, name))


def _reduce(machine: Machine, argument: Any) -> None:
    args, function = machine.pop(), machine.pop()
    machine.stack.append(_called(machine, function, args))


def _new_with_keywords(machine: Machine, argument: Any) -> None:
    keywords, args, function = machine.pop(), machine.pop(), machine.pop()
    machine.stack.append(Stub(str(_name(function)), (args, keywords)))


def _called(machine: Machine, function: Any, args: Any) -> Any:
    if not isinstance(args, tuple):
        raise Refused(f"a call of {_name(function)} without arguments")
    return machine.call(_name(function), args, machine.budget)


def _name(function: Any) -> Name:
    if not isinstance(function, Name):
        raise Refused(f"a call of a {type(function).__name__}")
    return function


def _build(machine: Machine, argument: Any) -> None:
    """State of an object. That of known containers and tensors is no weight: torch keeps versions of layers there."""
    state, target = machine.pop(), machine.top()
    if isinstance(target, Stub):
        target.state = state


def _persistent(machine: Machine, argument: Any) -> None:
    machine.stack.append(machine.persistent(machine.pop()))


_PUSHED = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip
_OPS: dict[str, _Op] = {
    **dict.fromkeys(_PUSHED, _push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _get),
    "MARK": _mark, "POP": _drop, "POP_MARK": _drop_mark, "DUP": _duplicate, "MEMOIZE": _memoize,
    "NONE": _constant(lambda: None), "NEWTRUE": _constant(lambda: True), "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple), "TUPLE": _tuple, "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3), "EMPTY_LIST": _constant(list), "LIST": _list, "APPEND": _append, "APPENDS": _appends,
    "EMPTY_DICT": _constant(dict), "DICT": _dict, "SETITEM": _set_item, "SETITEMS": _set_items,
    "EMPTY_SET": _constant(lambda: Stub("builtins.set")), "ADDITEMS": _appends, "FROZENSET": _frozen_set,
    "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "REDUCE": _reduce, "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_keywords, "BUILD": _build, "BINPERSID": _persistent,
}  # fmt: skip
# Containers and notes take more memory than other values.
_COSTLY = frozenset((
    "EMPTY_LIST", "EMPTY_DICT", "DICT", "LIST", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "EMPTY_SET", "FROZENSET",
))  # fmt: skip


def _reader(op: pickletools.OpcodeInfo) -> Callable[[Any], Any] | None:
    """What reads the argument of an operation; that of unknown ones is not looked at."""
    if op.name == "GLOBAL":
        return _global_name
    return op.arg.reader if op.arg and op.name in _OPS else None


# By its byte: name, reader of the argument, what it does, and what it costs.
_OPCODES: dict[bytes, tuple[str, Callable[[Any], Any] | None, _Op, int]] = {
    op.code.encode("latin-1"): (op.name, _reader(op), _OPS.get(op.name, _unknown), 4 if op.name in _COSTLY else 1)
    for op in pickletools.opcodes
}
