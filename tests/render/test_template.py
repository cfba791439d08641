"""The template language: what it gives, what it refuses, and that values never leave their place."""

import contextlib
import json
import re
import string
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vmtenancy.errors import Code, VmtError
from vmtenancy.render.parameters import Parameter
from vmtenancy.render.template import MAX_OUTPUT, MAX_RANGE, MAX_TEXT, Template, VmFacts

VM = VmFacts("trainer", "vision", 4, "8Gi", 2, disks=("root", "data"), networks=("default",))
TEXT = Parameter(name="text", type="string", description="any line of text", default="plain")
COUNT = Parameter(name="count", type="integer", description="a number", default="3")
FLAG = Parameter(name="flag", type="boolean", description="yes or no", default="true")


def render(text: str, /, **parameters: str) -> dict[str, Any]:
    return Template("t", "a template", (TEXT, COUNT, FLAG), text).render(parameters, VM)


def refusal(text: str, /, **parameters: str) -> str:
    started = time.monotonic()
    with pytest.raises(VmtError) as caught:
        render(text, **parameters)
    assert time.monotonic() - started < 10, "refusing took long"
    assert {problem.code for problem in caught.value.problems} == {Code.TEMPLATE}
    return str(caught.value)


def test_values_keep_their_types() -> None:
    found = render(
        "a: {{ text }}\nb: {{ count }}\nc: {{ flag }}\nd: {{ vm.cores }}\ne: {{ vm.memory }}", text="yes"
    )
    assert found == {"a": "yes", "b": 3, "c": True, "d": 4, "e": "8Gi"}


def test_conditions_loops_and_text() -> None:
    text = """
disks:
{% for name in vm.disks %}
- name: {{ name }}
  first: {{ loop.first }}
{% endfor %}
{% if count > 2 and flag %}
big: "x-{{ text }}-{{ count + 1 }}"
{% else %}
small: true
{% endif %}
list: [{% for i in range(count) %}{{ "d" ~ i }}, {% endfor %}]
"""
    assert render(text) == {
        "disks": [{"name": "root", "first": True}, {"name": "data", "first": False}],
        "big": "x-plain-4",
        "list": ["d0", "d1", "d2"],
    }
    assert render(text, count="1")["small"] is True


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{{ text.__class__ }}", r"\.__class__ can not be read"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "nothing can be called|can not be read"),
        ("{{ vm.__class__ }}", r"\.__class__ can not be read"),
        ("{{ vm['name'] }}", "Getitem is not part"),
        ("{{ text.format(vm) }}", "nothing can be called"),
        ("{{ range.__globals__ }}", r"\.__globals__ can not be read"),
        ("{{ range(stop=3) }}", "nothing can be called"),
        ("{{ range(**vm) }}", "is no parameter"),
        ("{{ range(*[3]) }}", "has to give text"),
        ("{{ lipsum() }}", "nothing can be called"),
        ("{{ cycler }}", "'cycler' is no parameter"),
        ("{{ self }}", "'self' is no parameter"),
        ("{{ _placed }}", "'_placed' is no parameter"),
        ("{{ vm }}", "'vm' is no parameter"),
        ("{{ loop.index }}", r"\.index can not be read"),
        ("{{ text | attr('__class__') }}", "No filter named 'attr'"),
        ("{{ text | replace('a', 'b') }}", "No filter named 'replace'"),
        ("{{ text is defined }}", "Test is not part|No test"),
        ("{% set a = text %}", "Assign is not part"),
        ("{% macro m() %}{% endmacro %}", "Macro is not part"),
        ("{% include 'x' %}", "Include is not part"),
        ("{% import 'x' as x %}", "Import is not part"),
        ("{% extends 'x' %}", "Extends is not part"),
        ("{% block b %}{% endblock %}", "Block is not part"),
        ("{% filter upper %}x{% endfilter %}", "FilterBlock is not part"),
        ("{% for i in [1] %}{% for j in [1] %}{% endfor %}{% endfor %}", "a loop inside a loop"),
        ("{% for i in [[1]] recursive %}{{ loop.length }}{% endfor %}", "a loop inside a loop"),
        ("{% for a, b in [[1, 2]] %}{% endfor %}", "one variable"),
        ("{% for vm in [1] %}{% endfor %}", "one variable"),
        ("a: {{ 'a' * 10**9 }}", "Mul is not part"),
        ("a: {{ 10**9 }}", "Pow is not part"),
        ("a: {{ '%1000000000d' % 1 }}", "Mod is not part"),
        ("a: {{ 7 // 2 }}", "FloorDiv is not part"),
        (f"a: [{{% for i in range({MAX_RANGE + 1}) %}}1,{{% endfor %}}]", "a range has at most"),
        ("a: [{% for i in range(99999999999999999999999) %}1,{% endfor %}]", "a range has at most"),
        ("a: {{ " + "9" * 5000 + " }}", "."),
        ("a: {{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "nested too deep"),
        ("a: {{ " + "not " * 200 + "flag }}", "nested more than|nested too deep"),
        ("{% if flag %}" * 60 + "{% endif %}" * 60, "nested more than"),
        ("a: {{ " + " ~ ".join(["text"] * 3000) + " }}", "more than 2000 parts"),
        ("x" * (MAX_TEXT + 1), "longer than"),
        ("a: \ue0000\ue001", "private-use"),
        ("{{ missing }}", "'missing' is no parameter"),
        ("{{ text", "unexpected end of template"),
        ("a: {{ range(3) }}", "has to give text"),
        ("a: {{ vm.disks }}", "has to give text"),
        ("a: {{ text + count }}", "."),
        ("a: {{ -text }}", "."),
        ("- a", "has to render to a mapping"),
        ("", "has to render to a mapping"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a: &x [1]\nb: *x", "anchors and aliases"),
        ("a: 1\na: 2", "given twice"),
        ("{{ text }}: 1\nplain: 2", "given twice"),
        ("a: !!python/object/apply:os.system [id]", "tags are not allowed"),
        ("a: .inf", "finite"),
        ("1: 2", "must be a string"),
        ("a: " + "[" * 60 + "]" * 60, "nested more than"),
    ],
)
def test_refused(text: str, why: str) -> None:
    assert re.search(why, refusal(text)), refusal(text)


