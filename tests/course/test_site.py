"""The site: all is there, every link leads somewhere, nothing comes from elsewhere, and a browser shows it well."""

import functools
import hashlib
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

from ldm_mini.editions import exercises, source_notebooks

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
pytestmark = pytest.mark.skipif(not all(map(find_spec, NEEDED)),
                                reason="what makes the site is not installed: pip install 'ldm_mini[site]'")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}  # and links, unless they are mere addresses
LONGEST = 120  # columns of code that fit at 1280 pixels


class Page(HTMLParser):
    """What a page names: its anchors, links, and the files that a browser loads with it."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.images, self.summaries = {"", "top"}, [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.anchors |= {named[key] for key in ("id", "name") if named.get(key)}
        if tag == "a" and "href" in named:
            self.links.append(named["href"])
        if tag == "link" and named.get("rel") not in ("next", "prev", "search", "index", "author", "canonical"):
            self.loaded.append(named["href"])
        if named.get(LOADED.get(tag, "")):
            self.loaded.append(named[LOADED[tag]])
        if tag == "img":
            self.images.append(named)
        if tag == "summary":
            self.summaries.append("")

    def handle_data(self, data):
        if self.lasttag == "summary" and self.summaries and not self.summaries[-1].strip():
            self.summaries[-1] += data


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as `python3 course.py site OUT` makes it."""
    out = tmp_path_factory.mktemp("site") / "out"
    made = subprocess.run([sys.executable, str(ROOT / "data/build/site"), str(out)], capture_output=True, text=True,
                          cwd=out.parent)
    assert made.returncode == 0, made.stdout + made.stderr  # a warning is a fault
    return out


@pytest.fixture(scope="module")
def pages(site):
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]  # there: the theme's templates
    return {path: Page(path) for path in paths}


def test_every_notebook_and_every_room_has_a_page(site, pages):
    there = {path.relative_to(site).as_posix() for path in pages}
    notebooks = {f"notebooks/{path.stem}.html" for path in source_notebooks()}
    rooms = {path.stem.strip("_") for path in (ROOT / "ldm_mini").glob("*.py")} - {"init"}
    rooms |= {path.parent.name for path in (ROOT / "ldm_mini").glob("*/__init__.py")}
    assert notebooks | {f"library/{room}.html" for room in rooms} | {"index.html", "search.html"} <= there
    front = pages[site / "index.html"].links
    assert notebooks <= set(front) and {f"library/{room}.html" for room in ("index", "quantizer")} & set(front)
    assert "VectorQuantizer" in (site / "library/quantizer.html").read_text(encoding="utf-8")
    assert "EmojiScenes" in (site / "library/scenes.html").read_text(encoding="utf-8")


def test_every_link_and_anchor_leads_somewhere(site, pages):
    lost = []
    for path, page in pages.items():
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file() or target in pages and unquote(parts.fragment) not in pages[target].anchors:
                lost.append((path.relative_to(site).as_posix(), link))
    assert lost == []


def test_nothing_comes_from_elsewhere(site, pages):
    assert {link for page in pages.values() for link in page.loaded if urlsplit(link).netloc} == set()
    styles = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    named = re.findall(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)", styles)
    assert [name for pair in named for name in pair if re.match(r"(https?:)?//", name)] == []


@pytest.mark.parametrize("source", source_notebooks(), ids=lambda path: path.stem)
def test_a_notebook_is_the_learners_with_all_help_folded_and_all_figures(source, site, pages):
    page = pages[site / "notebooks" / f"{source.stem}.html"]
    tasks = exercises(source)
    assert page.summaries.count("Solution") == page.summaries.count("Hint") == len(tasks)
    text = (site / "notebooks" / f"{source.stem}.html").read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" not in text
    assert len(re.findall("your code here", text)) >= len(tasks)
    outputs = [output for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]
               for output in cell.get("outputs", [])]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len([image for image in page.images if "_images/" in image["src"]]) >= len(figures)
    alts = {output["metadata"].get("image/png", {}).get("alt") for output in figures} - {None}
    assert alts <= {image.get("alt") for image in page.images}


def loaded(name):
    """A file of data/build/site as a module."""
    spec = spec_from_file_location(f"site_{name.strip('_')}", ROOT / "data/build/site" / f"{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("written, shown", [
    ("[a](../README.md)", "[a](../index.md)"), ("[a](../data)", "[a](../data/README.md)"),
    ("[a](../LICENSE)", "a"), ("[a](https://b.c)", "[a](https://b.c)"), ("[a](#there)", "[a](#there)"),
    ("[a](02_attention.ipynb#there)", "[a](02_attention.ipynb#there)"),
    ("![a](../data/measurements/hero.png)", "![a](../data/measurements/hero.png)")])
def test_links_lead_to_pages_or_to_the_repository_once_it_has_an_address(written, shown):
    relinked, images = loaded("__main__").relinked, set()
    assert relinked(written, "notebooks/03_vq_vae.ipynb", images) == shown
    assert images == ({"data/measurements/hero.png"} if written.startswith("!") else set())
    there = relinked("[a](../LICENSE)", "notebooks/03_vq_vae.ipynb", images, "https://host/us")
    assert there == "[a](https://host/us/blob/main/LICENSE)"


def test_figures_take_the_alternative_text_of_their_output(tmp_path):
    from docutils import nodes
    from docutils.utils import new_document
    output = {"data": {"image/png": "AAAA"}, "metadata": {"image/png": {"alt": "a cat"}}}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [{"cell_type": "code", "outputs": [output]}]}))
    document = new_document("a")
    document += nodes.image(uri=f"_images/{hashlib.sha256(bytes(3)).hexdigest()}.png")
    app = SimpleNamespace(env=SimpleNamespace(docname="a", doc2path=lambda name: tmp_path / f"{name}.ipynb"))
    loaded("conf").describe_figures(app, document)
    assert document[0]["alt"] == "a cat"


