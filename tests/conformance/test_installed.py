"""Peers that are not there, and what a report says of those that are."""

from __future__ import annotations

import pytest

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.installed import effective_config, require, versions
from laguna_ref.conformance.backend import BackendError


def test_an_absent_peer_is_one_line_that_says_what_to_install() -> None:
    with pytest.raises(BackendError, match=r"Engine is not .* 'laguna-ref\[it\]'.* no_such_module"):
        require("Engine", ("json", "no_such_module"), "it")
    require("Engine", ("json",), "it")


@pytest.mark.parametrize(
    ("name", "needs"), [("transformers", "torch"), ("mlx", "mlx_lm"), ("llamacpp", "llama_cpp")]
)
def test_backends_ask_for_their_peer_before_anything_else(
    name: str, needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "laguna_ref.conformance.adapters.installed.find_spec",
        lambda module: None if module == needs else object(),
    )
    with pytest.raises(BackendError, match=f"no module {needs}"):
        opener(name)


@pytest.mark.parametrize("name", ["transformers:gpu", "mlx:cuda", "llamacpp:q4_0"])
def test_bad_arguments_are_refused_with_or_without_the_peer(name: str) -> None:
    with pytest.raises(BackendError, match=name.partition(":")[2]):
        opener(name)


def test_versions_leave_out_what_is_absent() -> None:
    assert versions("numpy", "no-such-package").startswith("numpy ")
    assert "no-such" not in versions("numpy", "no-such-package")


def test_what_a_peer_does_not_read_is_listed_with_its_path() -> None:
    raw = {"a": 1, "rope": {"full": {"theta": 2.0, "factor": 3.0}}, "use_cache": True}
    used = {"a": 1, "rope": {"full": {"theta": 2.0}}, "own": 4}
    found = effective_config(raw, used, {"x": 5})
    assert found == used | {"not read": ["rope.full.factor"], "as computed": {"x": 5}}
