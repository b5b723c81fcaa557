"""How Sphinx makes a site of the project's Markdown, for `make docs`.

The pages hold no directives, so that they read well on a code host too. What a site needs beyond them is added while
they are read: the tables of contents below, and under each example of docs/api.md what docstrings say of its names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from docutils import nodes
from sphinx.addnodes import pending_xref

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import dualrate  # noqa: E402

CONTENTS = {  # of a page: captions, and what stands under each in the side bar
    "README": {
        "Tutorials": [
            "docs/start", "docs/retrofit", "docs/own-images", "docs/plan", "docs/distil", "docs/scaling",
            "docs/serving", "docs/worse",
        ],
        "Guides": [
            "docs/concepts", "docs/choosing", "docs/conditions", "docs/forecasts", "docs/clips", "docs/diffusers",
            "docs/accelerate", "docs/latents", "docs/unified-latents", "docs/tokens", "docs/pipeline", "docs/fid",
            "docs/extending",
        ],
        "Reference": ["docs/commands", "docs/api", "docs/equations", "docs/faults", "docs/design"],
        "What was measured": ["docs/results"],
        "Project": ["CONTRIBUTING", "AGENTS", "SECURITY", "CHANGELOG"],
    },
    "docs/results": {"": ["docs/results/*", "weights/*/README", "src/dualrate/metrics/nets/*/README"]},
}  # fmt: skip
API = "docs/api"  # the page of the public names

project = "dualrate"
copyright = author = "the dualrate authors"
version = release = dualrate.__version__
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "weights/*/README.md", "src/dualrate/metrics/nets/*/README.md"]
exclude_patterns = [".venv", ".git", "build", "demo", "dist", "out", "runs"]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!dualrate\b).*")]  # names of other libraries
myst_heading_anchors = 4
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False

html_theme = "furo"
html_theme_options = {"light_css_variables": {"code-font-size": "75%"}}  # a hundred columns
html_title = f"dualrate {release}"
html_show_sphinx = html_copy_source = False
pygments_style, pygments_dark_style = "friendly", "native"


# Contents


def with_contents(app, page: str, source: list[str]) -> None:
    """Add a page's tables of contents, which show in the side bar alone."""
    source[0] += "".join(toctree(caption, pages) for caption, pages in CONTENTS.get(page, {}).items())


def toctree(caption: str, pages: Iterable[str]) -> str:
    options = [":hidden:", ":glob:", f":caption: {caption}" if caption else ":maxdepth: 1", ""]
    return "\n".join(["", "", "```{toctree}", *options, *(f"/{page}" for page in pages), "```", ""])


def without_folders(app, doctree: nodes.document) -> None:
    """A link to a folder of the repository has no page to lead to: its text stays."""
    for link in list(doctree.findall(pending_xref)):
        if (
            link["reftype"] == "myst"
            and link.get("refdomain") != "doc"
            and (ROOT / link["refdoc"]).parent.joinpath(link["reftarget"]).is_dir()
        ):
            link.replace_self(link.children)


