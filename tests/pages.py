"""Pages of the manual: what stands in their fenced blocks, and their programs as modules."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

DOCS = Path(__file__).resolve().parent.parent / "docs"


class Page:
    """A page below docs/, by its name there."""

    def __init__(self, name: str) -> None:
        self.text = (DOCS / name).read_text(encoding="utf-8")

    def blocks(self, language: str) -> list[str]:
        """The blocks in a language, in order."""
        return re.findall(rf"^```{language}\n(.*?)^```", self.text, re.MULTILINE | re.DOTALL)

    def program(self, number: int, directory: Path) -> ModuleType:
        """The n-th program in Python as it stands there, from a file of its own in the directory."""
        path = directory / f"program{number}.py"
        path.write_text(self.blocks("python")[number])
        spec = spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
