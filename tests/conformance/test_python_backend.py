"""``python:MODULE:FACTORY``: what is found, and what is refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.backend import Backend, BackendError, can
from laguna_ref.load import EMBEDDED

HERE = "tests.conformance.factories"


def opened(factory: str) -> Backend:
    return opener(f"python:{HERE}:{factory}")(EMBEDDED)


def test_a_factory_is_given_the_folder() -> None:
    backend = opened("good")
    assert backend.name == "good"
    assert can(backend, "trace")
    assert backend.logits([2, 381]).shape == (2, 3072)
    assert backend.precision == "float32"  # type: ignore[attr-defined]
    assert not backend.serves_one_model  # type: ignore[attr-defined]


def test_a_factory_of_no_argument_serves_one_model() -> None:
    assert opened("of_no_argument").serves_one_model  # type: ignore[attr-defined]


def test_the_current_folder_is_importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_port_in_a_folder.py").write_text(
        "from tests.conformance.factories import good\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert opener("python:my_port_in_a_folder:good")(EMBEDDED).name == "good"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("python", "two names"),
        ("python:os", "two names"),
        ("python:no_such_module_of_mine:make", "no such module"),
        (f"python:{HERE}:nothing", "no such function"),
        (f"python:{HERE}:not_callable", "cannot be called"),
    ],
)
def test_what_cannot_be_found_is_said(name: str, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        opener(name)


def test_a_module_that_imports_what_is_not_there_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import absent_library\n")
    (tmp_path / "fails_itself.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BackendError, match="absent_library, which is not installed"):
        opener("python:needs_more:make")
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        opener("python:fails_itself:make")


@pytest.mark.parametrize(
    ("factory", "said"),
    [("without_logits", "logits is missing"), ("without_its_trace", "trace is missing")],
)
def test_an_object_that_is_no_backend_is_refused(factory: str, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        opened(factory)


@pytest.mark.parametrize(
    ("factory", "said"),
    [("transposed", r"wrong shape; expected \[2, 3072\]"), ("of_text", "no real numbers")],
)
def test_logits_are_looked_at(factory: str, said: str) -> None:
    with pytest.raises(BackendError, match=said):
        opened(factory).logits([2, 381])


@pytest.mark.parametrize(
    ("factory", "said"),
    [("that_raises", "RuntimeError: no licence"), ("that_exits", "factory failed: SystemExit: 0")],
)
def test_a_factory_that_fails_is_one_line(factory: str, said: str) -> None:
    with pytest.raises(BackendError, match=said) as caught:
        opened(factory)
    assert f"python:{HERE}:{factory}" in str(caught.value)


def test_a_module_that_ends_the_program_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_script.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(BackendError, match="cannot be imported: SystemExit: 0"):
        opener("python:a_script:make")


def test_a_port_that_ends_the_program_has_failed_to_answer() -> None:
    backend = opened("exits_when_asked")
    with pytest.raises(BackendError, match=r"sys.exit\(0\)"):
        backend.logits([2, 381])
    with pytest.raises(BackendError, match=r"sys.exit\(0\)"):
        backend.batch([[2, 381]])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("factory", "said"),
    [("tracing_none", "found NoneType"), ("tracing_a_number", r"wrong shape.*found \[\]")],
)
def test_every_value_of_a_trace_is_looked_at(factory: str, said: str) -> None:
    with pytest.raises(BackendError, match=f"model.norm: .*{said}"):
        opened(factory).trace([2, 381], ["model.norm"])  # type: ignore[attr-defined]


def test_logits_pass_through_unchanged() -> None:
    tokens = [2, 381, 694]
    assert np.array_equal(opened("of_logits").logits(tokens), opened("good").logits(tokens))
