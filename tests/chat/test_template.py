"""The released prompts byte for byte, and the two layouts in Python against Jinja templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings

from laguna_ref.chat.template import Template
from laguna_ref.errors import InputError, TemplateError
from laguna_ref.load import EMBEDDED
from tests.chat.conversations import DATA, HOSTILE, conversations

RENDERED: dict[str, Any] = json.loads((DATA / "rendered_prompts.json").read_text("utf-8"))
LAYOUTS = ("xs2", "xs2.1")
TURNS_WITH_TAGS = {
    "messages": [
        {"role": "assistant", "reasoning": "", "content": "a\n<think>b\n</think>c</think>\n\nd"},
        {"role": "assistant", "content": " no beginning</think>"},
        {"role": "assistant", "reasoning_content": " \n", "content": "<think></think>"},
        {"role": "system"},
    ]
}


def folder_with(tmp_path: Path, template: str) -> Path:
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def jinja(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """By layout, a Jinja template that renders it."""
    text = (DATA / "chat_template_xs21.jinja").read_text("utf-8")
    xs21 = folder_with(tmp_path_factory.mktemp("xs21"), text)
    return {"xs2": Template.from_folder(EMBEDDED), "xs2.1": Template.from_folder(xs21)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", RENDERED)
def test_renders_as_released(jinja: dict[str, Template], layout: str, case: str) -> None:
    given = {"add_generation_prompt": False} | RENDERED[case]["input"]
    assert Template.builtin(layout).render(**given) == RENDERED[case][layout]
    assert jinja[layout].render(**given) == RENDERED[case][layout]


@settings(max_examples=2000)
@given(given=conversations(HOSTILE))
@example(given=TURNS_WITH_TAGS)
@example(given=TURNS_WITH_TAGS | {"enable_thinking": True})
@example(given=TURNS_WITH_TAGS | {"render_assistant_messages_raw": True})
def test_python_and_jinja_render_the_same(
    jinja: dict[str, Template], given: dict[str, Any]
) -> None:
    for layout in LAYOUTS:
        assert Template.builtin(layout).render(**given) == jinja[layout].render(**given)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_both_refuse_what_they_cannot_render(jinja: dict[str, Template], layout: str) -> None:
    call = {"function": {"name": "f", "arguments": '{"a": 1}'}}
    for message in (
        {"role": "system", "content": [{"type": "text", "text": "a list"}]},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]},
    ):
        for template in (Template.builtin(layout), jinja[layout]):
            with pytest.raises(TemplateError):
                template.render([message])


def test_generation_prompt_is_asked_for_by_default() -> None:
    assert Template.builtin("xs2").render([]).endswith("<assistant>\n</think>")
    assert Template.from_folder(EMBEDDED).render([]).endswith("<assistant>\n</think>")


def test_unknown_layout() -> None:
    with pytest.raises(InputError, match=r"expected xs2 or xs2\.1; found 'xs3'"):
        Template.builtin("xs3")


def test_a_checkpoint_without_a_template_has_that_of_xs2(tmp_path: Path) -> None:
    assert Template.from_folder(tmp_path).layout == "xs2"


@pytest.mark.parametrize("value", ["{{ bos_token }}!", [{"name": "default", "template": "<s>!"}]])
def test_template_of_the_tokenizer_config(tmp_path: Path, value: object) -> None:
    config = {"chat_template": value, "bos_token": {"content": "<s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    template = Template.from_folder(tmp_path)
    assert template.layout == "jinja"
    assert template.render([]) == "<s>!"
    assert Template.from_folder(folder_with(tmp_path, "file first")).render([]) == "file first"


def test_settings_are_those_of_transformers(tmp_path: Path) -> None:
    source = (
        "  {% for tool in tools %}\n{% if loop.index0 == 1 %}{% break %}{% endif %}\n"
        "{{ tool | tojson }}\n{{ tool | tojson(indent=1, sort_keys=True) }}\n"
        "{% endfor %}\n{{ strftime_now('%Y') | length }}"
    )
    template = Template.from_folder(folder_with(tmp_path, source))
    tool = {"b": "<ü>", "a": 1}
    expected = f'{{"b": "<ü>", "a": 1}}\n{json.dumps(tool, indent=1, sort_keys=True)}\n4'
    assert template.render([], tools=[tool, tool]) == expected.replace("\\u00fc", "ü")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n{% if %}", r"chat_template\.jinja:2: not a template"),
        ("{% break %}{% nonsense %}", "not a template"),
    ],
)
def test_what_is_not_a_template(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        Template.from_folder(folder_with(tmp_path, source))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\n{{ raise_exception('roles must alternate') }}", r"jinja:2: roles must alternate$"),
        ("a\nb\n{{ nothing.there }}", r"jinja:3: 'nothing' is undefined"),
        ("{{ 1 + 'a' }}", r"jinja:1: TypeError"),
        ("{{ ''.__class__.__mro__ }}", "jinja:1: .*unsafe"),
        ("{{ messages.append(1) }}", "jinja:1: .*"),
        ("{{ 'a' * 99999999999 }}", "product too large"),
        ("{{ 'a' * 9999 * 9999 }}", "product too large"),
        ("{{ 9 ** 9 ** 9 }}", "power too large"),
        ("{% for a in range(999999999) %}{% endfor %}", "range"),
        ("{% for a in range(99) %}{{ 'a' * 1000000 }}{% endfor %}", "rendered prompt too long"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_is_named_with_its_line(
    tmp_path: Path, source: str, message: str
) -> None:
    template = Template.from_folder(folder_with(tmp_path, source))
    with pytest.raises(TemplateError, match=message) as caught:
        template.render([])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"\xff", "is not UTF-8 \\(byte 0\\)"),
        ("chat_template.jinja", b"a" * (1024 * 1024 + 1), "template too large"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "not a template.*found int"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "rag"}]}', "found list"),
    ],
)
def test_broken_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TemplateError, match=message) as caught:
        Template.from_folder(tmp_path)
    assert name in str(caught.value)