def with_front_door(app, error: Exception | None) -> None:
    """The address of the folder itself leads to the README."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "index.html").write_text('<meta http-equiv="refresh" content="0; url=README.html">\n')


def with_contents_for_models(app, error: Exception | None) -> None:
    """llms.txt (llmstxt.org): what the package is, and every page with its first sentence."""
    if error is None and app.builder.format == "html":
        (Path(app.outdir) / "llms.txt").write_text(contents_for_models())


def contents_for_models() -> str:
    """Of the pages in `CONTENTS`, by caption."""
    title, summary = title_and_sentence("README")
    lines = [f"# {title}", "", f"> {summary}"]
    for caption, pages in CONTENTS["README"].items():
        rows = ((page, *title_and_sentence(page)) for page in pages)
        lines += ["", f"## {caption}", "", *(f"- [{title}]({page}.html): {sentence}" for page, title, sentence in rows)]
    return "\n".join(lines) + "\n"


MARKS = re.MULTILINE | re.DOTALL


def title_and_sentence(page: str) -> tuple[str, str]:
    """The heading of a page, and the first sentence below it, without marks."""
    text = re.sub(r"^```.*?^```\n|!?\[([^]]*)\]\([^)]*\)|[*`]", r"\1", (ROOT / f"{page}.md").read_text(), flags=MARKS)
    heading, *paragraphs = text.split("\n\n")
    first = next(" ".join(part.split()) for part in paragraphs if part[:1].isalpha())
    return heading.removeprefix("# "), first.split(". ")[0].rstrip(".:") + "."


# The reference of the public names

ROW = re.compile(r"(\w+(?:, \w+)*):\s+(\S.*)")  # of a table in a docstring: "weights: (K,) positive, sum 1"
CODE_OR_MARK = re.compile(r"`([^`]+)`|[*|\\]|_\b")  # one is code; the others are marks in reST and mean nothing here
RANGE = re.compile(r"~?[\w.]*\bAnnotated\[((?:[^][]|\[[^][]*\])*?), ~?[\w.]*\bRange\([^()]*\)\]")
VALUE = re.compile(r"<function (?:\w+\.)?<?(\w+)>?[^>]*>|<(\w+\.\w+): [^>]*>|<(factory)>")


def with_reference(app, page: str, source: list[str]) -> None:
    """Add, after each example on the page of public names, the reference of the names that are new in it."""
    if page != API:
        return
    told: set[str] = set()
    parts = re.split(r"(?<=^```\n)", source[0], flags=re.MULTILINE)
    for at, part in enumerate(parts):
        names = [name for name in re.findall(r"\bdr\.(\w+)", part) if name in dualrate.__all__]
        parts[at] += "".join(documented(name) for name in dict.fromkeys(names) if name not in told)
        told |= set(names)
    source[0] = "".join(parts)


def documented(name: str) -> str:
    kind = "class" if isinstance(getattr(dualrate, name), type) else "function"
    return f"\n```{{eval-rst}}\n.. auto{kind}:: dualrate.{name}\n```\n"


def as_rst(app, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """A docstring is text with code in backticks, tables of names, and formulas that are set off by an indent."""
    if getattr(thing, "__doc__", None) == Protocol.__doc__:  # none of its own
        lines.clear()
    lines[:] = [line for block in blocks(lines) for line in (*block, "")]


def blocks(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    table = False
    for line in [*lines, ""]:
        row = ROW.fullmatch(line)
        if block and (not line or row or (table and not line.startswith(" "))):
            yield block if table or not block[0].startswith(" ") else ["::", "", *block]
            block, table = [], False
        if row:
            table = True
            block += [f"``{row[1]}``", f"   {plain(row[2])}"]
        elif line:
            block.append("   " + plain(line.strip()) if table else line if line.startswith(" ") else plain(line))


def plain(line: str) -> str:
    return CODE_OR_MARK.sub(lambda found: f"``{found[1]}``" if found[1] else "\\" + found[0], line)


def brief(app, what: str, name: str, thing: object, options: object, signature: str | None, result: str | None):
    """Types without ranges, which the commands' help tells; functions and members by their names."""
    if signature:
        while RANGE.search(signature):
            signature = RANGE.sub(r"\1", signature)
        signature = VALUE.sub(lambda found: found[1] or found[2] or "...", signature)
    return signature, result


def of_a_default(app, what: str, name: str, thing: object, skip: bool, options: object) -> bool | None:
    """Leaves out a function that is the default of a field, which is no method."""
    return True if what == "class" and getattr(thing, "__qualname__", ".").isidentifier() else None


def linked(app, env, node, text):
    """Links a public name of ours that goes by the module that defines it; other names of ours have no page."""
    target = node["reftarget"]
    if node.get("refdomain") != "py" or target.split(".")[0] != "dualrate":
        return None
    name = target.split(".")[-1]
    if name not in dualrate.__all__:
        return text
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], f"dualrate.{name}", node, text
    )


def setup(app) -> None:
    for event, listener in (
        ("source-read", with_contents),
        ("source-read", with_reference),
        ("doctree-read", without_folders),
        ("build-finished", with_front_door),
        ("build-finished", with_contents_for_models),
        ("autodoc-process-docstring", as_rst),
        ("autodoc-process-signature", brief),
        ("autodoc-skip-member", of_a_default),
        ("missing-reference", linked),
    ):
        app.connect(event, listener)
