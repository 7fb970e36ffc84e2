"""Reference texts made from code: what is said once, in the code, cannot disagree with the pages.

`python -m smtpd.reference` writes them, with `--check` it only names those that are stale.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from smtpd.reference.house import house_page
from smtpd.reference.pages import agents_page, config_page, filters_page, metrics_page, replies_page
from smtpd.reference.sample import sample_config
from smtpd.reference.schema import config_schema

TEXTS: Mapping[str, Callable[[], str]] = {
    "config.toml": sample_config,
    "docs/config.md": config_page,
    "docs/config.schema.json": config_schema,
    "docs/filters.md": filters_page,
    "docs/agents.md": agents_page,
    "docs/metrics.md": metrics_page,
    "docs/replies.md": replies_page,
    "docs/house.md": house_page,
}
"""Every file that is made, with what makes its text."""


def stale(top: Path) -> list[str]:
    """Files below the repository's top that are missing or differ from what the code says."""
    return [name for name, make in TEXTS.items() if _read(top / name) != make()]


def write(top: Path) -> list[str]:
    """Make what is stale anew; the names of those files."""
    names = stale(top)
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(TEXTS[name](), encoding="utf-8")
    return names


def _read(file: Path) -> str | None:
    return file.read_text(encoding="utf-8") if file.is_file() else None