def test_docstrings_are_words_items_or_code():
    lines = ["Words *as* `code_`.", "All take", "    a, b  one", "          thing", "    c     two", "", "    x = f(y)"]
    loaded("conf").read_docstring(None, "", "", None, None, lines)
    assert [line for line in lines if line] == [
        r"Words \*as\* \ ``code_``\ .", "All take", "a, b", "   one thing", "c", "   two", "::", "       x = f(y)"]


@pytest.fixture(scope="module")
def browser(site):
    """open(path, width, dark) -> a page in a browser; in the end, no page may have asked for another address."""
    if not find_spec("playwright"):
        pytest.skip("playwright is not installed: pip install 'ldm_mini[site]'")
    from playwright.sync_api import Error, sync_playwright
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            chrome = shutil.which("chromium") or shutil.which("google-chrome")
            chromium = playwright.chromium.launch(executable_path=chrome, args=["--no-sandbox", "--disable-gpu"])
        except Error:
            pytest.skip("there is no Chromium: `playwright install chromium`, or the system's")
        asked, address = [], f"http://127.0.0.1:{server.server_port}/"

        def open_page(path, width=1280, dark=False):
            page = chromium.new_page(viewport={"width": width, "height": 800},
                                     color_scheme="dark" if dark else "light")
            page.set_default_timeout(300_000)  # a busy machine
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address + path)
            return page

        yield open_page
        chromium.close()
        server.shutdown()
        assert [url for url in asked if not url.startswith((address, "data:"))] == []


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.mark.parametrize("name", [path.stem for path in source_notebooks()])
def test_code_never_scrolls_sideways_at_1280(name, browser):
    page = browser(f"notebooks/{name}.html")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = page.evaluate("""Array.from(document.querySelectorAll('pre'), pre => [
        pre.scrollWidth > pre.clientWidth, pre.getClientRects().length > 0,
        Math.max(...pre.textContent.split('\\n').map(line => line.length)), pre.clientWidth])""")
    assert found and [row for row in found if row[0]] == [] and all(shown for _, shown, *_ in found)
    page.close()


def test_a_line_of_code_is_not_broken_at_1280(browser):
    page = browser("notebooks/03_vq_vae.html")
    columns = page.evaluate("""() => {
        const pre = document.querySelector('.cell_input pre'), style = getComputedStyle(pre);
        const ruler = document.createElement('span');
        ruler.textContent = 'x'.repeat(100);
        pre.append(ruler);
        const inside = pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
        return 100 * inside / ruler.getBoundingClientRect().width; }""")
    assert columns >= LONGEST
    page.close()


@pytest.mark.parametrize("path", ["index.html", "notebooks/03_vq_vae.html", "library/quantizer.html",
                                  "library/index.html", "library/released.html"])
def test_a_phone_shows_a_page_in_its_width(path, browser):
    page = browser(path, width=360)
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    page.close()


def test_mathematics_is_set_without_the_web(browser):
    page = browser("notebooks/03_vq_vae.html")
    page.wait_for_selector("mjx-container")
    page.wait_for_function("document.fonts.status === 'loaded'")
    assert page.locator("mjx-merror").count() == 0
    assert page.evaluate("Array.from(document.fonts).some(f => /MJX/.test(f.family) && f.status === 'loaded')")
    page.close()


def test_search_finds_a_notebook(browser):
    page = browser("search.html?q=straight-through")
    page.wait_for_selector("#search-results a[href*='03_vq_vae']")
    page.close()


def test_keys_alone_open_the_contents_and_a_hint(browser):
    page = browser("notebooks/03_vq_vae.html")
    page.keyboard.press("Tab")
    assert "skip" in page.evaluate("document.activeElement.textContent").lower()
    page.locator("button.secondary-toggle").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] .page-toc a")
    page.keyboard.press("Escape")
    hint = page.locator("summary", has_text="Hint").first
    hint.focus()
    page.keyboard.press("Enter")
    assert hint.evaluate("summary => summary.parentElement.open")
    page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_from_its_ground(dark, browser):
    """WCAG AA: 4.5 to 1, or 3 to 1 for large letters."""
    for path in ("index.html", "notebooks/03_vq_vae.html", "library/quantizer.html"):
        page = browser(path, dark=dark)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{'dark' if dark else 'light'}'")
        assert page.evaluate(CONTRAST) == []
        page.close()


CONTRAST = """() => {
    document.getAnimations().forEach(each => each instanceof CSSTransition && each.finish());
    const read = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
    const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
    const ground = element => {
        if (!element) return [255, 255, 255, 1];
        const own = read(getComputedStyle(element).backgroundColor);
        return own[3] === 1 ? own : over(own, ground(element.parentElement)); };
    const linear = v => v <= 0.04045 * 255 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
    const faint = new Set();
    for (const element of document.querySelectorAll('body *')) {
        const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!own || !element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        if (element.closest('mjx-container, script, style, .headerlink')) continue;
        const style = getComputedStyle(element), behind = ground(element);
        const [a, b] = [light(over(read(style.color), behind)), light(behind)];
        const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), size = parseFloat(style.fontSize);
        if (ratio < (size >= 24 || size >= 18.66 && style.fontWeight >= 700 ? 3 : 4.5))
            faint.add([element.tagName, element.className, style.color, behind.join(), ratio.toFixed(2)].join(' '));
    }
    return [...faint].slice(0, 10); }"""
