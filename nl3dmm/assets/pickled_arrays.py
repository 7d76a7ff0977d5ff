"""Arrays out of a pickle without running it.

An interpreter of the opcodes that hold data. What they may build is the table below: arrays, sparse matrices, chumpy's
wrappers of arrays, and dictionaries. Nothing is imported or called by name, so a pickle with code in it does nothing.
"""

import pickletools
import re
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from scipy import sparse

MAX_ELEMENTS = 2**28  # of a sparse matrix, written out
_MARK = object()
# What a global of a pickle stands for. Two names of one thing: before and since NumPy 2, SciPy 1.8, Python 3.
_MEANING = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy.core.numeric _frombuffer": "buffer",
    "numpy._core.numeric _frombuffer": "buffer",
    "numpy ndarray": "type",
    "numpy dtype": "dtype",
    "scipy.sparse.csc csc_matrix": "csc",
    "scipy.sparse._csc csc_matrix": "csc",
    "scipy.sparse.csr csr_matrix": "csr",
    "scipy.sparse._csr csr_matrix": "csr",
    "chumpy.ch Ch": "chumpy",
    "copy_reg _reconstructor": "instance",
    "copyreg _reconstructor": "instance",
    "__builtin__ object": "type",
    "builtins object": "type",
    "__builtin__ set": "set",
    "builtins set": "set",
    "collections OrderedDict": "dictionary",
    "_codecs encode": "text",
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# fmt: off
_LITERALS = frozenset((
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8",
))
# fmt: on


class RefusedPickleError(ValueError):
    """A pickle that is damaged, or that asks for more than arrays."""


class _Global(str):
    """A name that a pickle gave, with its meaning in the table."""


class _Object:
    """Something to build once its state is known."""

    def __init__(self, kind: str, arguments: tuple):
        self.kind, self.arguments, self.state = kind, arguments, None


def read_pickled(content: bytes) -> Any:
    """The dictionaries, lists and numbers of a pickle, with arrays where it describes arrays.

    Raises:
        RefusedPickleError: damaged, or with a global or an opcode that is not data.
    """
    try:
        return _built(_Interpreter().run(content), {})
    except RefusedPickleError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, MemoryError) as error:
        raise RefusedPickleError(f"damaged pickle: {error!r}") from error


class _Interpreter:
    """The stack machine of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(BytesIO(content)):
            if opcode.name == "STOP":
                return self.stack.pop()
            self._step(opcode.name, argument)
        raise RefusedPickleError("damaged pickle: it does not end")

    def _step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _SHORT_TUPLES:
            self.stack[-_SHORT_TUPLES[name] :] = [tuple(self.stack[-_SHORT_TUPLES[name] :])]
        elif name not in ("PROTO", "FRAME"):
            operation = getattr(self, f"_op_{name.lower()}", None)
            if operation is None:
                raise RefusedPickleError(f"a pickle with opcode {name}")
            operation(argument)

    def _since_mark(self) -> list[Any]:
        place = len(self.stack) - 1 - self.stack[::-1].index(_MARK)
        values = self.stack[place + 1 :]
        del self.stack[place:]
        return values

    def _op_mark(self, _: None) -> None:
        self.stack.append(_MARK)

    def _op_pop(self, _: None) -> None:
        self.stack.pop()

    def _op_tuple(self, _: None) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _op_list(self, _: None) -> None:
        self.stack.append(self._since_mark())

    def _op_dict(self, _: None) -> None:
        values = self._since_mark()
        self.stack.append(dict(zip(values[::2], values[1::2], strict=True)))

    def _op_append(self, _: None) -> None:
        value = self.stack.pop()
        self.stack[-1].append(value)

    def _op_appends(self, _: None) -> None:
        values = self._since_mark()
        self.stack[-1].extend(values)

    def _op_setitem(self, _: None) -> None:
        key, value = self.stack.pop(-2), self.stack.pop()
        self.stack[-1][key] = value

    def _op_setitems(self, _: None) -> None:
        values = self._since_mark()
        self.stack[-1].update(zip(values[::2], values[1::2], strict=True))

    def _op_put(self, argument: int) -> None:
        self.memo[argument] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_get(self, argument: int) -> None:
        self.stack.append(self.memo[argument])

    _op_binget = _op_long_binget = _op_get

    def _op_global(self, name: str) -> None:
        if name not in _MEANING:
            raise RefusedPickleError(f"a pickle that asks for {name.replace(' ', '.')!r}, which is not an array")
        self.stack.append(_Global(_MEANING[name]))

    def _op_stack_global(self, _: None) -> None:
        name = self.stack.pop()
        self._op_global(f"{self.stack.pop()} {name}")

    def _op_reduce(self, _: None) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if not isinstance(kind, _Global) or not isinstance(arguments, tuple):
            raise RefusedPickleError("a pickle that calls something that it built")
        self.stack.append(_called(kind, arguments))

    _op_newobj = _op_reduce

    def _op_build(self, _: None) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if not isinstance(built, _Object):
            raise RefusedPickleError("a pickle that gives a state to something else than an array")
        built.state = state


def _called(kind: str, arguments: tuple) -> Any:
    if kind == "text":
        return str(arguments[0]).encode("latin1")
    if kind == "bytes" and not arguments:
        return b""
    if kind == "set":
        return list(*arguments)
    if kind == "dictionary":
        return dict(*arguments)
    if kind == "instance":
        return _called(arguments[0], ()) if isinstance(arguments[0], _Global) else None
    if kind in ("type", "bytes"):
        raise RefusedPickleError("a pickle that calls a type")
    return _Object(kind, arguments)


def _built(value: Any, done: dict[int, Any]) -> Any:
    """The value with its arrays built, each once."""
    if not isinstance(value, _Object | dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = _build(value, done)
    return done[id(value)]


def _build(value: Any, done: dict[int, Any]) -> Any:
    if isinstance(value, dict):
        return {key: _built(item, done) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_built(item, done) for item in value)
    state = _built(value.state, done)
    if value.kind == "dtype":
        return _dtype(value.arguments[0], state)
    if value.kind == "array":
        return _array(*state[1:5])
    if value.kind == "buffer":
        data, dtype, shape, order, *axes = _built(value.arguments, done)
        array = _array(shape, dtype, order == "F", data)
        return array.transpose(axes[0]) if axes and axes[0] else array
    if value.kind == "chumpy":
        return state["x"]
    return _dense(value.kind, state)


def _dtype(code: str, state: tuple | None) -> np.dtype:
    if not re.fullmatch(r"[biuf]\d{1,2}|O8?", code):
        raise RefusedPickleError(f"an array of type {code!r}")
    order = state[1] if state else "="
    return np.dtype(code).newbyteorder(order if order in ("<", ">") else "=")


def _array(shape: tuple, dtype: np.dtype, is_fortran: bool, data: Any) -> Any:
    if dtype.hasobject:  # a saved dictionary is an array of one object
        return data[0] if shape == () else data
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _dense(kind: str, state: Mapping[str, Any]) -> np.ndarray:
    shape = state.get("_shape", state.get("shape"))
    if int(np.prod(shape, dtype=np.float64)) > MAX_ELEMENTS:
        raise RefusedPickleError(f"a sparse matrix of shape {shape}")
    matrix = sparse.csc_matrix if kind == "csc" else sparse.csr_matrix
    built = matrix((state["data"], state["indices"], state["indptr"]), shape=shape)
    built.check_format(full_check=True)
    return built.toarray()
