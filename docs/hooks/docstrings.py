"""MkDocs hook: two things that docstrings write as plain text, and Markdown would miss or mistake.

- `>= 0` at the beginning of a description is a comparison, not a quotation: there are no quotations on this site.
- `arXiv:2002.05709` is a link.
"""

import re
from xml.etree import ElementTree

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority


class _ArXiv(InlineProcessor):
    ANCESTOR_EXCLUDES = ("a",)

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:  # noqa: N802
        link = ElementTree.Element("a", {"href": f"https://arxiv.org/abs/{m.group(1)}"})
        link.text = m.group()
        return link, m.start(), m.end()


class PlainText(Extension):
    """The Markdown extension."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.parser.blockprocessors.deregister("quote")
        md.inlinePatterns.register(_ArXiv(r"arXiv:(\d{4}\.\d{4,5})", md), "arxiv", 100)  # after links, at 160


@event_priority(100)  # before mkdocstrings, which hands the list on to the Markdown of docstrings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension."""
    config.markdown_extensions.append(PlainText())  # type: ignore[arg-type]
    return config
