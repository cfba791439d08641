"""Template files."""

from pathlib import Path

import pytest

from vmtenancy.errors import Code, VmtError
from vmtenancy.render.catalog import find, parse_catalog

FOLDER = Path(__file__).parents[2] / "vm-templates"


def test_the_shipped_templates() -> None:
    catalog = parse_catalog({path.name: path.read_text() for path in FOLDER.glob("*.yaml")})
    assert sorted(catalog) == ["bare", "default", "ubuntu-cuda", "windows"]
    assert all(template.description.endswith(".") for template in catalog.values())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("description: d", "spec: Field required"),
        ("spec: 'a: 1'", "description: Field required"),
        ("description: d\nspec: {a: 1}", "spec: Input should be a valid string"),
        ("description: d\nspec: ''\nextra: 1", "extra: Extra inputs are not permitted"),
        ("description: d\ndescription: e\nspec: ''", "'description' is given twice"),
        ("description: d\nspec: '{% set a = 1 %}'", "Assign is not part of the template language"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[]", "Input should be a valid dictionary"),
        (
            "description: d\nspec: 'a: 1'\nparameters: [{name: vm, type: string, description: d}]",
            "a meaning of its own",
        ),
        ("description: d\nspec: 'a: 1'\nparameters: [{name: X, type: string, description: d}]", "camelCase"),
        (
            "description: d\nspec: 'a: 1'\nparameters: [{name: x, type: list, description: d}]",
            "parameters\\[0\\].type",
        ),
        (
            "description: d\nspec: 'a: 1'\nparameters: [{name: x, type: string, description: d, pattern: '('}]",
            "no regular expression",
        ),
        (
            "description: d\nspec: 'a: 1'\nparameters: [{name: x, type: integer, description: d, default: a}]",
            "'a' is not a value of this parameter",
        ),
        (
            "description: d\nspec: 'a: 1'\nparameters: [{name: x, type: integer, description: d, pattern: a}]",
            "pattern and enum are for strings",
        ),
        (
            "description: d\nspec: 'a: 1'\nparameters:\n- &a {name: x, type: string, description: d}\n- *a",
            "anchors and aliases",
        ),
    ],
)
def test_refused_files(text: str, why: str) -> None:
    with pytest.raises(VmtError, match=why) as caught:
        parse_catalog({"own.yaml": text})
    assert {(problem.code, problem.path) for problem in caught.value.problems} == {
        (Code.TEMPLATE, "own.yaml")
    }


def test_every_broken_file_is_named_and_names_are_dns_names() -> None:
    good = "description: d\nspec: 'a: 1'"
    with pytest.raises(VmtError) as caught:
        parse_catalog({"b.yaml": "", "a.yaml": "[", "Bad Name.yaml": good, "good.yaml": good})
    assert [problem.path for problem in caught.value.problems] == ["Bad Name.yaml", "a.yaml", "b.yaml"]


def test_an_unknown_template_lists_the_known_ones() -> None:
    catalog = parse_catalog(
        {"a.yaml": "description: d\nspec: 'a: 1'", "b.yaml": "description: d\nspec: 'a: 1'"}
    )
    with pytest.raises(VmtError, match=r"VMT-A004: spec.template.name: .*found c.*one of a, b"):
        find(catalog, "c")
    with pytest.raises(VmtError, match="none is installed"):
        find({}, "c")
