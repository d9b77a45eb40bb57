"""Write torch.inv, which gives the pages their links to PyTorch, from torch.tsv beside it.

The inventory is our own short list, committed: building the site needs no network, and a link that breaks breaks here.
"""

from pathlib import Path

from mkdocstrings import Inventory, InventoryItem

FOLDER = Path(__file__).parent


def read(table: Path) -> list[InventoryItem]:
    rows = [line.split("\t") for line in table.read_text().splitlines() if line and not line.startswith("#")]
    return [InventoryItem(name, "py", role, uri.replace("$", name)) for name, role, uri in rows]


if __name__ == "__main__":
    inventory = Inventory(read(FOLDER / "torch.tsv"), project="torch", version="stable")
    (FOLDER / "torch.inv").write_bytes(inventory.format_sphinx())
