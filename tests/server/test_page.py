"""The page in a real browser: with the real model, and with one that says what tests need.

Screenshots are kept in the folder that the environment variable ``LAGUNA_ARTEFACTS`` names
(else in pytest's own): ``LAGUNA_ARTEFACTS=shots pytest tests/server/test_page.py``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.browsing import NARROW, SECONDS, WIDE, Visit, browser, shoot
from tests.server.serving import Running, ended, listening, scripted, service_of
from tests.server.test_chat import CALL, SHELL

RESULT = json.dumps({"stdout": "Linux box 6.1 x86_64", "exit_code": "0"})
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
SLOW = "one two three four five six seven eight nine ten " * 10
SAID = {
    RESULT: "Fine.\n</think>\nIt is Linux.",
    "Run uname -a": "The shell knows.\n</think>\nRunning it.\n" + CALL.format("uname -a"),
    "Be evil": f"{EVIL}\n</think>\n{EVIL}\n<tool_call>shell\n<arg_key>{EVIL}</arg_key>\n"
    f"<arg_value>{EVIL}</arg_value>\n</tool_call>",
    "Be slow": f"Hm.\n</think>\n{SLOW}",
    "Break off": "</think><tool_call>shell\n<arg_key>cmd</arg_key>\n<arg_value>ls",
}


def script(prompt: str) -> str:
    asked = max(SAID, key=prompt.rfind)
    if asked == "Be slow":
        time.sleep(0.02)  # for each token
    return SAID[asked]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def real(chromium: Any) -> Iterator[str]:
    """``laguna-ref serve`` in a process of its own."""
    running = Running()
    yield running.url.removesuffix("/v1")
    assert running.terminate() == 0


@pytest.fixture(scope="module")
def talking(chromium: Any) -> Iterator[str]:
    service = service_of(scripted(script), limits={"prefix_cache_bytes": 0})
    with ended(service), listening(service) as url:
        yield url


@pytest.fixture
def visit(chromium: Any) -> Iterator[Callable[..., Visit]]:
    """Opens pages; each must have stayed at home and quiet."""
    opened: list[Visit] = []

    def open_(url: str, **more: Any) -> Visit:
        opened.append(Visit(chromium, url, **more))
        return opened[-1]

    yield open_
    for one in opened:
        one.close()


@pytest.mark.parametrize(
    ("size", "dark"), [(WIDE, False), (WIDE, True), (NARROW, False), (NARROW, True)]
)
def test_hello_and_the_tokens_of_the_answer(
    real: str, visit: Callable[..., Visit], tmp_path: Path, size: tuple[int, int], dark: bool
) -> None:
    at = visit(real, size=size, dark=dark)
    if size == NARROW:
        at["#settings summary"].click()
    at.set(temperature=0, max_tokens=64, seed=1, tools=json.dumps([SHELL]))
    if size == NARROW:
        at["#settings summary"].click()
    at.say("Run uname -a")
    assert at["#model"].inner_text() == "laguna-tiny"
    tokens = traced(real, at.bodies[0])
    assert at[".chip"].count() == len(tokens) > 3
    assert at[".said"].inner_text().strip()

    least = min(range(len(tokens)), key=lambda place: tokens[place]["probability"])
    at[".chip"].nth(least).click()
    shows(at, tokens[least])
    name = f"page-{'wide' if size == WIDE else 'narrow'}-{'dark' if dark else 'light'}"
    assert shoot(at, name, tmp_path).stat().st_size > 10_000
    assert at.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    at.page.keyboard.press("Escape")
    assert at[".experts"].count() == 0


def traced(origin: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The tokens of the same request from another client."""
    text = httpx.post(f"{origin}/v1/chat/completions", json=body, timeout=SECONDS).text
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return [token for one in choices for token in one.get("laguna", {}).get("tokens", ())]


def shows(at: Visit, token: dict[str, Any]) -> None:
    """That the panel says of a token what the API does."""
    assert at[".facts .id"].inner_text() == str(token["id"])
    assert at[".facts .probability"].inner_text() == f"{100 * token['probability']:.1f} %"
    figures = at[".likeliest .figure"].all_inner_texts()
    assert len(figures) == len(token["top"]) == 8
    assert figures[0] == f"{100 * token['top'][0]['probability']:.1f} %"
    cells = [title.text_content() for title in at[".experts .chosen title"].all()]
    assert cells == [
        f"layer {layer}, expert {expert}: {weight:.3f}"
        for layer, chosen in token["experts"].items() for expert, weight in chosen
    ]  # fmt: skip
    assert len(cells) == 7 * 2


def test_keys_go_from_token_to_token(real: str, visit: Callable[..., Visit]) -> None:
    at = visit(real)
    at.set(temperature=0, max_tokens=5)
    at.say("Hello")
    press = at.page.keyboard.press
    at["details.tokens summary"].focus()
    press("Tab")
    assert at[".facts .place"].inner_text().startswith("1 of")
    press("ArrowRight")
    press("ArrowRight")
    assert at[".facts .place"].inner_text().startswith("3 of")
    press("Home")
    assert at[".facts .place"].inner_text().startswith("1 of")
    at[".chip"].nth(1).hover()  # one reached by keys is kept
    assert at[".facts .place"].inner_text().startswith("1 of")
    press("Tab")
    assert at.page.evaluate("document.activeElement.className") != "chip"
    press("Escape")
    at[".chip"].nth(2).hover()
    at[".chip"].nth(1).hover()
    assert at[".facts .place"].inner_text().startswith("2 of")


