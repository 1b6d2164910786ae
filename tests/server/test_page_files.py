"""The files of the page: what is served, with which headers, and that nothing is from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from laguna_ref.server.page import FILES, FOLDER
from tests.server.serving import Local, ended, service_of

TEXTS = sorted(path for path in FOLDER.iterdir() if path.suffix in {".html", ".css", ".js", ".svg"})


@pytest.mark.parametrize("path", sorted(FILES))
def test_each_file_with_a_strict_policy(local: Local, path: str) -> None:
    response = local.request("GET", path)
    assert response.status_code == 200
    assert response.content == FILES[path].read_bytes()
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'; ")
    assert "unsafe" not in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-type"].startswith(
        {".html": "text/html", ".css": "text/css", ".js": "text/javascript",
         ".svg": "image/svg+xml"}[FILES[path].suffix]
    )  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/page/", "/page/__init__.py", "/page/index.html", "/page/..%2f__init__.py"]
)
def test_nothing_else_is_served(local: Local, path: str) -> None:
    assert local.request("GET", path).status_code == 404


def test_the_page_is_shown_without_a_key_and_the_models_are_not() -> None:
    with ended(service_of(api_keys=("one",))) as service:
        local = Local(service)
        statuses = {path: local.request("GET", path).status_code for path in FILES}
        assert set(statuses.values()) == {200}
        assert local.request("GET", "/page/other.js").status_code == 401
        assert local.request("GET", "/v1/models").status_code == 401


def test_models_tell_the_sizes_that_a_grid_of_experts_needs(local: Local) -> None:
    (card,) = local.request("GET", "/v1/models").json()["data"]
    assert card["laguna"] == {
        "num_hidden_layers": 8, "num_experts": 16, "num_experts_per_tok": 2,
    }  # fmt: skip


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_nothing_from_elsewhere_nothing_inline_no_text_as_html(path: Path) -> None:
    text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//\w+\.\w", text)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                 "srcdoc", "DOMParser"):  # fmt: skip
        assert word not in text
    if path.suffix == ".html":
        assert not re.search(r"\son\w+=|<style|style=|<script(?![^>]*\ssrc=)", text)


def test_every_module_that_is_imported_is_served() -> None:
    for path in TEXTS:
        for name in re.findall(r'from "\./([^"]+)"|"page/([^"]+)"', path.read_text("utf-8")):
            assert f"/page/{''.join(name)}" in FILES, f"{path.name}: {name}"
