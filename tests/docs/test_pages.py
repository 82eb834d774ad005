"""README.md and the pages of docs/: length, links, pictures, navigation, and the built site."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import count, pairwise
from pathlib import Path

import pytest
import yaml
from markdown.extensions.toc import slugify

from tests.docs.pages import PAGES, README, ROOT, prose

CONFIGURATION = ROOT / "mkdocs.yml"
WORDS = 1300
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"")
_LIST = re.compile(r"[-*] |\d+\. ")


def test_readme__is_short() -> None:
    assert len(README.read_text().split()) <= WORDS


def anchors(text: str) -> set[str]:
    """Of a page's headings, as MkDocs makes them."""
    made: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE):
        anchor = slugify(re.sub(r"`|\[|\]\([^)]*\)", "", heading), "-")
        made.add(next(name for i in count() if (name := f"{anchor}_{i}" if i else anchor) not in made))
    return made


@pytest.mark.parametrize("page", PAGES)
def test_links__lead_somewhere(page: str) -> None:
    for link in (a or b for a, b in _LINK.findall(prose(PAGES[page]))):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.is_file(), link
        assert not anchor or anchor in anchors(file.read_text()), link
        assert page == "README.md" or file.resolve().is_relative_to(ROOT / "docs"), f"{link} is not in the site"


@pytest.mark.parametrize("page", PAGES)
def test_page__is_read_the_same_by_every_markdown(page: str) -> None:
    fences = [line.strip() for line in PAGES[page].splitlines() if line.strip().startswith("```")]
    assert all(fence == "```" for fence in fences[1::2]) and len(fences) % 2 == 0, "a block is not closed"
    lines = prose(PAGES[page]).splitlines()
    assert sum(line.startswith("# ") for line in lines) == 1
    for before, line in pairwise(lines):
        begins = _LIST.match(line) and before.strip() and not _LIST.match(before) and not before.startswith(" ")
        assert not begins, f"an empty line must stand before the list: {line}"
    assert page == "README.md" or "```\n\n```" not in PAGES[page]


def test_navigation__names_every_page_once() -> None:
    named = re.findall(r"\b(\w+\.md)\b", yaml.safe_dump(yaml.safe_load(CONFIGURATION.read_text())["nav"]))
    assert sorted(named) == sorted(Path(page).name for page in PAGES if page != "README.md")


def test_readme__its_table_is_that_of_the_results() -> None:
    """The means and deviations of the page's first group, 4 labelled cases."""
    pages = {name: _table(name) for name in ("017_linear", "017")}
    rows = [re.split(r" *\| *", line.strip("| ")) for line in README.read_text().splitlines() if "±" in line]
    rows = [row for row in rows if len(row) >= 2]
    (_, *random), (_, *random_encoder), *of_methods = rows
    assert random == [pages["017_linear"]["random_decoder"][2], pages["017"]["random"][2]]
    assert random_encoder == [pages["017_linear"]["random_encoder"][2]]
    assert len(of_methods) == 7
    for start, linear, tuned, *lead in of_methods:
        method = start.strip("`")
        assert linear == pages["017_linear"][method][2] and tuned == pages["017"][method][2]
        assert lead == [pages["017"][method][3].split(" ")[0]]


def _table(name: str) -> dict[str, list[str]]:
    """Cells of a method's row in the first table of a section of docs/results.md, without marks of a winner."""
    section = PAGES["docs/results.md"].split(f"<!-- table {name} -->")[1].split("<!-- end -->")[0]
    first = section.split("**4 labelled cases**")[1].split("\n\n**")[0]
    rows = [line.strip("|").replace("**", "").split("|") for line in first.splitlines() if line.startswith("| ")]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_site__is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?([^\"\s>]+)|<link\b[^>]*\bhref=\"?([^\"\s>]+)",
                            page.read_text())  # fmt: skip
        assert not [link for links in loaded for link in links if link.startswith(("http:", "https:", "//"))], page
