"""Pickles read by a machine of our own: the instructions of protocol 2 that ``torch.save`` writes, and no import.

Python's own unpickler looks names up in modules, and calls what it finds; this one has nothing to call. A name becomes
a ``Name``; what names may be, and what comes of calling one, say three functions (``Meaning``) that only make data.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from zoogen.importers.source import Unusable
from zoogen.importers.tensors.pickle_data import Inert, Meaning, Name, Ordered, is_key

_LONGEST_TEXT = 1 << 20
_LONGEST_NAME = 512
_DEEPEST = 1000
_MOST_OBJECTS = 1_000_000  # in a pickle of any size
_BYTES_PER_OBJECT = 4  # and one more for so many bytes; torch.save needs five times that
_CONTAINERS = (list, tuple, dict, set, Ordered)


class Input(Protocol):
    """Where a pickle is read from."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self, size: int, /) -> bytes: ...


def load_pickle(stream: Input, size: int, meaning: Meaning, longest: int = _LONGEST_TEXT) -> Any:
    """The data in the next pickle of a stream.

    Args:
        stream: Is left behind the pickle.
        size: Bytes that it can have at most; memory is bounded by a small multiple of them.
        meaning: Of its names.
        longest: Bytes that a text can have at most.

    Raises:
        Unusable: damaged, with an instruction that ``torch.save`` does not write, or not admitted.
    """
    machine = _Machine(stream, _MOST_OBJECTS + size // _BYTES_PER_OBJECT, meaning, longest)
    try:
        return machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError) as error:
        raise Unusable(f"is damaged: its pickle makes no sense ({type(error).__name__})") from error


@cache
def _numbers() -> tuple[int, ...]:
    """What two bytes say, so that lists of indices hold each number once."""
    return tuple(range(1 << 16))