def test_a_call_its_response_and_the_answer_to_it(
    talking: str, visit: Callable[..., Visit], tmp_path: Path
) -> None:
    at = visit(talking)
    at.set(system="You have a shell.", tools=json.dumps(SHELL), seed=7, temperature=0.5)
    at.say("Run uname -a")
    assert at[".thinking .text"].inner_text() == "The shell knows."
    assert at[".content"].inner_text() == "Running it."
    assert at[".call h3"].inner_text() == "shell"
    assert json.loads(at[".call code"].inner_text()) == {"cmd": "uname -a"}
    shoot(at, "page-call", tmp_path)
    at[".response textarea"].fill(RESULT)
    at[".call button"].click()
    at.ended(2)
    assert at[".content"].nth(1).inner_text() == "It is Linux."
    first, second = at.bodies
    assert first["messages"] == [
        {"role": "system", "content": "You have a shell."},
        {"role": "user", "content": "Run uname -a"},
    ]
    assert (first["seed"], first["temperature"], first["tools"]) == (7, 0.5, [SHELL])
    assert first["chat_template_kwargs"] == {"enable_thinking": True}
    assistant, tool = second["messages"][2:]
    assert assistant["reasoning_content"] == "The shell knows.\n"
    (call,) = assistant["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"cmd": "uname -a"}
    assert tool == {"role": "tool", "tool_call_id": call["id"], "content": RESULT}

    at["#new"].click()
    at.set(thinking=False)
    at.say("Break off")
    assert "cut short" in at[".notes"].inner_text()
    assert at.bodies[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert len(at.bodies[-1]["messages"]) == 2


def test_nothing_a_model_says_becomes_html(talking: str, visit: Callable[..., Visit]) -> None:
    at = visit(talking)
    at.set(tools=json.dumps([SHELL]), max_tokens=2000)
    at.say(f"{EVIL} Be evil")
    for place in (".user .text", ".thinking .text", ".content"):
        assert EVIL in at[place].inner_text(), place
    assert json.loads(at[".call code"].inner_text()) == {EVIL: EVIL}
    at[".chip"].nth(1).click()
    assert at["img, #turns script, #panel script"].count() == 0
    assert at.page.title() == "laguna-ref"


def test_tokens_come_as_they_are_made_and_stop_stops(
    talking: str, visit: Callable[..., Visit]
) -> None:
    at = visit(talking)
    at["#message"].fill("Be slow")
    at["#message"].press("Enter")
    at[".assistant[aria-busy] .chip"].nth(10).wait_for()
    assert at["#send"].is_disabled()
    at["#stop"].click()
    at.ended(1)
    assert "stopped" in at[".notes"].inner_text()
    assert 10 < at[".chip"].count() < 90
    assert SLOW.startswith(at[".content"].inner_text())
    at.say("Run uname -a")
    assert [message["role"] for message in at.bodies[-1]["messages"]] == [
        "user", "assistant", "user",
    ]  # fmt: skip


def test_what_goes_wrong_is_said_and_the_message_kept(
    talking: str, visit: Callable[..., Visit]
) -> None:
    at = visit(talking)
    at.set(tools="[{")
    at["#message"].fill("Run uname -a")
    at["#send"].click()
    assert at["#alert"].inner_text().startswith("Tools: ")
    assert at["#message"].input_value() == "Run uname -a"
    assert not at.bodies
    at.set(tools="", max_tokens=100_000)
    at["#send"].click()
    at["#alert:has-text('context')"].wait_for()
    assert at["#message"].input_value() == "Run uname -a"
    assert at["#turns li"].count() == 0
    at.set(max_tokens=100)
    at["#send"].click()
    at.ended(1)
    assert at["#alert"].is_hidden()
    assert len(at.bodies[-1]["messages"]) == 1
    assert [text for text in at.complaints if "400" in text] == at.complaints
    at.complaints.clear()  # the browser's own line about that answer


def test_a_key_is_asked_for(chromium: Any, visit: Callable[..., Visit]) -> None:
    with ended(service_of(api_keys=("sesame",))) as service, listening(service) as url:
        at = visit(url)
        at["#key"].fill("wrong")
        at["#unlock button"].click()
        at["#alert:has-text('API key')"].wait_for()
        at["#key"].fill("sesame")
        at["#unlock button"].click()
        at["#unlock"].wait_for(state="hidden")
        at.set(max_tokens=2)
        at.say("Hello")
        assert at[".chip"].count() >= 1
        assert [text for text in at.complaints if "401" in text] == at.complaints
        at.complaints.clear()


@pytest.mark.parametrize(("layers", "experts", "chosen"), [(8, 16, 2), (40, 256, 8), (3, 7, 1)])
def test_experts_of_any_number(
    talking: str, visit: Callable[..., Visit], tmp_path: Path,
    layers: int, experts: int, chosen: int,
) -> None:  # fmt: skip
    routing = {
        str(layer): [[(layer * 37 + k * 29) % experts, 0.5 / (k + 1)] for k in range(chosen)]
        for layer in range(1, layers)
    }
    at = visit(talking)
    draw = """async ([routing, sizes]) => {
        const { expertGrid, expertTable } = await import("/page/experts.js");
        const panel = document.getElementById("panel");
        panel.replaceChildren(expertGrid(routing, sizes), expertTable(routing));
        const { width, height } = panel.querySelector("svg").viewBox.baseVal;
        return [...panel.querySelectorAll(".chosen")].every((cell) => {
            const box = cell.getBBox();
            return box.x >= 0 && box.x + box.width <= width + 2 && box.y + box.height <= height;
        });
    }"""
    assert at.page.evaluate(draw, [routing, {"num_hidden_layers": layers, "num_experts": experts}])
    assert at[".experts .chosen"].count() == (layers - 1) * chosen
    assert at[".expert-table tbody tr"].count() == layers - 1
    assert at[".experts .dense"].count() == 1
    shoot(at, f"experts-{layers}-{experts}", tmp_path)
