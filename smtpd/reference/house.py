"""The page that leads through the house: every file in one line, the first sentence of its docstring."""

import ast
from collections.abc import Iterator
from pathlib import Path

import smtpd
from smtpd.reference.describe import one_line
from smtpd.reference.pages import MADE

TOP = Path(smtpd.__file__).parent.parent

_HOUSE = """\
# The house

Which file does what, in its own words. How they work together is in [flow.md](flow.md); the folders of the whole
repository are in [CONTRIBUTING.md](../CONTRIBUTING.md).
"""


def house_page() -> str:
    """docs/house.md."""
    tables = [_HOUSE.strip(), MADE]
    for package in ("smtpd", "filters", "delivery_agents"):
        for folder in sorted({file.parent for file in (TOP / package).rglob("*.py")}):
            rows = "\n".join(_rows(folder))
            tables.append(f"## {folder.relative_to(TOP).as_posix()}/\n\n| file | what it is |\n|---|---|\n{rows}")
    return "\n\n".join(tables) + "\n"


def _rows(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.py")):
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        sentence = one_line(docstring.partition("\n\n")[0]).replace("|", "\\|")
        name = file.relative_to(TOP).as_posix()
        yield f"| [{file.name}](../{name}) | {sentence} |"
