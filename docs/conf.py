"""How Sphinx builds the site: ``sphinx-build -n -W --keep-going docs build/site``.

Pages are Markdown that reads well on GitHub too; walkthroughs are Markdown notebooks that are
executed while the site is built. Nothing is fetched: no intersphinx, no scripts from elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import laguna_ref  # noqa: E402 - after the path, as the extensions are

project = "laguna_ref"
author = "The laguna_ref maintainers"
version = release = laguna_ref.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx_copybutton",
    "house_docstrings",
    "house_tables",
    "nothing_fetched",
    "plain_cells",
]
exclude_patterns = ["_ext", "_static", "examples"]

# Markdown
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_ambiguous"]
highlight_language = "text"
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True

# Walkthroughs: executed anew at every build, an exception in a cell is an error of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 200
nb_execution_show_tb = True
nb_merge_streams = True

# API reference
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Array": "Array"}
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True, "show-inheritance": False}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
nitpicky = True
nitpick_ignore_regex = [
    # Types of other packages: nothing is fetched, so there is no inventory to find them in.
    ("py:class", r"(numpy|collections|pathlib|contextlib|types)\..*"),
    ("py:class", r"SearchStrategy|Console|Array"),
    # Inner types that signatures show and that have no page of their own.
    ("py:class", r"laguna_ref\.conformance\.(prepared|matrices|asking|operations|inputs)\..*"),
    ("py:class", r"laguna_ref\.conformance\.(varied_engine|partial_budget|conform_report)\..*"),
    ("py:class", r"laguna_ref\.checkpoint\.(matching|names)\..*"),
    ("py:class", r"laguna_ref\.conformance\.laws\.case\..*|Example|Check"),
]

html_theme = "furo"
html_title = f"laguna_ref {version}"
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