class _Machine:
    def __init__(self, stream: Input, most: int, meaning: Meaning, longest: int) -> None:
        self._take = stream.read
        self._line = stream.readline
        self._left = most
        self._longest = longest
        self._meaning = meaning
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: list[Any] = []
        self._numbers = _numbers()

    def run(self) -> Any:
        take, stack = self._take, self._stack
        steps: dict[bytes, Callable[[], None]] = {code: getattr(self, f"_{name}") for code, name in _STEPS.items()}
        while True:
            code = take(1)
            step = steps.get(code)
            if step is not None:
                step()
            elif code == b".":
                if len(stack) != 1 or self._marks:
                    raise Unusable("is damaged: its pickle leaves more than one object")
                return stack[0]
            else:
                raise Unusable(_unknown(code))

    def _read(self, size: int) -> bytes:
        data = self._take(size)
        if len(data) < size:
            raise Unusable("is damaged: it ends within its pickle")
        return data

    def _made(self, value: Any) -> None:
        """Push a container; there cannot be more of them than a file of this size has use for."""
        self._charge(1)
        self._stack.append(value)

    def _charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise Unusable("is a pickle of containers or copies without end, made to fill the memory")

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _protocol(self) -> None:
        version = self._read(1)[0]
        if version != 2:
            raise Unusable(f"is pickled with protocol {version}; torch.save writes protocol 2")

    def _mark(self) -> None:
        if len(self._marks) >= _DEEPEST:
            raise Unusable(f"is nested deeper than {_DEEPEST:,} levels")
        self._marks.append(len(self._stack))

    def _none(self) -> None:
        self._stack.append(None)

    def _true(self) -> None:
        self._stack.append(True)

    def _false(self) -> None:
        self._stack.append(False)

    def _int1(self) -> None:
        self._stack.append(self._take(1)[0])

    def _int2(self) -> None:
        self._stack.append(self._numbers[int.from_bytes(self._read(2), "little")])

    def _int4(self) -> None:
        self._stack.append(int.from_bytes(self._read(4), "little", signed=True))

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._read(self._read(1)[0]), "little", signed=True))

    def _float(self) -> None:
        self._stack.append(struct.unpack(">d", self._read(8))[0])

    def _text(self) -> None:
        length = int.from_bytes(self._read(4), "little")
        if length > self._longest:
            raise Unusable(f"holds a text of {length:,} bytes; at most {self._longest:,} are read")
        self._stack.append(self._read(length).decode("utf-8", "surrogatepass"))

    def _short_text(self) -> None:
        self._stack.append(self._read(self._read(1)[0]).decode())

    def _dict(self) -> None:
        self._made({})

    def _list(self) -> None:
        self._made([])

    def _tuple0(self) -> None:
        self._stack.append(())

    def _tuple1(self) -> None:
        self._made((self._pop(),))

    def _tuple2(self) -> None:
        second = self._pop()
        self._made((self._pop(), second))

    def _tuple3(self) -> None:
        third, second = self._pop(), self._pop()
        self._made((self._pop(), second, third))

    def _tuple(self) -> None:
        self._made(tuple(self._marked()))

    def _pop(self) -> Any:
        if self._marks and self._marks[-1] == len(self._stack):
            raise IndexError
        return self._stack.pop()

    def _put1(self) -> None:
        self._remember(self._take(1)[0])

    def _put4(self) -> None:
        self._remember(int.from_bytes(self._take(4), "little"))

    def _remember(self, place: int) -> None:
        """Pickles number what they remember from 0 on (of Python 2, from 1), so that a list will do."""
        if place == 1 and not self._memo:
            self._memo.append(None)
        if place == len(self._memo):
            self._memo.append(self._stack[-1])
        else:
            self._memo[place] = self._stack[-1]

    def _get1(self) -> None:
        self._stack.append(self._memo[self._take(1)[0]])

    def _get4(self) -> None:
        self._stack.append(self._memo[int.from_bytes(self._take(4), "little")])

    def _append(self) -> None:
        value = self._pop()
        self._onto_list([value])

    def _appends(self) -> None:
        self._onto_list(self._marked())

    def _onto_list(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise Unusable(f"appends to a {_kind(target)}")
        target += values

    def _item(self) -> None:
        value = self._pop()
        self._into_dict([self._pop(), value])

    def _items(self) -> None:
        self._into_dict(self._marked())

    def _into_dict(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict and type(target) is not Ordered:
            raise Unusable(f"puts items into a {_kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Keys of keys of keys would be hashed as deep as they are nested.
            if not is_key(key):
                what = f"{_kind(key)}{' beyond 2^60' if type(key) in (int, float) else ''}"
                raise Unusable(f"has a {what} for a key")
            target[key] = value

    def _global(self) -> None:
        lines = [self._line(_LONGEST_NAME) for _ in range(2)]
        if not all(line.endswith(b"\n") for line in lines):
            raise Unusable("names a module or class longer than any")
        module, name = (line[:-1].decode() for line in lines)
        text = f"{module}.{name}"
        if not text.isprintable():
            raise Unusable("names a class with control characters in its name")
        self._meaning.check(text)
        self._stack.append(Name(text))

    def _reduce(self) -> None:
        arguments, called = self._pop(), self._pop()
        if type(called) is not Name or type(arguments) is not tuple:
            raise Unusable(f"calls a {_kind(called)}")
        # A call may copy what it is given, and that may be remembered from before: it costs but two bytes.
        self._charge(len(arguments) + sum(len(v) for v in arguments if type(v) in _CONTAINERS))
        self._made(self._meaning.call(called.text, arguments))

    def _new(self) -> None:
        arguments, cls = self._pop(), self._pop()
        if type(cls) is not Name or type(arguments) is not tuple or arguments:
            raise Unusable("makes an object of something else than a class without arguments")
        self._made(self._meaning.new(cls.text))

    def _build(self) -> None:
        state, target = self._pop(), self._stack[-1]
        if type(target) not in (Inert, Ordered) or type(state) is not dict:
            raise Unusable(f"sets the state of a {_kind(target)} to a {_kind(state)}")
        if not all(type(name) is str for name in state):
            raise Unusable("gives an object an attribute whose name is no text")
        self._charge(len(state))
        if type(target) is Inert:
            target.fields.update(state)

    def _persistent(self) -> None:
        self._made(self._meaning.persistent(self._pop()))


_STEPS = {
    b"\x80": "protocol",
    b"(": "mark",
    b"N": "none",
    b"\x88": "true",
    b"\x89": "false",
    b"K": "int1",
    b"M": "int2",
    b"J": "int4",
    b"\x8a": "long",
    b"G": "float",
    b"X": "text",
    b"U": "short_text",  # of Python 2
    b"}": "dict",
    b"]": "list",
    b")": "tuple0",
    b"\x85": "tuple1",
    b"\x86": "tuple2",
    b"\x87": "tuple3",
    b"t": "tuple",
    b"q": "put1",
    b"r": "put4",
    b"h": "get1",
    b"j": "get4",
    b"a": "append",
    b"e": "appends",
    b"s": "item",
    b"u": "items",
    b"c": "global",
    b"R": "reduce",
    b"\x81": "new",
    b"b": "build",
    b"Q": "persistent",
}


def _unknown(code: bytes) -> str:
    import pickletools

    if not code:
        return "is damaged: it ends within its pickle"
    known = next((op.name for op in pickletools.opcodes if op.code.encode("latin-1") == code), f"{code!r}")
    return f"has the pickle instruction {known}, which torch.save does not write"


def _kind(value: Any) -> str:
    return f"name ({value.text})" if type(value) is Name else type(value).__name__.lower()
