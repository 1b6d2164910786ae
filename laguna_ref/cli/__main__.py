"""``python -m laguna_ref.cli``: the same as ``laguna-ref``."""

from laguna_ref.cli import main

main(prog_name="laguna-ref")
