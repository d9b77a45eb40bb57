r"""MkDocs hook: formulas become MathML when the site is built, so pages need no script to show them.

`$...$` within a line and `$$...$$` alone on its lines are formulas, in pages and in docstrings: both pass through the
Markdown extensions of the configuration, to which this hook adds one. Code is left alone. A dollar sign that is
neither code nor a formula is written `\$`.
"""

import re
from itertools import pairwise
from xml.etree import ElementTree

from latex2mathml import converter, exceptions
from markdown import Markdown
from markdown.blockprocessors import BlockProcessor
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.util import STX, AtomicString
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority

_INLINE = r"(?<![\\$])\$(?![\s$])((?:\\.|[^$\\])+?)(?<!\s)\$(?![\d$])"
_STRAY = r"(?<!\\)\$+[^\n]*"
_DISPLAY = re.compile(r"(?:^|\n) *\$\$((?:\\.|[^$\\])+)\$\$ *(?:\n|$)", re.DOTALL)

_REFUSALS = tuple(error for error in vars(exceptions).values() if isinstance(error, type))
# latex2mathml writes what it does not understand as it finds it: too few children, `\name` or `&` as a letter.
_CHILDREN = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "munder": 2, "mover": 2, "msubsup": 3, "munderover": 3}
_LEFTOVER = re.compile(r"[\\&{}]")
_BRACE = re.compile(r"\\[{}]|\\begin\{cases\}")  # what makes a brace that is to be seen

# latex2mathml makes one character of the left and the right bar, and a browser then takes both for operators between
# two things: wide and as high as the line. So bars go through as private characters and come out with their side.
_BARS = {r"\lVert": ("\ue000", "‖"), r"\rVert": ("\ue001", "‖"), r"\lvert": ("\ue002", "|"), r"\rvert": ("\ue003", "|")}
_BAR = re.compile(r"(\\(?:left|right|middle|[bB]igg?[lrm]?)\s*)?(\\[lr][vV]ert)(?![a-zA-Z])")


def mathml(tex: str, *, display: bool) -> ElementTree.Element:
    """The `math` element of a formula; `ValueError` with the reason where latex2mathml cannot make a correct one."""
    if STX in tex:  # Markdown's mark for something already taken out of the text
        raise ValueError("it holds code, or it is prose between two dollar signs; write those as \\$")
    braces = re.sub(r"\\.", "", tex, flags=re.DOTALL)
    if braces.count("{") != braces.count("}"):
        raise ValueError("its braces do not balance")
    bars = _BAR.sub(lambda m: m.group() if m.group(1) else _BARS[m.group(2)][0], tex)
    try:
        text = converter.convert(bars, display="block" if display else "inline", xmlns="")
    except _REFUSALS as error:
        raise ValueError(f"latex2mathml says {type(error).__name__}") from error
    try:
        math = ElementTree.fromstring(text.replace(' xmlns=""', ""))
    except ElementTree.ParseError as error:
        raise ValueError("latex2mathml makes malformed MathML of it") from error
    for element in math.iter():
        if len(element) != _CHILDREN.get(element.tag, len(element)):
            raise ValueError(f"an argument is missing in a {element.tag}")
        if element.get("linebreak") is not None:
            raise ValueError(r"\\ outside a matrix: browsers show no line break there; write two formulas")
        if element.text and _LEFTOVER.search(element.text) and not (element.text in "{}" and _BRACE.search(tex)):
            raise ValueError(f"latex2mathml does not know {element.text!r}")
        element.text = AtomicString(element.text or "")  # or Markdown would look for emphasis in it
    _turn_bars(math)
    _set_forms(math)
    _space_functions(math)
    math.set("alttext", " ".join(tex.split()))
    return math


def _turn_bars(math: ElementTree.Element) -> None:
    for name, (private, bar) in _BARS.items():
        for element in math.iter():
            if element.text == private:
                element.tag, element.text = "mo", AtomicString(bar)
                element.attrib = {"stretchy": "false", "form": "prefix" if name.startswith(r"\l") else "postfix"}


def _set_forms(math: ElementTree.Element) -> None:
    r"""Say which side \bigl( and \bigr) are on, and that a minus after an operator is a sign."""
    for element in math.iter("mo"):
        if element.get("minsize") is not None and element.text in ("(", ")", "[", "]"):
            element.set("form", "prefix" if element.text in "([" else "postfix")
    for row in math.iter("mrow"):
        for last, element in pairwise(row):
            if last.tag == element.tag == "mo" and element.text == "−" and last.text in ("=", ",", "(", "←"):
                element.set("form", "prefix")


def _space_functions(math: ElementTree.Element) -> None:
    """Thin spaces around log, cos, ..., as TeX sets them: none beside an operator or before a parenthesis."""
    for row in [element for element in math.iter() if element.tag in ("mrow", "mtd", "mstyle")]:
        spaced: list[ElementTree.Element] = []
        for element in row:
            last = spaced[-1] if spaced else None
            if (
                last is not None
                and "mo" not in (last.tag, element.tag)
                and (_is_function(last) or _is_function(element))
            ):
                spaced.append(ElementTree.Element("mspace", {"width": "0.167em"}))
            spaced.append(element)
        row[:] = spaced


def _is_function(element: ElementTree.Element) -> bool:
    return element.tag == "mi" and len(element.text or "") > 1


def _convert(tex: str, *, display: bool) -> ElementTree.Element:
    try:
        return mathml(tex, display=display)
    except ValueError as error:
        # MkDocs names the page in the line before
        raise PluginError(f"Cannot convert the formula ${' '.join(tex.split())}$ to MathML: {error}.") from error


class _Inline(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:  # noqa: N802
        return _convert(m.group(1), display=False), m.start(), m.end()


class _Stray(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element, int, int]:  # noqa: N802
        raise PluginError(
            f"A dollar sign that opens no formula, before: {m.group()}\nDisplay formulas need lines of their own, "
            r"formulas in text must not begin or end with a space, other dollar signs are written \$."
        )


class _Display(BlockProcessor):
    def test(self, parent: ElementTree.Element, block: str) -> bool:
        return _DISPLAY.search(block) is not None

    def run(self, parent: ElementTree.Element, blocks: list[str]) -> None:
        block = blocks.pop(0)
        match = _DISPLAY.search(block)
        assert match is not None  # test() said so
        if match.start() > 0:
            self.parser.parseBlocks(parent, [block[: match.start()]])
        ElementTree.SubElement(parent, "div", {"class": "math"}).append(_convert(match.group(1), display=True))
        if match.end() < len(block):
            blocks.insert(0, block[match.end() :])


class MathML(Extension):
    """The Markdown extension: formulas are taken out after code and before escapes, emphasis and headings."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.ESCAPED_CHARS.append("$")
        md.parser.blockprocessors.register(_Display(md.parser), "mathml", 75)  # indented code is at 80, headings 70
        md.inlinePatterns.register(_Inline(_INLINE, md), "mathml", 185)  # code is at 190, escapes 180
        md.inlinePatterns.register(_Stray(_STRAY, md), "mathml_stray", 179)


@event_priority(100)  # before mkdocstrings, which hands the list on to the Markdown of docstrings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the extension."""
    config.markdown_extensions.append(MathML())  # type: ignore[arg-type]
    return config
