"""What every run of pytest imports where laguna-ref is installed: options, and nothing else.

It stands outside of ``laguna_ref``, whose import brings NumPy and the model, so that runs which
do not ask for it pay nothing. The plugin itself is ``laguna_ref.conformance.pytest_plugin``.
"""

from __future__ import annotations

import pytest

DEFAULT_EXAMPLES = 20
DEFAULT_RUNS = 400
"""Of ``laguna_ref.conformance.budget``: budgets that come with the package are of so many."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, in a group of their own."""
    option = parser.getgroup("laguna-ref", "conformance to Laguna XS.2").addoption
    option("--laguna-backend", metavar="NAME", help="backend to judge, as for `laguna-ref conform`")
    option("--laguna-model", metavar="PATH",
           help="checkpoint that both sides open (default: laguna-tiny)")  # fmt: skip
    option("--laguna-golden", metavar="FILE|FOLDER", action="append", default=[],
           help="goldens whose prompts are put to it; may be repeated")  # fmt: skip
    option("--laguna-case", metavar="NAME", action="append", default=[],
           help="only this case; may be repeated")  # fmt: skip
    option("--laguna-runs", metavar="N", type=int, default=DEFAULT_RUNS,
           help=f"legal runs that measure a case's noise (default: {DEFAULT_RUNS})")  # fmt: skip
    option("--laguna-examples", metavar="N", type=int, default=DEFAULT_EXAMPLES,
           help=f"examples of each law (default: {DEFAULT_EXAMPLES}; 0: no laws)")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Joins in only where a backend is named."""
    if config.getoption("--laguna-backend"):
        from laguna_ref.conformance.pytest_plugin import Plugin

        config.pluginmanager.register(Plugin(), "laguna-ref-conformance")
