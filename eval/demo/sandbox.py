"""Running a small Python function from an answer: a syntax allow-list, then a limited process.

Two walls, since either alone has holes: `check_code` refuses syntax that reaches outside plain
computation; `run_cases` executes what is left in an isolated interpreter with few builtins, cut
modules, and limits on processor time, memory, files and processes (`sandbox_child`).
"""

import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.demo.answers import first_fence

MAX_CODE = 8_000
WALL_SECONDS = 5.0
MODULES = frozenset({"math", "re", "string", "itertools", "collections", "functools"})

Case = tuple[list[object], object]

_CHILD = Path(__file__).with_name("sandbox_child.py")

# fmt: off
_BANNED_NAMES = frozenset({
    "breakpoint", "compile", "delattr", "eval", "exec", "getattr", "globals", "hasattr", "locals",
    "memoryview", "open", "setattr", "super", "vars",
})
# fmt: on
_FRAME_ATTRIBUTES = ("gi_", "cr_", "ag_", "f_", "tb_", "co_", "func_")

_NODES = (
    ast.mod,
    ast.expr_context,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.comprehension,
    ast.arguments,
    ast.arg,
    ast.keyword,
    ast.alias,
    ast.FunctionDef,
    ast.Return,
    ast.Delete,
    ast.Assign,
    ast.AugAssign,
    ast.AnnAssign,
    ast.For,
    ast.While,
    ast.If,
    ast.Raise,
    ast.Try,
    ast.ExceptHandler,
    ast.Assert,
    ast.Import,
    ast.ImportFrom,
    ast.Global,
    ast.Nonlocal,
    ast.Expr,
    ast.Pass,
    ast.Break,
    ast.Continue,
    ast.BoolOp,
    ast.NamedExpr,
    ast.BinOp,
    ast.UnaryOp,
    ast.Lambda,
    ast.IfExp,
    ast.Dict,
    ast.Set,
    ast.ListComp,
    ast.SetComp,
    ast.DictComp,
    ast.GeneratorExp,
    ast.Yield,
    ast.YieldFrom,
    ast.Compare,
    ast.Call,
    ast.FormattedValue,
    ast.JoinedStr,
    ast.Constant,
    ast.Attribute,
    ast.Subscript,
    ast.Starred,
    ast.Name,
    ast.List,
    ast.Tuple,
    ast.Slice,
)


class CodeRefused(ValueError):
    """An answer's code that will not be run; the message says why."""


class SandboxError(RuntimeError):
    """The sandbox itself failed to start, which says nothing about the code."""


def code_of(answer: str) -> str:
    """The first fenced block, else the whole answer."""
    fenced = first_fence(answer)
    return answer if fenced is None else fenced


def check_code(code: str, function: str) -> None:
    """Raise CodeRefused unless `code` is plain computation that defines `function`."""
    if len(code) > MAX_CODE:
        raise CodeRefused(f"the code is longer than {MAX_CODE} characters")
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CodeRefused(f"the code does not parse: {error}") from error
    for node in ast.walk(tree):
        _check_node(node)
    if not any(isinstance(n, ast.FunctionDef) and n.name == function for n in tree.body):
        raise CodeRefused(f"the code defines no function {function!r}")


def run_cases(code: str, function: str, cases: Sequence[Case]) -> tuple[bool, ...]:
    """Whether each case passes, in a fresh process; a case that was never reached did not.

    Raises CodeRefused for what `check_code` refuses, SandboxError when no sandbox came up.
    """
    check_code(code, function)
    task = json.dumps({"code": code, "function": function, "cases": list(cases)})
    command = [sys.executable, "-I", "-S", "-B", str(_CHILD)]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd=_CHILD.anchor,
        start_new_session=True,
    )
    with process:
        try:
            output, _ = process.communicate(task.encode(), timeout=WALL_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
    lines = output.decode("ascii").split()
    if lines[:1] != ["ready"]:
        raise SandboxError(f"the sandbox did not start (exit status {process.returncode})")
    passed = [line == "1" for line in lines[1:]]
    return tuple(passed + [False] * (len(cases) - len(passed)))


def _check_node(node: ast.AST) -> None:
    if not isinstance(node, _NODES):
        raise CodeRefused(f"{type(node).__name__} is not allowed")
    if isinstance(node, ast.Attribute):
        _check_attribute(node)
    elif isinstance(node, ast.Name):
        if node.id in _BANNED_NAMES:
            raise CodeRefused(f"{node.id!r} is not allowed")
        if node.id != "__name__":
            _check_identifier(node.id)
    elif isinstance(node, ast.FunctionDef):
        _check_identifier(node.name)
    elif isinstance(node, ast.arg):
        _check_identifier(node.arg)
    elif isinstance(node, ast.keyword | ast.ExceptHandler):
        _check_identifier((node.arg if isinstance(node, ast.keyword) else node.name) or "")
    elif isinstance(node, ast.Global | ast.Nonlocal):
        for name in node.names:
            _check_identifier(name)
    elif isinstance(node, ast.Import):
        for alias in node.names:
            _check_module(alias.name)
            _check_identifier(alias.asname or "")
    elif isinstance(node, ast.ImportFrom):
        _check_module(node.module if not node.level else None)
        for alias in node.names:
            _check_identifier(alias.name)
            _check_identifier(alias.asname or "")


def _check_attribute(node: ast.Attribute) -> None:
    if node.attr.startswith(("_", *_FRAME_ATTRIBUTES)):
        raise CodeRefused(f"the attribute {node.attr!r} is not allowed")
    if not isinstance(node.ctx, ast.Load):
        raise CodeRefused("setting or deleting an attribute is not allowed")


def _check_identifier(name: str) -> None:
    if name.startswith("__"):
        raise CodeRefused(f"the name {name!r} is not allowed")


def _check_module(name: str | None) -> None:
    if name not in MODULES:
        raise CodeRefused(f"importing {name!r} is not allowed")
