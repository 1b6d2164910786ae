"""Laws: what any backend must obey, put to it on models, weights and prompts drawn by Hypothesis.

``run`` puts them to a backend; ``LAWS`` is the list, ``docs/laws.md`` the table.
"""

from laguna_ref.conformance.laws.catalogue import LAWS, by_name
from laguna_ref.conformance.laws.law import Law, LawResult
from laguna_ref.conformance.laws.runner import replay, run

__all__ = ["LAWS", "Law", "LawResult", "by_name", "replay", "run"]
