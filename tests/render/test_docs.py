"""The page on templates says what is."""

import re
from pathlib import Path

from vmtenancy.errors import Code
from vmtenancy.render import parameters, template
from vmtenancy.render.catalog import parse_catalog
from vmtenancy.render.policy import check_vm_spec
from vmtenancy.render.template import VmFacts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "templates.md").read_text()


def test_the_example_renders_to_what_is_allowed() -> None:
    text = next(
        block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S) if block.startswith("description")
    )
    own = parse_catalog({"own.yaml": text})["own"]
    facts = VmFacts("trainer", "vision", 4, "8Gi", 1, disks=("root",))
    found = own.render({"watchdog": "true"}, facts)
    assert check_vm_spec(found, "spec", Code.OUTPUT_REFUSED) == []
    domain = found["template"]["spec"]["domain"]
    assert domain["memory"] == {"hugepages": {"pageSize": "1Gi"}}
    assert [disk["name"] for disk in domain["devices"]["disks"]] == ["root"]
    assert "watchdog" in domain["devices"]
    assert "watchdog" not in own.render({}, facts)["template"]["spec"]["domain"]["devices"]


def test_every_shipped_template_and_parameter_is_listed() -> None:
    rows = {row[0]: row[1] for row in re.findall(r"^\| `([a-z-]+)` \| .*? \| (.*)\|$", PAGE, re.M)}
    catalog = parse_catalog({path.name: path.read_text() for path in (ROOT / "vm-templates").glob("*.yaml")})
    assert rows.keys() == catalog.keys()
    for name, found in catalog.items():
        assert re.findall(r"`(\w+)`", rows[name]) == [parameter.name for parameter in found.parameters]


def test_the_limits_are_those_of_the_code() -> None:
    limits = " ".join(PAGE[PAGE.index("**Limits.**") :].split())
    assert f"{template.MAX_TEXT // 1024} KiB and {template.MAX_NODES:,} parts" in limits
    assert f"at most {template.MAX_DEPTH} deep" in limits
    assert f"at most {template.MAX_OUTPUT // 1024} KiB" in limits
    assert f"at most {parameters.MAX_VALUE:,} printable" in limits
    assert f"at most {template.MAX_RANGE} items" in PAGE
