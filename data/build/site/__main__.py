"""Write the course as a static site: `python3 course.py site [OUT]`, or `python data/build/site OUT`.

Pages are made from what the clone holds (README, notebooks in the learner's view, docstrings, cards) in a folder that
goes away again; `conf.py` says how Sphinx turns them into HTML. Nothing is executed, nothing is fetched.
"""

import re
import sys
import tempfile
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from ldm_mini.editions import edition_of, read_notebook, source_notebooks, write_notebook  # noqa: E402

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)([^)\s]*)\)")
TREE = re.compile(r"^  (\w+(?:\.py|/)(?:  \w+\.py)*) +(.*?)(?: {2,}(\S.*))?$")  # files, what they hold, a heading
NOTE = """\
:::{note}
Read here, write in your own copy: `python3 course.py lab` makes it. Hint, outline and solution of an exercise are
folded below its check. Results come from the course's own run.
:::"""
WIDGET = "*Here stands something to play with; it needs a running notebook.*"
SIDEBAR = """
```{{toctree}}
:hidden:
:caption: {caption}
{pages}
```
"""
LIBRARY = """\
# The library

The paper, a file for each idea; behind it, what serves it. From the paper one imports by file (`from ldm_mini.quantizer
import VectorQuantizer`), from a folder by its name (`from ldm_mini.scenes import EmojiScenes`).
"""
PAGE = """\
# {title}

`{module}`

```{{eval-rst}}
.. automodule:: {module}
   :members:{more}
```
"""
NOTEBOOKS = [path.relative_to(ROOT).as_posix() for path in source_notebooks()]
ABOUT = [".github/CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "data/ATTRIBUTION.md",
         *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "data/weights").rglob("*.md")))]
CHINESE = "README.zh.md"
# what stands in the clone -> the page that shows it
PAGES = {**{name: name for name in [*NOTEBOOKS, *ABOUT, CHINESE]}, "README.md": "index.md",
         "notebooks": "index.md#the-course", "ldm_mini": "library/index.md", "data": "data/README.md",
         ".github/CONTRIBUTING.md": "contributing.md"}


def repository() -> str:
    """The repository's address on the web, if pyproject.toml knows one."""
    import tomllib  # here and not above: Python 3.11, as the theme
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository", "")


def relinked(text: str, name: str, images: set, url: str = "") -> str:
    """A page's Markdown with links that lead to pages of the site, to the repository, or nowhere.

    name: the page's file in the clone. images: a set that takes the names of the pictures it shows.
    """
    def relink(link):
        picture, label, target, anchor = link.groups()
        target = normpath(join(dirname(name), target))
        here = dirname(PAGES.get(name, name)) or "."
        if picture:
            images.add(target)
            return f"![{label}]({relpath(target, here)})"
        if target in PAGES:
            return f"[{label}]({relpath(PAGES[target], here)}{anchor})"
        return f"[{label}]({url}/blob/main/{target}{anchor})" if url else label

    return LINK.sub(relink, text)


def notebook_page(name: str, images: set, url: str) -> bytes:
    """A notebook in the learner's view, its note moved below the title."""
    edition = edition_of(read_notebook(ROOT / name), Path(name).name)
    cells = [cell for cell in edition["cells"] if cell["id"] != "your-edition"]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = relinked(cell["source"], name, images, url)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if data.pop("application/vnd.jupyter.widget-view+json", None) and "image/png" not in data:
                output["data"] = {"text/markdown": WIDGET}  # one that brings no picture of itself
    title, _, rest = cells[0]["source"].partition("\n")
    cells[0] = {**cells[0], "source": f"{title}\n\n{NOTE}\n{rest}"}
    return write_notebook({**edition, "cells": cells})


def library_pages(readme: str) -> dict:
    """{page: Markdown}: one for each file of the root and each folder, and their list, from the README's tree."""
    pages, listed = {}, []
    for line in re.search(r"```\nldm_mini/\n(.*?)```", readme, re.S)[1].splitlines():
        names, what, heading = TREE.match(line).groups()
        if names.startswith("scenes/"):
            heading = "what serves it"
        listed += [f"\n## {heading[0].upper()}{heading[1:]}\n"] if heading else []
        for room, kind in re.findall(r"(\w+)(\.py|/)", names):
            page = room.strip("_")
            listed.append(f"- [`{room}`]({page}.md): {what}")
            pages[f"library/{page}.md"] = PAGE.format(
                title="the command line" if room == "__main__" else room, module=f"ldm_mini.{room}",
                more="\n   :imported-members:" if kind == "/" else "")
    inside = "\n".join(Path(page).name for page in pages)
    text = LIBRARY + "\n".join(listed)
    return {"library/index.md": f"{text}\n\n```{{toctree}}\n:hidden:\n\n{inside}\n```\n", **pages}


def write_pages(folder: Path):
    """All sources of the site, laid out as in the clone so that links between them hold."""
    url, images, readme = repository(), set(), (ROOT / "README.md").read_text(encoding="utf-8")
    pages = {name: notebook_page(name, images, url) for name in NOTEBOOKS}
    pages |= {page: text.encode() for page, text in library_pages(readme).items()}
    for name in [*ABOUT, CHINESE]:
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.S)  # a card's header is for the Hub
        pages[PAGES[name]] = relinked(text, name, images, url).encode()
    sidebar = {"The course": NOTEBOOKS, "The library": ["library/index.md"],
               "The project": [*(PAGES[name] for name in ABOUT), f"中文 <{CHINESE}>"]}
    index = relinked(readme, "README.md", images, url)
    index += "".join(SIDEBAR.format(caption=caption, pages="\n".join(names)) for caption, names in sidebar.items())
    pages["index.md"] = index.encode()
    pages |= {name: (ROOT / name).read_bytes() for name in images}
    for name, content in pages.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def main(words) -> int:
    try:
        from sphinx.cmd.build import build_main
    except ImportError:
        print('The site is made with Sphinx: pip install "ldm_mini[site]" (Python 3.11 or newer).')
        return 1
    out = Path(words[0] if words else ROOT / "_build" / "site")
    with tempfile.TemporaryDirectory() as folder:
        write_pages(Path(folder) / "pages")
        options = ["--quiet", "--fail-on-warning", "--conf-dir", str(Path(__file__).parent)]
        failed = build_main([*options, "--doctree-dir", f"{folder}/doctrees", f"{folder}/pages", str(out)])
    for file in (out / "_static" / "mathjax").glob("*.js"):
        if file.name != "tex-chtml.js":  # 14 MB of other ways to begin
            file.unlink()
    print(f"The site is in {out}: open {out / 'index.html'}." if not failed else "The site has faults: see above.")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
