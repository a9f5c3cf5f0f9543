"""Read the one text in a pickled NumPy object array, without unpickling.

The published data set keeps its metadata as `np.array([json_text], dtype=object)`, which NumPy can only store as a
pickle, and a pickle from elsewhere can run any code when it is loaded. This reader walks over the opcodes and keeps a
stack of texts, numbers, tuples, lists and two kinds of marks, "the array" and "its type". It imports nothing and calls
nothing: a global that the pickle names is compared with five known names and becomes a mark. Whatever else it meets, it
refuses.

Source: Python's `pickletools`, whose documentation of the opcodes is the specification of the format.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable
from typing import Any, Final

from lpbf_data.errors import StoreError

_LARGEST: Final = 16 << 20
_MOST_OPCODES: Final = 10_000

_ARRAY: Final = "array"
_TYPE: Final = "dtype"
_KNOWN: Final = {
    ("numpy.core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _ARRAY,
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _TYPE,
    ("_codecs", "encode"): "encode",
}

_CONSTANTS: Final[dict[str, Any]] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_VALUES: Final = frozenset(
    ["BININT", "BININT1", "BININT2", "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES"]
)
_NOTHING: Final = frozenset(["PROTO", "FRAME"])


class _Global:
    """A name that the pickle would import; here it is no more than a mark."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Made:
    """What a call would give: an empty array or a type, to be filled by BUILD."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = None


class _Reader:
    """A stack machine that can make nothing but plain values and marks."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def push_global(self, module: Any, name: Any) -> None:
        kind = _KNOWN.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"it names {module}.{name}")
        self.stack.append(_Global(kind))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise TypeError("it calls something that isn't a known name")
        if function.kind in (_ARRAY, _TYPE):
            self.stack.append(_Made(function.kind))
        elif function.kind == "encode" and len(arguments) == 2 and all(isinstance(a, str) for a in arguments):
            self.stack.append(b"")  # bytes in old protocols; the type's letter, which nothing here looks at
        else:
            raise ValueError(f"it calls {function.kind}")

    def build(self) -> None:
        state, made = self.pop(), self.stack[-1]
        if not isinstance(made, _Made):
            raise TypeError("it gives a state to something that isn't an array")
        made.state = state

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("it appends to something that isn't a list")
        target.extend(items)

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _NOTHING:
            return
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        else:
            raise ValueError(f"it has the opcode {name}")


_ACTIONS: Final[dict[str, Callable[[_Reader, Any], None]]] = {
    "MARK": lambda r, _: r.marks.append(len(r.stack)),
    "EMPTY_TUPLE": lambda r, _: r.stack.append(()),
    "EMPTY_LIST": lambda r, _: r.stack.append([]),
    "TUPLE": lambda r, _: r.stack.append(tuple(r.since_mark())),
    "TUPLE1": lambda r, _: r.stack.append(tuple(r.last(1))),
    "TUPLE2": lambda r, _: r.stack.append(tuple(r.last(2))),
    "TUPLE3": lambda r, _: r.stack.append(tuple(r.last(3))),
    "APPEND": lambda r, _: r.append([r.pop()]),
    "APPENDS": lambda r, _: r.append(r.since_mark()),
    "MEMOIZE": lambda r, _: r.memo.__setitem__(len(r.memo), r.stack[-1]),
    "PUT": lambda r, argument: r.memo.__setitem__(argument, r.stack[-1]),
    "BINPUT": lambda r, argument: r.memo.__setitem__(argument, r.stack[-1]),
    "LONG_BINPUT": lambda r, argument: r.memo.__setitem__(argument, r.stack[-1]),
    "BINGET": lambda r, argument: r.stack.append(r.memo[argument]),
    "LONG_BINGET": lambda r, argument: r.stack.append(r.memo[argument]),
    "GLOBAL": lambda r, argument: r.push_global(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda r, _: r.push_global(*r.last(2)),
    "REDUCE": lambda r, _: r.reduce(),
    "BUILD": lambda r, _: r.build(),
}


def read_pickled_text(data: bytes) -> str:
    """The text in a pickled object array that holds one text and nothing else.

    Args:
        data: The pickle.

    Raises:
        StoreError: If it holds anything else.
    """
    try:
        return _run(data)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        reason = (str(error) or type(error).__name__)[:200]
        raise StoreError(f"the pickle is not that of one text, and will not be loaded: {reason}") from error


def _run(data: bytes) -> str:
    if len(data) > _LARGEST:
        raise ValueError(f"it has {len(data)} bytes")
    reader = _Reader()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, about escapes in texts that are damaged
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(data))):
            if count > _MOST_OPCODES:
                raise ValueError(f"it has more than {_MOST_OPCODES} opcodes")
            if opcode.name == "STOP":
                break
            reader.step(opcode.name, argument)
    (array,) = reader.stack
    if not isinstance(array, _Made) or array.kind != _ARRAY:
        raise TypeError("it is no array")
    # numpy.ndarray.__setstate__: version, shape, type, order, values
    _, shape, _, _, values = array.state
    if shape not in ((), (1,)) or not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], str):
        raise TypeError("it is no array of one text")
    return values[0]
