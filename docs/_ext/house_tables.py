"""Tables made from the package while the site is built, so that no page holds a copy of them.

``axis-letters``: each letter with its key of config.json and its value in two models.
``trace-points``: every point in order of execution, shapes from ``laguna_ref.trace``, meanings
from the one table in docs/golden-format.md.
``kernel-modules``: the modules of numba_kernels, by their docstrings.
``fault-catalogue``: every fault, dial and its public reports, a family a table.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

from laguna_ref.checkpoint import preset
from laguna_ref.config import LagunaConfig
from laguna_ref.conformance.faults import CATALOGUE, DIALS, Fault
from laguna_ref.load import EMBEDDED
from laguna_ref.trace import ATTENTION_POINTS, LAYER_POINTS, SPARSE_POINTS

DOCS = Path(__file__).parents[1]

LETTERS = {
    "T": ("tokens of the call", "the prompt's length, or what is left of it"),
    "D": ("hidden size", "hidden_size"),
    "H": ("query heads", "num_attention_heads_per_layer"),
    "G": ("key/value heads", "num_key_value_heads"),
    "C": ("head dim", "head_dim"),
    "E": ("experts", "num_experts"),
    "K": ("experts chosen by a token", "num_experts_per_tok"),
    "F": ("width of an expert", "moe_intermediate_size"),
    "V": ("vocabulary", "vocab_size"),
    "S": ("cached positions", "grows with the sequence"),
}


def axis_letters() -> Iterator[str]:
    """The letters, and what they come to in the two models that everyone meets."""
    xs2 = LagunaConfig.from_dict(preset("xs2-int4"))
    tiny = LagunaConfig.from_file(EMBEDDED)
    yield from header("letter", "what it counts", "key of config.json", "XS.2", "laguna-tiny")
    for letter, (meaning, key) in LETTERS.items():
        is_key = " " not in key
        name = f"`{key}`" if is_key else key
        yield row(f"**{letter}**", meaning, name, value(xs2, key), value(tiny, key))


def value(config: LagunaConfig, key: str) -> str:
    """A key's value; query heads by the kind of layer."""
    if key == "num_attention_heads_per_layer":
        by_kind = {layer.attention: layer.num_heads for layer in config.layers}
        return ", ".join(f"{n} ({kind.partition('_')[0]})" for kind, n in by_kind.items())
    if key == "num_experts":
        return f"{config.num_experts} and one shared"
    found = getattr(config, key, None)
    if isinstance(found, int):
        return f"{found:,}"
    return f"at most {config.max_position_embeddings:,}"


def meanings() -> dict[str, str]:
    """Trace point, without ``model.layers.N.`` -> its cell in docs/golden-format.md."""
    text = (DOCS / "golden-format.md").read_text("utf-8")
    table = text.split("### Trace points")[1].split("The input of layer N")[0]
    found: dict[str, str] = {}
    for line in table.splitlines():
        if not line.startswith("| ") or "`" not in line:
            continue
        names, _, meaning = (cell.strip() for cell in line.strip("| ").split("|", 2))
        for name in re.findall(r"`([^`]+)`", names):
            short = name.lstrip("…").lstrip(".").removeprefix("model.layers.N.")
            found[short] = meaning
    found["self_attn.v_proj"] = found.pop("v_proj")
    return found


def trace_points() -> Iterator[str]:
    """Every point of a model with one sparse layer, in order of execution."""
    said = meanings()
    layer = {f"model.layers.N.{name}".rstrip("."): (name, shape) for name, shape in _of_a_layer()}
    points = {"model.embed_tokens": ("model.embed_tokens", "[T, D]")} | layer
    points |= {"model.norm": ("model.norm", "[T, D]"), "lm_head": ("lm_head", "[T, V]")}
    yield from header("trace point", "shape", "meaning")
    for name, (short, shape) in points.items():
        meaning = said.get(short) or said[name]
        yield row(f"`{name}`", shape.partition("],")[0].rstrip("]") + "]", meaning)


def _of_a_layer() -> Iterator[tuple[str, str]]:
    yield from (ATTENTION_POINTS | SPARSE_POINTS | LAYER_POINTS).items()


def fault_catalogue() -> Iterator[str]:
    """The faults, a family (the module that holds them) a table, then the dials."""
    family = lambda fault: inspect.getmodule(fault.plant)  # noqa: E731
    for module, faults in groupby(CATALOGUE.values(), family):
        name = module.__name__.rpartition(".")[2] if module else "other"
        yield from (f"## {name.capitalize()}", "", first_line(module), "")
        yield from header("fault, and what the port does", "severity", "first shows", "reports")
        yield from (of_fault(fault) for fault in faults)
        yield ""
    yield from ("## Numbers that are fitted", "", "Constants that a port may take otherwise.", "")
    yield from header("dial", "first shows at", "layers", "looked for between")
    for dial in DIALS:
        reach = f"{dial.low:g} and {dial.high:g} times"
        yield row(f"`{dial.name}`", f"`{dial.point}`", dial.layers, reach)


def kernel_modules() -> Iterator[str]:
    """Each module of numba_kernels with the first paragraph of its docstring; none is imported."""
    yield from header("module", "what it holds")
    for path in sorted((DOCS.parent / "numba_kernels").glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        if path.stem != "__init__":
            yield row(f"`{path.stem}`", " ".join(text.split("\n\n")[0].split()).replace("``", "`"))


def of_fault(fault: Fault) -> str:
    """One row of its family's table."""
    where = "not in logits" if fault.layers == "generation" else f"`{fault.point}`"
    if fault.layers not in ("generation", "model"):
        where += f", {fault.layers.partition('_')[0]} layers"
    links = ", ".join(f"[{report(url)}]({url})" for url in fault.references)
    return row(f"`{fault.name}`: {fault.description}", fault.severity, where, links or "none")


def report(url: str) -> str:
    """``owner/name#12`` for an issue or pull request of GitHub, else the site."""
    found = re.match(r"https://github\.com/([\w.-]+/[\w.-]+)/(?:issues|pull)/(\d+)", url)
    return f"{found[1]}#{found[2]}" if found else url.split("/")[2]


def first_line(module: Any) -> str:
    """The first paragraph of a module's docstring."""
    return " ".join((module.__doc__ or "").split("\n\n")[0].split())


def header(*names: str) -> list[str]:
    """Head of a Markdown table."""
    return [row(*names), "|" + " --- |" * len(names)]


def row(*cells: str) -> str:
    """One row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def directive(make: Any) -> type[SphinxDirective]:
    """A directive that puts the lines of a function in its place, read as Markdown."""

    class Table(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            node = nodes.container()
            source = f"<{make.__name__}>"
            self.state.nested_parse(StringList(list(make()), source), 0, node, match_titles=True)
            return node.children

    return Table


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    for name, make in (
        ("axis-letters", axis_letters),
        ("trace-points", trace_points),
        ("kernel-modules", kernel_modules),
        ("fault-catalogue", fault_catalogue),
    ):
        app.add_directive(name, directive(make))
    return {"parallel_read_safe": True}
