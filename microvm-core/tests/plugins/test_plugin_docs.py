"""Every hook is documented with its exact signature, tested, and shown in examples that load."""

import ast
import inspect
import re
import textwrap
import types
from pathlib import Path

import pytest

from microvm import hookspecs
from microvm.plugins import hookimpl
from microvm.testing.plugins import plugin_manager

HOOKS = {
    name: function
    for name, function in vars(hookspecs).items()
    if inspect.isfunction(function) and name.startswith("microvm_")
}
REPOSITORY = Path(__file__).parents[3]
REFERENCE = REPOSITORY / "docs" / "reference" / "hooks.md"
each_hook = pytest.mark.parametrize("name", HOOKS)


def signature(name):
    return f"{name}({', '.join(inspect.signature(HOOKS[name]).parameters)})"


def section(name):
    """The text between the hook's heading and the next."""
    _, heading, rest = REFERENCE.read_text().partition(f"\n## {signature(name)}\n")
    assert heading, f"docs/reference/hooks.md has no heading '## {signature(name)}'"
    return rest.partition("\n## ")[0]


def test_there_are_hooks():
    assert len(HOOKS) == 11


@each_hook
def test_every_hook_is_documented_under_its_exact_signature_with_every_argument(name):
    text = section(name)
    for argument in inspect.signature(HOOKS[name]).parameters:
        assert f"\n* `{argument}` — " in text
    assert "\nReturns " in text


def test_the_reference_documents_no_hook_that_does_not_exist():
    headings = re.findall(r"^## (.*)$", REFERENCE.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(map(signature, HOOKS))


@each_hook
def test_every_hook_is_in_the_references_table_with_a_link_that_leads_to_its_heading(name):
    anchor = re.sub(r"[^\w\- ]", "", signature(name)).replace(" ", "-")
    assert f"| [`{name}`](#{anchor}) |" in REFERENCE.read_text()


def test_every_hook_is_mentioned_by_a_test_of_its_own():
    tests = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_hook_")
    }
    assert {name for name in HOOKS if not any(name in test for test in tests)} == set()


@each_hook
def test_every_hooks_docstring_names_each_argument(name):
    text = inspect.getdoc(HOOKS[name])
    for argument in inspect.signature(HOOKS[name]).parameters:
        assert re.search(rf"^    {argument}: ", text, re.MULTILINE), argument


def documented_example(name):
    (code,) = re.findall(r"```python\n(.*?)```", section(name), re.DOTALL)
    return code


def docstring_example(name):
    return textwrap.dedent(inspect.getdoc(HOOKS[name]).partition("Example:\n")[2])


@each_hook
@pytest.mark.parametrize("example", [documented_example, docstring_example])
def test_every_example_can_be_pasted_into_a_plugin_and_loads(name, example):
    module = types.ModuleType("example")
    exec(compile(example(name), name, "exec"), vars(module))
    kind = name.removeprefix("microvm_register_")
    if kind == name:
        manager = plugin_manager(plugins={"device/example": module})
    else:
        record = getattr(module, name)()
        manager = plugin_manager(plugins={f"{kind}/{record.name}": module})
    (status,) = manager.examine()
    assert status.state == "ok", status.detail
    assert kind != name or status.hooks == (name,)


def test_the_marker_of_a_plugin_is_the_one_that_is_documented():
    @hookimpl
    def function():
        pass

    assert function.microvm_impl["optionalhook"] is False
