"""The signs of a kept project agree with it: changes, citation, cards, forms, the container, the page in Chinese."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from huggingface_hub import metadata_load

import course
import ldm_mini

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "README.zh.md", "CHANGELOG.md", ".github/CONTRIBUTING.md"]
CARDS = sorted((ROOT / "data/weights").glob("*/README.md"))
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"]
# the course, and what tools look for in no other place
TOP = {"notebooks", "ldm_mini", "data", "tests", "environment.yml", "README.md", "README.zh.md", "LICENSE",
       "CITATION.cff", "CHANGELOG.md", "course.py", "conftest.py", "pyproject.toml", "constraints.txt",
       "constraints-oldest.txt", ".github", ".ci", ".devcontainer", ".gitignore", ".gitattributes"}


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git clone")
def test_nothing_else_lies_at_the_top():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {name.split("/")[0] for name in names.split("\0") if name} <= TOP


def test_one_version():
    assert re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.M)[0] == ldm_mini.__version__
    assert yaml.safe_load(text("CITATION.cff"))["version"] == ldm_mini.__version__


def test_the_citation_names_the_course_and_the_paper():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation) and citation["license"] == "MIT"
    paper, = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == ["Rombach", "Blattmann", "Lorenz", "Esser",
                                                                       "Ommer"]
    assert paper["url"] in text("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", text(page))
    assert [link for link in links if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_files_that_a_page_names_exist(page):
    scripts = re.findall(r"(?:python3?|py) ((?!-)[\w/]+\.py|tests/\w+)", text(page))
    scripts += re.findall(r"`((?:ldm_mini|data|tests|notebooks)/[\w./]*)`", text(page))
    assert [name for name in scripts if not (ROOT / name).exists()] == []
    words = re.findall(r"course\.py ([a-z]+)", text(page))
    assert set(words) <= set(course.COMMANDS)


def test_every_shipped_model_has_a_card():
    shipped = {path.parent for path in (ROOT / "data/weights").glob("*/config.json")}
    assert shipped == {card.parent for card in CARDS}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.parent.name)
def test_cards_begin_as_the_hub_reads_them(card):
    header = metadata_load(card)
    assert header["license"] == "mit" and header["library_name"] == ldm_mini.__name__
    assert header["pipeline_tag"] in ("text-to-image", "image-to-image", "text-to-video")
    tags = header["tags"]
    assert {"latent-diffusion", "arxiv:2112.10752"} <= set(tags) and len(set(tags)) == len(tags)
    body = card.read_text(encoding="utf-8").split("---\n", 2)[2]
    assert body.startswith(f"\n# {card.parent.name}\n")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_issue_forms_are_complete(form):
    asked = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "labels", "body"} == set(asked)
    fields = [field for field in asked["body"] if field["type"] != "markdown"]
    assert {field["type"] for field in fields} <= {"input", "textarea", "dropdown", "checkboxes"}
    names = [field["id"] for field in fields]
    assert len(set(names)) == len(names) and all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)


def test_the_container_sets_the_course_up():
    container = json.loads(text(".devcontainer/devcontainer.json"))
    assert course.check_python(map(int, container["image"].split(":")[1].split("."))) is None
    _, script, *words = shlex.split(container["postCreateCommand"])
    assert (ROOT / script).exists() and course.parse(words) == ("edition", "cpu", [course.MINE])
    python = container["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python.endswith(course.venv_python(windows=False).relative_to(ROOT).as_posix())


def test_the_chinese_page_lists_the_same_notebooks_and_commands():
    english, chinese = text("README.md"), text("README.zh.md")
    listed = [re.findall(r"^\| (\d\d) \| \[[^]]+\]\((\S+?)\)", page, re.M) for page in (english, chinese)]
    assert listed[0] == listed[1] != []
    rows = [re.findall(r"^\| (`python3 course.py \w+` \| `py course.py \w+`)", page, re.M)
            for page in (english, chinese)]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    assert "](README.zh.md)" in english and "](README.md)" in chinese


def test_the_glossary_is_the_courses():
    """A hundred terms, each once; each is a word that notebooks or the library use, each number a notebook's."""
    glossary = re.findall(r"^\| ([^|]+) \| ([^|]+) \| (\d\d) \|$", text("README.zh.md").split("## 术语表")[1], re.M)
    terms = [term for term, _, _ in glossary]
    assert len(terms) == len(set(terms)) == 100
    notebooks = {path.name[:2]: json.loads(path.read_text("utf-8")) for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {number for *_, number in glossary} <= set(notebooks)
    words = ["".join(cell["source"]) for notebook in notebooks.values() for cell in notebook["cells"]]
    words += [path.read_text("utf-8") for path in (ROOT / "ldm_mini").rglob("*.py")]
    used = " ".join("\n".join(words).lower().split())
    assert [term for term in terms if term.lower() not in used] == []
    assert all(re.search(r"[\u4e00-\u9fff]|Transformer|U-Net", chinese) for _, chinese, _ in glossary)
