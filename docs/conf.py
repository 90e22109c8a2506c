"""Sphinx: MyST pages, the furo theme, and references made from the code when the documentation is built."""

from __future__ import annotations

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

project = "zoogen"
version = release = installed_version("zoogen")
html_title = f"zoogen {version}"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "reference"]  # the references are included by pages

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"

html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_copy_source = False
html_show_sourcelink = False


def write_references(app: Any) -> None:
    """Write the Markdown of what the code knows about itself into ``docs/reference`` (not under version control)."""
    from zoogen.blueprint.reference import reference
    from zoogen.train.metrics import METRICS
    from zoogen.twins.measures import TWIN_METRICS

    metrics, twins = (
        "\n".join(["| column | meaning |", "| --- | --- |", *(f"| `{k}` | {v} |" for k, v in told.items()), ""])
        for told in (METRICS, TWIN_METRICS)
    )
    folder = Path(app.srcdir) / "reference"
    folder.mkdir(exist_ok=True)
    # Not a glob: Sphinx warns, and cannot be told not to, where there are no results yet.
    results = sorted(path.stem for path in Path(app.srcdir, "benchmarks").glob("*.md") if path.stem != "index")
    benchmarks = (
        "\n".join(["```{toctree}", ":maxdepth: 1", "", *results, "```", ""]) if results else "No results yet.\n"
    )
    pages = {"blueprint": reference(), "metrics": metrics, "twin-metrics": twins, "benchmarks": benchmarks}
    for name, text in pages.items():
        (folder / f"{name}.md").write_text(text, encoding="utf-8")


def hide_colon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon would take what stands before a property's first colon for its type."""
    if what == "property" and lines:
        lines[0] = lines[0].replace(":", "\0")


def show_colon(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Undo ``hide_colon`` once napoleon is done."""
    lines[:] = [line.replace("\0", ":") for line in lines]


def hide_constructor(app: Any, what: str, name: str, *_: Any) -> tuple[str, None] | None:
    """Zoos and selections are made by functions, not by their constructors."""
    return ("", None) if what == "class" else None


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write_references)
    app.connect("autodoc-process-docstring", hide_colon, priority=100)
    app.connect("autodoc-process-docstring", show_colon, priority=900)
    app.connect("autodoc-process-signature", hide_constructor)
    return {"parallel_read_safe": True}
