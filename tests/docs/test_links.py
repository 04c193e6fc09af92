"""Links, anchors and named files of the documents exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.bundle_runs import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bundles/*/docs/*.md")]
)
# Pages of the repository's host, relative to a file of it, as GitHub resolves them.
HOST_PAGES = ("../../actions/",)
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request) -> Path:
    return request.param


def anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    found: dict[str, int] = {}
    for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = re.sub(r"[^\w -]", "", plain).lower().strip().replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        if count:
            found[f"{slug}-{count}"] = 1
    return set(found)


def test_relative_links_lead_to_files_and_headings(document):
    text = CODE.sub("", document.read_text())
    # The text between the brackets may have been code.
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link) or link.startswith(HOST_PAGES):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        assert target.is_relative_to(ROOT), link
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_lines_of_prose_wrap_at_100():
    for document in DOCUMENTS:
        if document.is_relative_to(ROOT / "bundles"):  # wrapped by those who write the configs
            continue
        text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
        # Tables, pictures and headings cannot wrap.
        lines = [line for line in text.splitlines() if not re.match(r"\||!?\[.*\)$|#", line)]
        assert [line for line in lines if len(line) > 100] == [], document


def test_documents_that_code_and_configs_name_exist():
    sources = [
        *DOCUMENTS,
        *(path for suffix in ("py", "yaml", "j2") for path in ROOT.glob(f"liverseg/**/*.{suffix}")),
        *ROOT.glob("monailabel_app/*.py"),
        *ROOT.glob("monailabel_app/lib/**/*.py"),
        *ROOT.glob("benchmarks/*.py"),
        *ROOT.glob("bundles/*/configs/*.json"),
    ]
    missing = {
        f"{source.relative_to(ROOT)}: {name}"
        for source in sources
        for name in re.findall(
            r"(?<![\w/.-])docs/[\w/.-]+\.(?:md|png|yaml|sbatch)", source.read_text()
        )
        if not (ROOT / name).is_file() and not (source.parents[1] / name).is_file()
    }
    assert missing == set()


def test_the_site_has_every_page():
    def pages(entry) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [
            page
            for each in (entry.values() if isinstance(entry, dict) else entry)
            for page in pages(each)
        ]

    listed = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    written = [str(path.relative_to(ROOT / "docs")) for path in ROOT.glob("docs/**/*.md")]
    assert sorted(listed) == sorted(written)


def test_every_picture_is_shown():
    shown = "".join(path.read_text() for path in DOCUMENTS)
    unused = [path.name for path in ROOT.glob("docs/pictures/*") if path.name not in shown]
    assert unused == []


def test_papers_are_named_by_author_and_year():
    """Letters are part of names of files and tables only."""
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        assert re.findall(r"\b[Pp]apers? [A-E]\b", path.read_text()) == [], path
