"""The oracle keeps every law, exact or not; what is not applicable never passes."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import run as run_process
from typing import Any

import numpy as np
import pytest

import laguna_ref
from laguna_ref.conformance.adapters import opener
from laguna_ref.conformance.adapters.oracle_backend import OracleBackend
from laguna_ref.conformance.backend import Backend, BackendError
from laguna_ref.conformance.laws import LAWS, LawResult, by_name, replay, run
from laguna_ref.conformance.laws.case import Built
from laguna_ref.conformance.laws.example import Example, from_blob, to_blob
from laguna_ref.conformance.laws.legal import LegalBackend
from laguna_ref.conformance.laws.weights import TRAITS, pack, unpack
from laguna_ref.conformance.precision import PRESETS
from laguna_ref.errors import InputError
from tests.conformance import factories
from tests.meta.law_mutants import windowed

NAMES = [law.name for law in LAWS]


def plain(folder: Path) -> Backend:
    """The plain engine: correct, and not exact."""
    return OracleBackend(laguna_ref.load(folder, engine="numpy"))


def in_bfloat16(folder: Path) -> Backend:
    return OracleBackend(laguna_ref.load(folder, engine="numpy", numerics="bfloat16"))


def one(*arguments: Any, **options: Any) -> LawResult:
    (result,) = run(*arguments, **({"examples": 5, "seed": 0} | options))
    return result


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_keeps_it_in_bits(name: str) -> None:
    result = one(opener("oracle"), examples=24, names=[name])
    assert (result.status, result.examples) == ("holds", 24), result


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opened", [plain, in_bfloat16])
def test_a_legal_backend_keeps_it_within_budget(name: str, opened: Any) -> None:
    result = one(opened, examples=6, seed=1, names=[name])
    assert (result.status, result.examples) == ("holds", 6), result


@pytest.mark.parametrize("name", ["sliding-reach", "shifted-positions", "agreement"])
@pytest.mark.parametrize("numerics", ["float64", "bfloat16"])
def test_the_oracle_in_other_numerics_keeps_it(name: str, numerics: str) -> None:
    result = one(opener(f"oracle:{numerics}"), examples=10, names=[name])
    assert (result.status, result.examples) == ("holds", 10), result


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_keeps_it_in_two_thousand_examples(name: str) -> None:
    result = one(opener("oracle"), examples=2000, seed=2, names=[name])
    assert (result.status, result.examples) == ("holds", 2000), result


class OneModel:
    """What an endpoint is: logits of one model, and only the likeliest of them."""

    name, capabilities, logits_kind = "one model", (), "logprobs"

    def __init__(self, model: laguna_ref.Laguna) -> None:
        self._model = model

    def logits(self, tokens: Sequence[int]) -> Any:
        logits = np.array(self._model(tokens), np.float32)
        # Log-probabilities: off by one constant a token.
        logits -= 3.0
        logits[logits < np.sort(logits, axis=1)[:, -5:-4]] = np.nan
        return logits


@pytest.fixture(scope="module")
def tiny() -> laguna_ref.Laguna:
    return laguna_ref.load(engine="numpy")


def statuses(results: Sequence[LawResult]) -> Mapping[str, str]:
    return {result.law: result.status for result in results}


def test_a_given_model_gets_the_laws_of_prompts(tiny: laguna_ref.Laguna) -> None:
    found = statuses(run(None, OneModel(tiny), examples=2, seed=0, oracle=tiny))
    holds = {name for name, status in found.items() if status == "holds"}
    assert holds == {"causality", "repeatable"}
    assert set(found.values()) == {"holds", "not applicable"}


def test_of_a_given_model_that_is_exact_bits_are_compared() -> None:
    backend = OracleBackend(laguna_ref.load(), exact=True)
    found = statuses(run(None, backend, examples=2, seed=0))
    given = {law.name for law in LAWS if law.given}
    assert {name for name, status in found.items() if status == "holds"} == given


def test_without_an_oracle_noise_is_unknown(tiny: laguna_ref.Laguna) -> None:
    result = one(None, OneModel(tiny), names=["causality"])
    assert result.status == "not applicable"
    assert "oracle" in result.detail


def test_a_given_model_can_break_a_law(tiny: laguna_ref.Laguna) -> None:
    class Noisy(OneModel):
        calls = 0

        def logits(self, tokens: Sequence[int]) -> Any:
            Noisy.calls += 1
            return super().logits(tokens) * (1 + 0.01 * Noisy.calls)

    result = one(None, Noisy(tiny), examples=2, names=["repeatable"], oracle=tiny)
    assert result.status == "broken", result


def test_what_a_backend_cannot_do_is_not_applicable() -> None:
    def opened(folder: Path) -> Backend:
        return OneModel(laguna_ref.load(folder, engine="numpy"))

    for law in LAWS:
        if law.needs:
            result = one(opened, names=[law.name])
            assert (result.status, result.examples) == ("not applicable", 0)
            assert law.needs[0] in result.detail


def test_a_backend_that_fails_neither_keeps_nor_breaks_nor_is_excused() -> None:
    class Failing(OneModel):
        def logits(self, tokens: Sequence[int]) -> Any:
            raise BackendError("gone", found="connection reset")

    def opened(folder: Path) -> Backend:
        return Failing(laguna_ref.load(folder))

    result = one(opened, names=["causality"])
    assert result.status == "failed"
    assert "connection reset" in result.detail


def test_a_capability_that_is_declared_and_fails_is_a_failure() -> None:
    found = statuses(run(factories.crashing, examples=2, seed=0, names=["chunks", "batched"]))
    assert found == {"chunks": "failed", "batched": "failed"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["repeatable", "causality", "agreement"])
def test_logits_that_are_no_numbers_break_a_law(name: str, value: float) -> None:
    """Of a backend that does not say it shows a few tokens alone; a single one is enough."""

    class Holey(OracleBackend):
        def logits(self, tokens: Any, **options: Any) -> Any:
            found = np.array(super().logits(tokens, **options))
            found[-1, 3] = value
            return found

    def opened(folder: Path) -> Backend:
        return Holey(laguna_ref.load(folder, engine="numpy"))

    result = one(opened, examples=2, names=[name])
    assert result.status == "broken", result
    assert "not a number" in result.detail


@pytest.mark.parametrize("said", [("precision", "bfloat16"), ("oracle", {"kv_cache": "float"})])
def test_other_kinds_of_cache_have_no_laws_of_fp8(said: tuple[str, Any]) -> None:
    def opened(folder: Path) -> Backend:
        backend = OracleBackend(laguna_ref.load(folder, kv_cache="float"))
        setattr(backend, *said)
        return backend

    assert one(opened, names=["key-scale"]).status == "not applicable"
    assert one(opened, names=["agreement"]).status == "holds"


def test_a_backend_may_refuse_an_fp8_cache() -> None:
    """Its other laws are put all the same; those of the cache are not applicable."""

    def opened(folder: Path) -> Backend:
        model = laguna_ref.load(folder)
        if model.config.kv_cache_fp8:
            raise RuntimeError("no such cache")
        return OracleBackend(model, exact=True)

    found = statuses(run(opened, examples=4, seed=0, names=["chunks", "key-scale"]))
    assert found == {"chunks": "holds", "key-scale": "not applicable"}


def test_models_that_a_backend_refuses_are_not_judged() -> None:
    def opened(folder: Path) -> Backend:
        model = laguna_ref.load(folder)
        if model.config.layers[0].gate_width > model.config.layers[0].num_heads:
            raise BackendError("per-head gates alone")
        return OracleBackend(model, exact=True)

    result = one(opened, examples=12, names=["chunks"])
    assert (result.status, result.examples) == ("holds", 12), result
    assert "per-head gates alone" in result.detail


def test_of_a_trace_point_that_is_not_there_nothing_is_claimed() -> None:
    class Fewer(OracleBackend):
        def trace(self, tokens: Any, points: Any, **options: Any) -> Any:
            found = super().trace(tokens, points, **options)
            return {name: value for name, value in found.items() if "v_cached" not in name}

    def opened(folder: Path) -> Backend:
        return Fewer(laguna_ref.load(folder))

    result = one(opened, names=["first-token"])
    assert result.status == "not applicable"
    assert "v_cached" in result.detail


def test_a_failure_is_saved_with_its_model(tmp_path: Path) -> None:
    def opened(folder: Path) -> Backend:
        return windowed(1)(laguna_ref.load(folder))

    result = one(opened, examples=40, names=["sliding-reach"], examples_database=tmp_path)
    assert result.status == "broken"
    folder = Path(result.reproduce)
    assert folder.parent == tmp_path
    saved = json.loads((folder / "example.json").read_text("utf-8"))
    model = laguna_ref.load(folder / "models" / "drawn")
    assert np.isfinite(model(saved["example"]["tokens"])).all()
    assert replay(opened, None, result.reproduce).status == "broken"
    assert replay(opener("oracle"), None, result.reproduce).status == "holds"


def test_an_example_at_which_the_backend_fails_is_a_failure_again(tiny: laguna_ref.Laguna) -> None:
    class Failing(OneModel):
        def logits(self, tokens: Sequence[int]) -> Any:
            raise RuntimeError("connection reset")

    word = to_blob("causality", Example({}, 0, (), (1, 2, 3), {"cut": 1}))
    assert replay(None, OneModel(tiny), word, oracle=tiny).status == "holds"
    failed = replay(None, Failing(tiny), word, oracle=tiny)
    assert (failed.status, failed.examples, failed.reproduce) == ("failed", 0, "")
    assert failed.detail == "the backend failed: RuntimeError: connection reset"


def test_progress_counts_examples() -> None:
    seen: list[tuple[str, int, int]] = []
    one(opener("oracle"), names=["agreement"], progress=lambda *state: seen.append(state))
    assert seen == [("agreement", count, 5) for count in range(1, 6)]


def test_the_same_seed_puts_the_same_examples() -> None:
    def broken(seed: int) -> str:
        def opened(folder: Path) -> Backend:
            return windowed(-1)(laguna_ref.load(folder))

        return one(opened, examples=40, seed=seed, names=["sliding-reach"]).reproduce

    assert broken(3) == broken(3)


def test_unknown_laws_and_bad_reproductions_are_refused() -> None:
    with pytest.raises(InputError, match="gravity"):
        by_name(["gravity"])
    with pytest.raises(InputError, match="not a reproduction"):
        replay(opener("oracle"), None, "nonsense")
    with pytest.raises(InputError, match="opens drawn models"):
        replay(None, None, to_blob("causality", Example({"model_type": "laguna"}, 0, (), (1,))))


def test_an_example_goes_through_a_blob() -> None:
    example = Example({"model_type": "laguna"}, 7, tuple(TRAITS), (1, 2), {"cut": 1})
    assert from_blob(to_blob("causality", example)) == ("causality", example)


@pytest.mark.parametrize("bits", [4, 8])
def test_packing_is_undone_by_unpacking(bits: int) -> None:
    half = 1 << (bits - 1)
    codes = np.random.default_rng(0).integers(-half, half, (3, 64))
    assert np.array_equal(unpack(pack(codes, bits), bits, 64), codes)


def legal(name: str, seed: int) -> LegalBackend:
    given = Built(name, None, _given=laguna_ref.load(engine="numpy"))
    return LegalBackend(given, PRESETS["float32"], seed)


def test_no_two_calls_of_legal_backends_are_computed_alike() -> None:
    """Otherwise noise would be measured as zero, and every backend accused."""
    one = legal("drawn", 0)
    calls = [one.logits([1, 2, 3]), one.logits([1, 2, 3])]
    calls += [legal("permuted", 0).logits([1, 2, 3]), legal("drawn", 1).logits([1, 2, 3])]
    assert len({found.tobytes() for found in calls}) == len(calls)


def test_the_package_needs_no_hypothesis() -> None:
    code = "import sys, laguna_ref, laguna_ref.cli; sys.exit('hypothesis' in sys.modules)"
    assert run_process([sys.executable, "-c", code], check=False).returncode == 0
