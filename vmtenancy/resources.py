"""The data files that belong to vmtenancy: in an installed package, or in the source tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from vmtenancy.errors import Code, Problem, VmtError

Name = Literal["crds", "manifests", "vm-templates", "quickstart"]

_PACKAGE: Final = Path(__file__).parent
_IN_SOURCE: Final[Mapping[Name, str]] = {
    "crds": "crds",
    "manifests": "deploy/manifests",
    "vm-templates": "vm-templates",
    "quickstart": "examples/quickstart",
}


def folder(name: Name) -> Path:
    """Where one set of data files lies. Raises `VmtError` where the installation is incomplete."""
    for path in (_PACKAGE / "_data" / name, _PACKAGE.parent / _IN_SOURCE[name]):
        if path.is_dir():
            return path
    raise VmtError(
        Problem(Code.COMPONENT, "", f"the data files '{name}' are missing: the installation is incomplete")
    )


def objects(path: Path) -> Iterator[dict[str, Any]]:
    """Every Kubernetes object in a YAML file, or in the YAML files of a folder in the order of their names.

    Raises `VmtError` for what is no YAML or no object.
    """
    for file in sorted(path.glob("*.yaml")) if path.is_dir() else [path]:
        try:
            documents = [doc for doc in yaml.safe_load_all(file.read_text()) if doc is not None]
        except (OSError, yaml.YAMLError) as error:
            raise VmtError(Problem(Code.INVALID_FIELD, "", f"{file} can not be read: {error}")) from error
        for document in documents:
            if not isinstance(document, dict) or not document.get("kind"):
                raise VmtError(Problem(Code.INVALID_FIELD, "", f"{file} holds what is no Kubernetes object"))
            yield document


def templates(path: Path | None = None) -> dict[str, str]:
    """The texts of the VM templates by file name: those shipped, or those of a folder."""
    home = path or folder("vm-templates")
    return {file.name: file.read_text() for file in sorted(home.iterdir()) if file.is_file()}


def mapping(path: Path) -> dict[str, Any]:
    """A YAML file that is one mapping, such as chart values. Raises `VmtError` for anything else."""
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise VmtError(Problem(Code.INVALID_FIELD, "", f"{path} can not be read: {error}")) from error
    if not isinstance(found, dict):
        expected = "a mapping of names to values"
        raise VmtError(
            Problem(Code.INVALID_FIELD, "", f"{path} is not usable", type(found).__name__, expected)
        )
    return found
