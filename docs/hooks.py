"""Hooks of mkdocs: links to files outside docs/ work on the repository's pages, not on the site."""

from __future__ import annotations

import posixpath
import re

LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page, **_) -> str:
    """Replace each link that leaves docs/ by its text and the path in the repository."""

    def replace(match: re.Match) -> str:
        text, target = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), target))
        return f"{text} (`{path.removeprefix('../')}`)" if path.startswith("../") else match[0]

    return LINK.sub(replace, markdown)
