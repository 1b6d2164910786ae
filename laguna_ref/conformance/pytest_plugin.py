"""``pytest --laguna-backend=python:mymodule:factory``: one test a case, and one a law.

Imported only where the option is given (see ``laguna_ref_pytest``, the entry point). Laws need
``pip install 'laguna-ref[conformance]'``. Cases are judged together, as ``laguna-ref conform``
does, so the backend is asked for all of them when the first one runs; a case that is inconclusive
fails, as does a law at which the backend fails; what is not applicable is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from laguna_ref.conformance.backend import Backend, Opener
    from laguna_ref.conformance.conform_report import ConformReport
    from laguna_ref.conformance.report import Report

GROUP = "laguna-ref"


class DivergesError(Exception):
    """A case or a law that fails; its text is the report."""


class Plugin:
    """Adds the items to those that pytest has found."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(
        self, session: pytest.Session, items: list[pytest.Item]
    ) -> None:
        """Before others look at them, so that ``-k`` and its like see these items too."""
        items.extend(_Collector.from_parent(session, name=GROUP).collect())


class _Collector(pytest.Collector):
    """All cases, then all laws."""

    def collect(self) -> Iterator[pytest.Item]:
        """Raises pytest.UsageError where the backend cannot be had."""
        judged = _Judged(self.config)
        for name in judged.case_names():
            yield _CaseItem.from_parent(self, name=f"case[{name}]", judged=judged, case=name)
        for name in judged.law_names():
            yield _LawItem.from_parent(self, name=f"law[{name}]", judged=judged, law=name)


class _Judged:
    """The backend, its oracle and, once asked for, the report on all cases."""

    def __init__(self, config: pytest.Config) -> None:
        from laguna_ref.conformance.adapters import opener
        from laguna_ref.conformance.conform import Conforming, oracle_of
        from laguna_ref.conformance.prepared import chosen, prepared
        from laguna_ref.errors import LagunaError
        from laguna_ref.load import resolve

        self.config = config
        model = config.getoption("--laguna-model")
        goldens = [Path(path) for path in config.getoption("--laguna-golden")]
        try:
            self.opens = opener(config.getoption("--laguna-backend"))
            self.backend = _opened(self.opens, resolve(model))
            self.oracle = oracle_of(self.backend, model)
            # Refuses here what nobody knows, and not when the first case runs.
            self.precision = Conforming(self.backend, self.oracle, 0, 0, print).precision
            self.cases = chosen(prepared(self.oracle, goldens), config.getoption("--laguna-case"))
        except LagunaError as problem:
            raise pytest.UsageError(f"laguna-ref: {problem}") from problem
        self._report: ConformReport | Exception | None = None

    def case_names(self) -> list[str]:
        """Of all cases, those among them that are not applicable."""
        return [case.case.name for case in self.cases]

    def law_names(self) -> list[str]:
        """Of all laws, unless none can be put to this backend or none is wanted."""
        from laguna_ref.conformance.backend import why_no_laws

        if not self.config.getoption("--laguna-examples") or why_no_laws(self.backend):
            return []
        try:
            from laguna_ref.conformance.laws import LAWS
        except ModuleNotFoundError as problem:
            raise pytest.UsageError(
                f"laguna-ref: {problem.name} is not installed; pip install "
                "'laguna-ref[conformance]', or --laguna-examples=0"
            ) from problem
        return [law.name for law in LAWS]

    @property
    def report(self) -> ConformReport:
        """Asks for all cases at once: they share one threshold. Raises the same for every case
        where that failed, rather than ask again."""
        if self._report is None:
            from laguna_ref.conformance.conform import conform

            runs = self.config.getoption("--laguna-runs")
            try:
                self._report = conform(self.backend, self.oracle, self.cases, runs=runs)
            except Exception as problem:
                self._report = problem
        if isinstance(self._report, Exception):
            raise self._report
        return self._report

    def case(self, name: str) -> Report:
        """The report on a case; skips where it is not applicable."""
        for text in self.report.left_out:
            if text.startswith(f"{name}: "):
                pytest.skip(text.removeprefix(f"{name}: "))
        return next(case for case in self.report.cases if case.case == name)

    def law(self, name: str) -> Any:
        """What becomes of a law; skips where the backend opens no drawn model."""
        from laguna_ref.conformance import laws
        from laguna_ref.conformance.backend import BackendError

        serves_one = getattr(self.backend, "serves_one_model", False)
        try:
            (result,) = laws.run(
                None if serves_one else self.opens, self.backend, names=[name], seed=0,
                examples=self.config.getoption("--laguna-examples"), oracle=self.oracle,
            )  # fmt: skip
        except BackendError as problem:
            pytest.skip(f"laws: {problem}")
        return result


def _opened(opens: Opener, folder: Path) -> Backend:
    """Raises LagunaError, whatever a factory raises."""
    from laguna_ref.conformance.asking import one_line
    from laguna_ref.conformance.backend import BackendError
    from laguna_ref.errors import LagunaError

    try:
        return opens(folder)
    except LagunaError:
        raise
    except Exception as problem:
        raise BackendError(f"the backend cannot be opened: {one_line(problem)}") from problem


class _Item(pytest.Item):
    """Fails with text, not with a traceback of this package."""

    def __init__(self, *, judged: _Judged, **rest: Any) -> None:
        super().__init__(**rest)
        self.judged = judged

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """The report's own text."""
        if isinstance(excinfo.value, DivergesError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is said to lie."""
        return Path(str(self.config.rootpath)), None, f"{GROUP}: {self.name}"


class _CaseItem(_Item):
    def __init__(self, *, case: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.case = case

    def runtest(self) -> None:
        """Passes where the case conforms, and nowhere else."""
        report = self.judged.case(self.case)
        if report.verdict != "conforming":
            raise DivergesError(_text(report))


class _LawItem(_Item):
    def __init__(self, *, law: str, **rest: Any) -> None:
        super().__init__(**rest)
        self.law = law

    def runtest(self) -> None:
        """Passes where the law holds."""
        result = self.judged.law(self.law)
        if result.status == "not applicable":
            pytest.skip(result.detail)
        if result.status == "failed":
            raise DivergesError(f"law {self.law} could not be judged: {result.detail}")
        if result.status != "holds":
            backend = self.config.getoption("--laguna-backend")
            raise DivergesError(
                f"law {self.law} is broken: {result.detail}\n"
                f"reproduce: laguna-ref conform {backend} --reproduce {result.reproduce}"
            )


def _text(report: Report) -> str:
    import io

    from rich.console import Console

    text = io.StringIO()
    report.print(Console(file=text, width=120))
    return text.getvalue()
