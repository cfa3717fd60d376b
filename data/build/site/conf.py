"""How Sphinx makes the site from the pages that `__main__.py` writes."""

import json
import re
from base64 import b64decode
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from textwrap import dedent

from docutils import nodes

import ldm_mini

project, author, language = "ldm_mini", "ldm_mini contributors", "en"
copyright = "ldm_mini contributors, MIT"
version = release = ldm_mini.__version__
# the last of these brings MathJax with its fonts
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # from the web, and without a kernel they do nothing
nb_merge_streams = True
suppress_warnings = ["myst.header"]  # README's pages may begin a section with ###
smartquotes = False

default_role = "code"
add_module_names, toc_object_entries_show_parents = False, "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 88

html_theme = "sphinx_book_theme"
html_title = "ldm_mini: latent diffusion, every part of it"
html_static_path, html_css_files = ["site.css"], ["site.css"]
html_copy_source = html_show_sphinx = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],
    "show_navbar_depth": 1, "use_download_button": False, "use_fullscreen_button": False, "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light", "pygments_dark_style": "a11y-high-contrast-dark",
}

ITEM = re.compile(r"([\w`][\w`, ./*-]{,40}?)(?::\s+|\s{2,})(\S.*)")  # "name: what it is", "name  what it is"


def prose(text):
    """A docstring's words as reStructuredText: `what stands in backticks` is code, and nothing else is a mark."""
    parts = re.split(r"`([^`]+)`", text)
    return "".join(rf"\ ``{part}``\ " if number % 2 else re.sub(r"([\\*_|`])", r"\\\1", part)
                   for number, part in enumerate(parts))


def items(lines):
    """[[name, what it is], ...] if these lines are a list of such, with further words further in; else []."""
    found = []
    for line in lines:
        if item := ITEM.fullmatch(line):
            found.append([item[1], item[2]])
        elif found and line.startswith(" "):
            found[-1][1] += f" {line.strip()}"
        else:
            return []
    return found


def paragraph(lines):
    """A docstring's paragraph as reStructuredText: words, items, or what is further in and no items: code."""
    found, inside = items(dedent("\n".join(lines)).splitlines()), lines[0].startswith(" ")
    if found and (inside or any(re.search(r"^ |\S {2,}", line) for line in lines)):
        return [line for name, words in found for line in ("", prose(name), f"   {prose(words)}", "")]
    if inside:
        return ["::", "", *(f"   {line}" for line in lines), ""]
    parts = groupby(lines, lambda line: line.startswith(" "))
    return [line for further_in, part in parts
            for line in ([*paragraph(list(part)), ""] if further_in else [*map(prose, part), ""])]


def read_docstring(app, what, name, obj, options, lines):
    paragraphs = [list(part) for written, part in groupby(lines, lambda line: bool(line.strip())) if written]
    lines[:] = [line for part in paragraphs for line in paragraph(part)]


def shorten_signature(app, what, name, obj, options, signature, returned):
    """The command line's options carry their bounds and their help in their types."""
    if "Annotated[" in (signature or ""):
        return "(...)", ""


def describe_figures(app, doctree):
    """Give each figure of a notebook the alternative text that its output's metadata carries, as nbconvert does."""
    page = Path(app.env.doc2path(app.env.docname))
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"] if page.suffix == ".ipynb" else []
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [(output["data"][kind], output["metadata"].get(kind, {})) for output in outputs
             for kind in ("image/png", "image/gif") if kind in output.get("data", {})]
    alt = {sha256(b64decode("".join(data))).hexdigest(): about.get("alt", "")  # what MyST-NB calls the file
           for data, about in shown}
    for image in doctree.findall(nodes.image):
        if Path(image["uri"]).stem in alt:
            image["alt"] = alt[Path(image["uri"]).stem]


def setup(app):
    app.connect("doctree-read", describe_figures)
    app.connect("autodoc-process-signature", shorten_signature)
    app.connect("autodoc-process-docstring", read_docstring)
