"""The catalog: templates by name, made from the texts of their files.

A file `NAME.yaml` has three keys: `description`, `parameters` (a list of `Parameter`) and `spec`, the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from vmtenancy.api.common import ApiModel, Items, ObjectName
from vmtenancy.api.parsing import field_path
from vmtenancy.errors import Code, Problem, VmtError
from vmtenancy.render.document import DocumentError, load_document
from vmtenancy.render.parameters import Parameter
from vmtenancy.render.template import MAX_TEXT, Template

Catalog: TypeAlias = Mapping[str, Template]

SUFFIX = ".yaml"
_NAME: TypeAdapter[str] = TypeAdapter(ObjectName)


class _File(ApiModel):
    description: Annotated[str, Field(min_length=1)]
    parameters: Annotated[tuple[Parameter, ...], Items(most=64, keys=("name",))] = ()
    spec: str


def parse_catalog(files: Mapping[str, str]) -> Catalog:
    """Return the templates in `files`, texts by file name (`default.yaml`).

    Raises `VmtError` with every problem of every file (TEMPLATE); the path of each is the file's name.
    """
    catalog: dict[str, Template] = {}
    problems: list[Problem] = []
    for file, text in sorted(files.items()):
        try:
            template = _parse(file, text)
        except VmtError as error:
            problems += error.problems
        else:
            catalog[template.name] = template
    if problems:
        raise VmtError.of(problems)
    return catalog


def find(catalog: Catalog, name: str) -> Template:
    """Return the template `name`. Raises `VmtError` (UNKNOWN_REFERENCE) that lists the known ones."""
    if name in catalog:
        return catalog[name]
    known = "one of " + ", ".join(sorted(catalog)) if catalog else "a template, but none is installed"
    message = "there is no such template"
    raise VmtError(Problem(Code.UNKNOWN_REFERENCE, "spec.template.name", message, name, known))


def _parse(file: str, text: str) -> Template:
    try:
        name = _NAME.validate_python(file.removesuffix(SUFFIX))
        if len(text) > 2 * MAX_TEXT:
            raise DocumentError(f"the file is longer than {2 * MAX_TEXT} characters")
        content = _File.model_validate(load_document(text))
        return Template(name, content.description, content.parameters, content.spec)
    except DocumentError as error:
        raise VmtError(Problem(Code.TEMPLATE, file, str(error))) from error
    except ValidationError as error:
        raise VmtError.of(
            Problem(Code.TEMPLATE, file, f"{field_path(detail['loc'])}: {detail['msg']}".removeprefix(": "))
            for detail in error.errors()
        ) from error
    except VmtError as error:
        raise VmtError.of(replace(problem, path=file) for problem in error.problems) from error
