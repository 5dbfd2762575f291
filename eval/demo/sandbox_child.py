"""The process that runs a model's function; started by `sandbox` as a script, never imported there.

It reads one JSON object (code, function, cases) from standard input, gives up its rights, and
writes "ready", then one line a case: "1" when the function returned what was expected, else "0".
"""

import collections
import functools
import itertools
import json
import math
import re
import resource
import string
import sys
from collections.abc import Callable, Mapping
from types import SimpleNamespace

CPU_SECONDS = 2
ADDRESS_SPACE = 512 * 1024 * 1024

# Whole modules would hand over others (re.enum.sys) and ways round the syntax check
# (string.Formatter, functools.update_wrapper), so each is cut to names known to be harmless.
_MODULES = {
    "math": SimpleNamespace(**{k: v for k, v in vars(math).items() if not k.startswith("_")}),
    "itertools": SimpleNamespace(
        **{k: v for k, v in vars(itertools).items() if not k.startswith("_")}
    ),
    "re": SimpleNamespace(
        compile=re.compile,
        escape=re.escape,
        findall=re.findall,
        finditer=re.finditer,
        fullmatch=re.fullmatch,
        match=re.match,
        search=re.search,
        split=re.split,
        sub=re.sub,
        I=re.I,
        IGNORECASE=re.IGNORECASE,
        M=re.M,
        MULTILINE=re.MULTILINE,
        S=re.S,
        DOTALL=re.DOTALL,
    ),
    "string": SimpleNamespace(
        ascii_letters=string.ascii_letters,
        ascii_lowercase=string.ascii_lowercase,
        ascii_uppercase=string.ascii_uppercase,
        capwords=string.capwords,
        digits=string.digits,
        punctuation=string.punctuation,
        whitespace=string.whitespace,
    ),
    "collections": SimpleNamespace(
        Counter=collections.Counter,
        OrderedDict=collections.OrderedDict,
        defaultdict=collections.defaultdict,
        deque=collections.deque,
    ),
    "functools": SimpleNamespace(
        cache=functools.cache,
        cmp_to_key=functools.cmp_to_key,
        lru_cache=functools.lru_cache,
        partial=functools.partial,
        reduce=functools.reduce,
    ),
}

# fmt: off
_BUILTINS: list[Callable[..., object]] = [
    abs, all, any, bin, bool, bytes, callable, chr, complex, dict, divmod, enumerate, filter,
    float, format, frozenset, hash, hex, int, isinstance, issubclass, iter, len, list, map, max,
    min, next, oct, ord, pow, range, repr, reversed, round, set, slice, sorted, str, sum, tuple,
    zip,
    ArithmeticError, AssertionError, AttributeError, Exception, ImportError, IndexError, KeyError,
    LookupError, NameError, NotImplementedError, OverflowError, RecursionError, RuntimeError,
    StopIteration, TypeError, ValueError, ZeroDivisionError,
]
# fmt: on


def restricted_import(
    name: str,
    _globals: Mapping[str, object] | None = None,
    _locals: Mapping[str, object] | None = None,
    _fromlist: tuple[str, ...] | None = (),
    level: int = 0,
) -> SimpleNamespace:
    """Stands in for `__import__`: a cut-down module, or ImportError."""
    if level or name not in _MODULES:
        raise ImportError(f"module {name!r} is not available here")
    return _MODULES[name]


def discard(*_values: object, **_options: object) -> None:
    """Stands in for `print`: an answer has nowhere to print to."""


def type_of(value: object) -> type:
    """Stands in for `type`, without the three-argument form that makes classes."""
    return type(value)


def namespace() -> dict[str, object]:
    """Fresh globals for an answer."""
    builtins = {item.__name__: item for item in _BUILTINS}
    extra = {"__import__": restricted_import, "print": discard, "type": type_of}
    return {"__name__": "answer", "__builtins__": builtins | extra}


def same(expected: object, found: object) -> bool:
    """Equality that takes a tuple for a list and 2.0 for 2, but never 1 for true."""
    if isinstance(expected, list):
        return (
            isinstance(found, list | tuple)
            and len(expected) == len(found)
            and all(map(same, expected, found))
        )
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and expected.keys() == found.keys()
            and all(same(value, found[key]) for key, value in expected.items())
        )
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int) and isinstance(found, int):
        return expected == found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return math.isclose(expected, found, rel_tol=1e-6, abs_tol=1e-6)
    return expected == found


def give_up_rights() -> None:
    limits = [
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 3),
        (resource.RLIMIT_CORE, 0),
    ]
    if sys.platform == "linux":  # macOS refuses a limit on the address space
        limits.append((resource.RLIMIT_AS, ADDRESS_SPACE))
    for which, limit in limits:
        resource.setrlimit(which, (limit, limit))


def main() -> None:
    task = json.load(sys.stdin)
    give_up_rights()
    _report("ready")
    scope = namespace()
    exec(compile(task["code"], "answer", "exec"), scope)  # noqa: S102 - what this process is for
    function = scope[task["function"]]
    for arguments, expected in task["cases"]:
        _report("1" if _passes(function, arguments, expected) else "0")


def _passes(function: object, arguments: list[object], expected: object) -> bool:
    # An answer may fail in any way it likes, and that is the result: a failed case.
    try:
        return callable(function) and same(expected, function(*arguments))
    except Exception:
        return False


def _report(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
