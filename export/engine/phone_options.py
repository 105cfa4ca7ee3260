"""Gives the wheel's runtime, in this process, the XNNPACK options of the libraries that phones run, or its own again.

Upstream builds both phone libraries with the cache of packed weights and the wheel without it; all of them share one
workspace (executorch 1.5.1, tools/cmake/preset: android, apple_common, default). The cache finds packed weights by
name, across every model alive: a file may compute one thing with it and another without.

The Python binding has no way to set options, but the C++ library behind it exports `executorch::runtime::set_option`.
It is called here, and nowhere else, through ctypes: by its mangled name and with `BackendOption` laid out by hand,
both as in runtime/backend/{interface,options}.h of 1.5.1. The wheels for Linux and macOS export it.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum

from executorch.extension.pybindings import _C

from checkpoints.errors import BadInput

BACKEND = b"XnnpackBackend"
WEIGHT_CACHE, WORKSPACE_SHARING = b"weight_cache_enabled", b"workspace_sharing_mode"
SYMBOL = "_ZN10executorch7runtime10{}_optionEPKcNS0_4SpanINS0_13BackendOptionEEE"  # Error(char const*, Span)
BOOL, INT, TEXT = range(3)  # which alternative of the variant is held


class Sharing(IntEnum):
    """Which delegates use one workspace (`WorkspaceSharingMode`)."""

    DISABLED = 0
    PER_MODEL = 1
    GLOBAL = 2


@dataclass(frozen=True)
class XnnpackOptions:
    """What XNNPACK's delegate decides when a method is loaded."""

    weight_cache: bool  # share packed weights of one name, on the heap
    workspace_sharing: Sharing


PHONE = XnnpackOptions(weight_cache=True, workspace_sharing=Sharing.GLOBAL)
WHEEL = XnnpackOptions(weight_cache=False, workspace_sharing=Sharing.GLOBAL)


def set_options(options: XnnpackOptions) -> None:
    """Load every method from now on with these options; loaded ones keep theirs.

    BadInput where the installed executorch does not export the function, RuntimeError where it does not obey.
    """
    _call("set", _Option(WEIGHT_CACHE, options.weight_cache, kind=BOOL))
    _call("set", _Option(WORKSPACE_SHARING, options.workspace_sharing, kind=INT))
    if (taken := get_options()) != options:
        raise RuntimeError(f"XNNPACK's options were set to {options} and are {taken}")


def get_options() -> XnnpackOptions:
    """The options that the next method is loaded with."""
    return XnnpackOptions(bool(_get(WEIGHT_CACHE, BOOL)), Sharing(_get(WORKSPACE_SHARING, INT)))


class _Option(ctypes.Structure):
    """`BackendOption`: a key and a `std::variant<bool, int, std::array<char, 256>>`, whose index comes last.

    libstdc++ keeps the index in a byte and pads, libc++ in an int: on little-endian machines both read this one.
    """

    _fields_ = [
        ("key", ctypes.c_char * 64),
        ("number", ctypes.c_int32),
        ("rest", ctypes.c_char * 252),
        ("kind", ctypes.c_uint32),
    ]


class _Span(ctypes.Structure):
    _fields_ = [("data", ctypes.POINTER(_Option)), ("length", ctypes.c_size_t)]


def _get(key: bytes, kind: int) -> int:
    # Upstream leaves an option it does not know as it came: a kind that is never right shows it.
    option = _Option(key, kind=TEXT)
    _call("get", option)
    if option.kind != kind:
        raise RuntimeError(f"XNNPACK's option {key.decode()} is of kind {option.kind}, not {kind}")
    return option.number


def _call(verb: str, option: _Option) -> None:
    symbol = SYMBOL.format(verb)
    try:
        function = ctypes.CDLL(_C.__file__)[symbol]  # looks in the libraries that the binding is linked with as well
    except AttributeError:
        raise BadInput(f"{_C.__file__} and its libraries do not export {symbol}, as executorch 1.5.1's do") from None
    function.argtypes, function.restype = [ctypes.c_char_p, _Span], ctypes.c_uint32
    if error := function(BACKEND, _Span(ctypes.pointer(option), 1)):
        raise RuntimeError(f"executorch's {verb}_option({option.key.decode()}) failed with 0x{error:x}")
