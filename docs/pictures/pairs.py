"""Draw docs/assets/pairs.svg: what each row of a batch asks of each other row, in three losses.

    python docs/pictures/pairs.py

From the definitions, by hand: five images of two classes in two domains and one without a label, two views of each.
"""

from pathlib import Path

IMAGES = [("A", 0), ("A", 0), ("A", 1), ("B", 0), ("B", 1), ("?", 1)]  # class and domain; "?" is no label
ROWS = [(image, view) for view in range(2) for image in range(len(IMAGES))]
COLOURS = {"attracts": "#2a9d8f", "repels": "#e9c46a", "left out": "#ffffff", "itself": "#adb5bd"}
CELL, LEFT, TOP, GAP = 22, 44, 64, 40


def nt_xent(i: tuple[int, int], k: tuple[int, int]) -> str:
    """Only another view of the image attracts."""
    return "itself" if i == k else "attracts" if i[0] == k[0] else "repels"


def same_class(i: tuple[int, int], k: tuple[int, int]) -> bool:
    """Of one label, or of one image."""
    return i[0] == k[0] or (IMAGES[i[0]][0] == IMAGES[k[0]][0] != "?")


def sup_con(i: tuple[int, int], k: tuple[int, int]) -> str:
    """The class attracts."""
    return "itself" if i == k else "attracts" if same_class(i, k) else "repels"


def cross_domain(i: tuple[int, int], k: tuple[int, int]) -> str:
    """The class attracts in other domains, and is left out in its own."""
    if same_class(i, k) and i[0] != k[0] and IMAGES[i[0]][1] == IMAGES[k[0]][1]:
        return "left out"
    return sup_con(i, k)


def text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "middle") -> str:
    """An element of text."""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def main() -> None:
    """Write the picture."""
    panels = [("NT-Xent", nt_xent), ("SupCon", sup_con), ("cross-domain", cross_domain)]
    side = CELL * len(ROWS)
    width, height = LEFT + len(panels) * (side + GAP), TOP + side + 54
    parts = []
    for number, (title, relation) in enumerate(panels):
        x0 = LEFT + number * (side + GAP)
        parts.append(text(x0 + side / 2, 18, title, size=16))
        for column, row in enumerate(ROWS):
            name, domain = IMAGES[row[0]]
            parts.append(text(x0 + (column + 0.5) * CELL, TOP - 8, f"{name}{domain}", size=11))
            if number == 0:
                parts.append(text(x0 - 6, TOP + (column + 0.68) * CELL, f"{name}{domain}", size=11, anchor="end"))
        for view in range(2):
            middle = x0 + (view + 0.5) * side / 2
            parts.append(text(middle, TOP - 24, f"view {view + 1}", size=11))
        for r, i in enumerate(ROWS):
            for c, k in enumerate(ROWS):
                colour = COLOURS[relation(i, k)]
                parts.append(
                    f'<rect x="{x0 + c * CELL}" y="{TOP + r * CELL}" width="{CELL - 1}" height="{CELL - 1}" '
                    f'fill="{colour}" stroke="#dee2e6" stroke-width="0.6"/>'
                )
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 110
        parts.append(f'<rect x="{x}" y="{TOP + side + 22}" width="14" height="14" fill="{colour}" stroke="#868e96"/>')
        parts.append(text(x + 20, TOP + side + 34, name, anchor="start"))
    style = 'font-family="sans-serif" fill="#212529"'
    body = "\n".join(parts)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>\n'
        f'<rect width="{width}" height="{height}" fill="#f8f9fa"/>\n{body}\n</svg>\n'
    )
    (Path(__file__).parents[1] / "assets" / "pairs.svg").write_text(svg)


if __name__ == "__main__":
    main()