def test_the_output_is_bounded() -> None:
    piece = "z" * (MAX_TEXT - 100)
    assert "longer than" in refusal("a: [{% for i in range(100) %}" + piece + "{% endfor %}]")
    many = "a: [{% for i in range(128) %}" + "{{ text ~ text ~ text }}," * 100 + "{% endfor %}]"
    assert f"longer than {MAX_OUTPUT}" in refusal(many, text="y" * 1024)


def test_all_that_the_language_allows_ends_quickly() -> None:
    """The most work that the bounds allow: a long expression in a loop over a long list, with no output."""
    loop = (
        "{% for i in ["
        + "0," * 900
        + "] %}{% if "
        + " ~ ".join(["text"] * 900)
        + " == text %}x{% endif %}{% endfor %}"
    )
    started = time.monotonic()
    assert render(loop + "a: 1", text="y" * 1024) == {"a": 1}
    assert time.monotonic() - started < 20


line = st.text(
    st.characters(blacklist_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")), max_size=60
).filter(str.isprintable)
hostile = st.sampled_from(
    [
        'a" evil: 1',
        '", evil: 1, x: "',
        "'",
        "}}",
        "{{ vm }}",
        "# comment",
        "---",
        "- a",
        "*alias",
        "&anchor a",
        "!!int 3",
        "null",
        "1e3",
        "|",
        "\\",
        '\\\\" ',
        "$(reboot)",
        "`id`",
        "a: b",
        "%",
        "@",
        "😀",
    ]
)


@given(st.one_of(line, hostile))
def test_a_value_is_only_ever_a_value(value: str) -> None:
    text = 'plain: {{ text }}\nquoted: "{{ text }}"\nflow: {a: {{ text }}, b: [{{ text }}]}\nafter: end'
    flow = {"a": value, "b": [value]}
    assert render(text, text=value) == {"plain": value, "quoted": value, "flow": flow, "after": "end"}


@given(st.one_of(line, hostile))
def test_a_value_in_a_nested_document_stays_there(value: str) -> None:
    found = render("userData: |\n  #cloud-config\n  name: {{ text | tojson }}\n  after: end", text=value)
    assert yaml.safe_load(found["userData"]) == {"name": value, "after": "end"}
    assert json.loads(found["userData"].splitlines()[1].removeprefix("name: ")) == value


@given(st.one_of(line, hostile))
def test_a_value_inside_text_is_a_plain_word_or_refused(value: str) -> None:
    text = "script: |\n  install driver-{{ text }} now"
    if set(value) <= set(string.ascii_letters + string.digits + "._/@+-"):
        assert render(text, text=value)["script"] == f"install driver-{value} now"
    else:
        assert "needs the filter tojson" in refusal(text, text=value)


FRAGMENTS = (
    *("{{", "}}", "{%", "%}", "{#", "#}", "for i in", "if", "endif", "endfor", "set x =", "macro m()"),
    *("text", "vm.", "vm", "range", "__class__", "a: ", "- ", "1", " ", "\n"),
    *("|", "(", ")", "[", "]", ".", "~", "*", "'", '"'),
)


@settings(max_examples=300)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25))
def test_any_text_renders_to_a_mapping_or_is_refused_with_our_error(pieces: list[str]) -> None:
    with contextlib.suppress(VmtError):
        json.dumps(render("".join(pieces)), allow_nan=False)


@pytest.mark.parametrize(
    ("parameters", "path", "why"),
    [
        ({"other": "1"}, "spec.template.parameters.other", "one of text, count, flag"),
        ({"count": "three"}, "spec.template.parameters.count", "a whole number"),
        ({"count": "9" * 19}, "spec.template.parameters.count", "a whole number"),
        ({"flag": "yes"}, "spec.template.parameters.flag", "true or false"),
        ({"text": "a\nb"}, "spec.template.parameters.text", "one line of printable text"),
        ({"text": "a\u2028b"}, "spec.template.parameters.text", "one line of printable text"),
        ({"text": "\ue0000\ue001"}, "spec.template.parameters.text", "one line of printable text"),
        ({"text": "x" * 1025}, "spec.template.parameters.text", "one line of printable text"),
    ],
)
def test_refused_parameters(parameters: dict[str, str], path: str, why: str) -> None:
    with pytest.raises(VmtError) as caught:
        render("a: 1", **parameters)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert why in problem.expected


def test_every_wrong_parameter_is_named_and_a_missing_one_too() -> None:
    driver = Parameter(name="driver", type="string", description="branch of the driver", pattern="[0-9]{3}")
    template = Template("t", "a template", (driver, COUNT), "a: {{ driver }}")
    with pytest.raises(VmtError) as caught:
        template.render({"count": "x", "extra": "1"}, VM)
    assert [problem.path.rsplit(".", 1)[1] for problem in caught.value.problems] == [
        "extra",
        "driver",
        "count",
    ]
    with pytest.raises(VmtError, match="text that matches"):
        template.render({"driver": "5800"}, VM)
    assert template.render({"driver": "580"}, VM) == {"a": "580"}
