"""A VM template: text in a small, total subset of Jinja2, and the parameters that it takes.

The language has expressions, `if` and one level of `for`; no assignments, macros, includes, method calls, `*`,
`%` or `**`. So the work of rendering is bounded before it starts: a loop runs over a list that is written out or
over a range of at most `MAX_RANGE`, which makes at most `MAX_NODES ** 2 / 4` small operations. Sizes of input and
output are bounded too. Limits on time belong to the caller.

Values never become YAML syntax: the text is parsed while each value is still a placeholder, and values are put
into the parsed tree. A scalar that is nothing but one expression takes the value with its type; inside a longer
text a value must be a plain word (`[A-Za-z0-9._/@+-]`), or pass through `tojson`, so that nothing leaves its place
in a script or a nested document either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, Final

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.render.document import load_document
from vmtenancy.render.parameters import RESERVED, Parameter, Scalar, values_of

MAX_TEXT: Final = 64 * 1024
MAX_OUTPUT: Final = 256 * 1024
MAX_NODES: Final = 2000
MAX_DEPTH: Final = 30
MAX_RANGE: Final = 128


@dataclass(frozen=True, slots=True)
class VmFacts:
    """What a template may read of the GpuVM, as `vm.<field>`.

    `memory` is a quantity, `gpus` the number of devices granted, or asked for; `disks` and `networks` are names, to
    loop over.
    """

    name: str
    namespace: str
    cores: int
    memory: str
    gpus: int
    disks: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Template:
    """A template whose text is checked when it is made; it renders to a fragment of a VirtualMachine's spec.

    Raises `VmtError` (TEMPLATE).
    """

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    text: str

    def __post_init__(self) -> None:
        try:
            _compiled(self.text, self._names)
        except (jinja2.TemplateError, ValueError, RecursionError) as error:
            raise VmtError(self._problem(error)) from error

    def render(self, parameters: Mapping[str, str], vm: VmFacts) -> dict[str, Any]:
        """Return the rendered fragment. Raises `VmtError` for refused parameters or a text that fails."""
        values = values_of(self.name, self.parameters, parameters)
        placed = _Placed()
        try:
            # Operators on values of the wrong type raise whatever Python raises.
            chunks = _compiled(self.text, self._names).generate(**values, vm=vm, **{_PLACED: placed})
            text = "".join(placed.bounded(chunk) for chunk in chunks)
            tree = placed.fill(load_document(text))
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise VmtError(self._problem(error)) from error
        if not isinstance(tree, dict):
            raise VmtError(self._problem(ValueError("the text has to render to a mapping")))
        return tree

    @property
    def _names(self) -> frozenset[str]:
        return frozenset(parameter.name for parameter in self.parameters)

    def _problem(self, error: Exception) -> Problem:
        if isinstance(error, jinja2.TemplateSyntaxError):
            reason = f"line {error.lineno}: {error.message}"
        else:
            reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        return Problem(Code.TEMPLATE, "spec.template", f"template {self.name}: {reason}")


@dataclass(frozen=True, slots=True)
class _Json:
    """What `tojson` makes: a value that is written as JSON when it stands inside a longer text."""

    value: Scalar

    def __str__(self) -> str:
        return json.dumps(self.value, ensure_ascii=False)


#: A placeholder is a number between two private-use characters; texts and values can not contain these.
_OPEN: Final = "\ue000"
_CLOSE: Final = "\ue001"
_PLACEHOLDER: Final = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")
_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9._/@+-]*")
_PLACED: Final = "_placed"


@dataclass(slots=True)
class _Placed:
    """The values of one rendering, by the number of their placeholder."""

    values: list[Scalar | _Json] = field(default_factory=list)
    size: int = 0

    def place(self, value: object) -> str:
        if not isinstance(value, str | int | _Json):
            raise ValueError(f"an expression has to give text, a number or a boolean, not {value!r:.40}")
        self.bounded(str(value))
        self.values.append(value)
        return f"{_OPEN}{len(self.values) - 1}{_CLOSE}"

    def bounded(self, text: str) -> str:
        self.size += len(text)
        if self.size > MAX_OUTPUT:
            raise ValueError(f"the output is longer than {MAX_OUTPUT} characters")
        return text

    def fill(self, node: Any) -> Any:
        """Return the tree with each placeholder replaced."""
        if isinstance(node, str):
            if match := _PLACEHOLDER.fullmatch(node):
                value = self.values[int(match[1])]
                return value.value if isinstance(value, _Json) else value
            return _PLACEHOLDER.sub(self._inside, node)
        if isinstance(node, list):
            return [self.fill(item) for item in node]
        if not isinstance(node, dict):
            return node
        filled: dict[str, Any] = {}
        for key, item in node.items():
            name = self.fill(key)
            if not isinstance(name, str) or name in filled:
                raise ValueError(f"the key {name!r} is no string, or is given twice")
            filled[name] = self.fill(item)
        return filled

    def _inside(self, match: re.Match[str]) -> str:
        value = self.values[int(match[1])]
        if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) is None:
            raise ValueError(f"{value[:80]!r} stands inside a longer text: it needs the filter tojson")
        return str(value if isinstance(value, str | _Json) else _Json(value))


@jinja2.pass_context
def _finalize(context: Context, value: object) -> str:
    if isinstance(value, jinja2.Undefined):
        return str(value)  # raises: the environment is strict
    placed = context[_PLACED]
    assert isinstance(placed, _Placed)  # noqa: S101 - `render` put it there; no template can name it
    return placed.place(value)


def _range(*bounds: int) -> range:
    numbers = range(*bounds)
    if numbers[MAX_RANGE:]:  # its len() can be more than an index holds
        raise ValueError(f"a range has at most {MAX_RANGE} items")
    return numbers


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    kept = {name: environment.filters[name] for name in ("lower", "upper", "trim", "int", "string", "length")}
    environment.filters = {**kept, "tojson": _Json}
    environment.tests = {}
    environment.globals = {"range": _range}
    return environment


@lru_cache(maxsize=128)
def _compiled(text: str, parameters: frozenset[str]) -> jinja2.Template:
    """Check and compile. Raises `jinja2.TemplateError`, `ValueError` or `RecursionError`."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"the text is longer than {MAX_TEXT} characters")
    if _OPEN in text or _CLOSE in text:
        raise ValueError("the text contains one of the private-use characters U+E000 and U+E001")
    environment = _environment()
    tree = environment.parse(text)
    if sum(1 for _ in tree.find_all(nodes.Node)) > MAX_NODES:
        raise ValueError(f"the text has more than {MAX_NODES} parts (pieces of text and of expressions)")
    _check(tree, parameters, in_loop=False, depth=0)
    return environment.from_string(tree)


