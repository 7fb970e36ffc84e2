"""The distribution: a wheel and an editable install both bring three packages that work."""

import json
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("smtpd", "filters", "delivery_agents")
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]

LOOK = """
import importlib, importlib.metadata, json, sys
groups = sys.argv[2:]
print(json.dumps({
    "files": {name: importlib.import_module(name).__file__ for name in sys.argv[1].split(",")},
    "points": {
        group: {point.name: point.load().__module__ for point in importlib.metadata.entry_points(group=group)}
        for group in groups
    },
}))
"""


@pytest.fixture
def source(tmp_path: Path, workshop: Any) -> Path:
    """A copy of what the distribution is made from."""
    workshop.copy(tmp_path / "source", *PACKAGES, "pyproject.toml", PROJECT["readme"], *PROJECT["license-files"])
    return tmp_path / "source"


def look(workshop: Any, python: Path, folder: Path) -> dict[str, Path]:
    """Where the packages come from, seen from another environment, once its entry points proved right."""
    groups = PROJECT["entry-points"]
    seen = workshop.run(python, "-I", "-c", LOOK, ",".join(PACKAGES), *groups, folder=folder)
    found = json.loads(seen)
    assert found["points"] == {
        group: {name: value.partition(":")[0] for name, value in points.items()}
        for group, points in groups.items()
    }
    return {name: Path(path) for name, path in found["files"].items()}


def version_lines(workshop: Any, python: Path, folder: Path) -> list[str]:
    by_module = workshop.run(python, "-m", "smtpd", "--version", folder=folder)
    by_script = workshop.run(python.parent / "smtpd", "--version", folder=folder)
    return [by_module.strip(), by_script.strip()]


def test_wheel_holds_everything_and_works_elsewhere(source: Path, tmp_path: Path, workshop: Any) -> None:
    # Without further options the wheel is built from the source distribution, so that is tested, too.
    workshop.run(
        sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path, source, folder=tmp_path
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {str(path.relative_to(source)) for name in PACKAGES for path in (source / name).rglob("*.py")}
    assert ours | {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in names)

    python = workshop.environment(tmp_path / "environment", wheel)
    files = look(workshop, python, tmp_path)
    assert all(tmp_path / "environment" in path.parents for path in files.values())
    assert all(PROJECT["version"] in line for line in version_lines(workshop, python, tmp_path))


def test_editable_install_uses_the_checkout(source: Path, tmp_path: Path, workshop: Any) -> None:
    python = workshop.environment(tmp_path / "environment", "--editable", source)
    files = look(workshop, python, tmp_path)
    assert files == {package: source / package / "__init__.py" for package in PACKAGES}
    assert all(PROJECT["version"] in line for line in version_lines(workshop, python, tmp_path))
