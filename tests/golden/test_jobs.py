"""Making a folder: what is complete stays, another's is refused, interrupts cost nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from laguna_ref.golden import Case, GoldenError, jobs, read_golden
from laguna_ref.golden.jobs import Job, ModelSpec, jobs_for, run
from laguna_ref.golden.verify import golden_files, verify_file
from tests.golden.models import TOKENS, case, written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("golden") / "model")


def spec(folder: Path, **changes: Any) -> ModelSpec:
    return replace(ModelSpec(str(folder), engine="numpy"), **changes)


def job(folder: Path, out: Path, one: Case | None = None, **changes: Any) -> Job:
    (found,) = jobs_for(spec(folder), [one or case()], out)
    return replace(found, **changes)


def test_a_complete_case_is_not_computed_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(job(folder, tmp_path / "new" / "folder"))
    assert (first.name, first.tokens, first.computed) == ("plain", 9, True)
    monkeypatch.setattr(jobs, "make", None)
    again = run(job(folder, tmp_path / "new" / "folder"))
    assert not again.computed
    assert again.path == first.path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case": case(tokens=(1, *TOKENS[1:]))}, "tokens: holds another golden of this name"),
        ({"case": case(chunks=(8, 1))}, r"chunks: holds another.*expected \(8, 1\); found \(9,\)"),
        ({"case": case(points=())}, "points: holds another"),
        ({"case": case(kv_cache="float")}, "kv_cache"),
        ({"numerics": "float32"}, "numerics: holds another.*expected float32; found float64"),
        ({"dequant": "bf16"}, "dequant: holds another"),
        ({"kv_cache_skip_layers": ("0",)}, "kv_cache_skip_layers: holds another"),
    ],
)
def test_another_golden_of_the_name_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    first = run(job(folder, tmp_path))
    before = Path(first.path).read_bytes()
    other = job(folder, tmp_path, changes.pop("case", None))
    other = replace(other, spec=replace(other.spec, **changes))
    with pytest.raises(GoldenError, match=message):
        run(other)
    assert Path(first.path).read_bytes() == before
    assert run(replace(other, overwrite=True)).computed
    assert Path(first.path).read_bytes() != before


def test_another_checkpoints_and_a_damaged_golden_are_refused(folder: Path, tmp_path: Path) -> None:
    first = Path(run(job(folder, tmp_path)).path)
    with pytest.raises(GoldenError, match="made from other weights"):
        run(job(written(tmp_path / "other", seed=1), tmp_path))
    first.write_bytes(first.read_bytes()[:-1])
    with pytest.raises(GoldenError, match=r"does not end with its last tensor|outside the file"):
        run(job(folder, tmp_path))
    assert run(job(folder, tmp_path, overwrite=True)).computed


def test_an_interrupted_case_is_begun_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "write_golden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(job(folder, tmp_path))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert run(job(folder, tmp_path)).computed


def test_a_golden_without_the_budget_asked_for_is_not_complete(
    folder: Path, tmp_path: Path
) -> None:
    def budget(*_: Any) -> Any:
        return {"scale": np.ones(1)}, {"runs": 1}

    assert run(job(folder, tmp_path)).computed
    assert run(job(folder, tmp_path, budget=budget)).computed
    assert not run(job(folder, tmp_path, budget=budget)).computed
    assert not run(job(folder, tmp_path)).computed
    assert read_golden(tmp_path / "plain.safetensors").budget_meta == {"runs": 1}


def test_logits_kept_otherwise_are_not_complete(folder: Path, tmp_path: Path) -> None:
    assert run(job(folder, tmp_path)).computed
    assert run(job(folder, tmp_path, full_logits_up_to=0)).computed
    assert not run(job(folder, tmp_path, full_logits_up_to=0)).computed


def test_a_folder_that_cannot_be_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GoldenError, match="cannot be made"):
        job(folder, tmp_path / "file" / "out")


@pytest.mark.parametrize("full_logits_up_to", [0, 40])
@pytest.mark.parametrize("engine", ["numba", "numpy"])
def test_a_golden_verifies(
    folder: Path, tmp_path: Path, engine: str, full_logits_up_to: int
) -> None:
    one = job(folder, tmp_path, case(chunks=(5, 4)), full_logits_up_to=full_logits_up_to)
    path = Path(run(replace(one, spec=spec(folder, engine=engine, numerics="bfloat16"))).path)
    found = verify_file(path, spec(folder))
    assert found.differences == ()
    assert found.found == found.expected


def test_what_differs_is_listed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(run(job(folder, tmp_path)).path)
    golden = read_golden(path)
    changed = golden.points["model.norm"].copy()
    changed[3, 5] += 0.25
    monkeypatch.setattr(
        "laguna_ref.golden.verify.make",
        lambda *_, **__: replace(golden, points={**golden.points, "model.norm": changed}),
    )
    found = verify_file(path, spec(folder))
    assert found.found != found.expected
    (difference,) = found.differences
    assert (difference.name, difference.elements, difference.differing) == ("model.norm", 216, 1)
    assert difference.greatest == 0.25
    monkeypatch.setattr(
        "laguna_ref.golden.verify.make", lambda *_, **__: replace(golden, points={})
    )
    missing = verify_file(path, spec(folder)).differences
    assert [d.name for d in missing] == list(golden.points)
    assert {d.greatest for d in missing} == {None}


def test_a_replaced_engines_golden_cannot_be_verified(folder: Path, tmp_path: Path) -> None:
    from laguna_ref.golden import make, write_golden
    from tests.golden.models import loaded
    from tests.small import replaced

    write_golden(tmp_path / "x.safetensors", make(replaced(loaded()), case()))
    with pytest.raises(GoldenError, match="made by an engine that is not ours to run"):
        verify_file(tmp_path / "x.safetensors", spec(folder))


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors", ".c.safetensors.x.tmp", ".d.safetensors", "e"):
        (tmp_path / name).write_text("")
    assert [path.name for path in golden_files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(GoldenError, match="no golden files in this folder"):
        golden_files(tmp_path / "empty")