_ALLOWED: Final = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For),
    *(nodes.Name, nodes.Const, nodes.List, nodes.Getattr, nodes.Call, nodes.Filter, nodes.CondExpr),
    *(nodes.Not, nodes.And, nodes.Or, nodes.Compare, nodes.Operand, nodes.Neg, nodes.Add, nodes.Sub),
    nodes.Concat,
)
_FIELDS: Final = {
    "vm": frozenset(fact.name for fact in fields(VmFacts)),
    "loop": frozenset({"index", "index0", "first", "last", "length"}),
}


def _check(node: nodes.Node, names: frozenset[str], *, in_loop: bool, depth: int) -> None:
    """Refuse what is not in the language; `names` are the variables that may be read here."""

    def refuse(message: str) -> jinja2.TemplateSyntaxError:
        return jinja2.TemplateSyntaxError(message, node.lineno)

    if depth > MAX_DEPTH:
        raise refuse(f"nested more than {MAX_DEPTH} deep")
    if not isinstance(node, _ALLOWED):
        raise refuse(f"{type(node).__name__} is not part of the template language")
    children = list(node.iter_child_nodes())
    inner = names
    if isinstance(node, nodes.Name) and node.name not in names:
        raise refuse(f"{node.name!r} is no parameter of this template")
    if isinstance(node, nodes.Getattr):
        base = node.node.name if isinstance(node.node, nodes.Name) else ""
        if node.attr not in _FIELDS.get(base, ()) or (base == "loop" and not in_loop):
            raise refuse(f".{node.attr} can not be read here: only vm.<field> and, in loops, loop.<field>")
        return
    if isinstance(node, nodes.Call):
        if not isinstance(node.node, nodes.Name) or node.node.name != "range" or node.kwargs:
            raise refuse("nothing can be called but range(...)")
        children.remove(node.node)
    if isinstance(node, nodes.For):
        if in_loop or node.recursive:
            raise refuse("a loop inside a loop is not allowed")
        if not isinstance(node.target, nodes.Name) or node.target.name in RESERVED:
            raise refuse("a loop needs one variable with a name of its own")
        _check(node.iter, names, in_loop=False, depth=depth + 1)
        children.remove(node.iter)
        inner = names | {node.target.name}
        in_loop = True
    for child in children:
        _check(child, inner, in_loop=in_loop, depth=depth + 1)
