"""The house rules that a machine can check: see CONTRIBUTING.md for the reasons."""

import ast
import re
import tomllib
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
PACKAGES = ("smtpd", "filters", "delivery_agents")
LONGEST_FILE = 400
LONGEST_FUNCTION = 50
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "misc"}
# "250 ", "550-5.7.1": a reply as it stands on the wire. Only code that answers may hold one, and in one file.
REPLY_LINE = re.compile(r"[2345][0-5]\d[ -](?=\S|$)")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (TOP / folder).rglob("*.py")]
    return sorted(path for path in found if not {"node_modules", "__pycache__"} & set(path.parts))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def named(path: Path) -> str:
    return str(path.relative_to(TOP))


PRODUCT = python_files(*PACKAGES)
EVERYTHING = python_files(*PACKAGES, "tests", "bench", "scripts")


def each(paths: Iterable[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", [pytest.param(path, id=named(path)) for path in paths])


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


@each(python_files("smtpd"))
def test_server_imports_no_concrete_filter_and_no_concrete_agent(path: Path) -> None:
    roots = {(line, name.partition(".")[0]) for line, name in imported_modules(parse(path))}
    assert not [found for found in roots if found[1] in ("filters", "delivery_agents", "tests", "bench")]


@each(python_files("filters", "delivery_agents"))
def test_plugins_import_the_server_and_not_each_other(path: Path) -> None:
    own = path.relative_to(TOP).parts[0]
    others = {"filters", "delivery_agents", "tests", "bench"} - {own}
    assert not [found for found in imported_modules(parse(path)) if found[1].partition(".")[0] in others]


def room_of(module: str) -> str:
    """A package is one room, and what a session carries for the policy makes the model a part of it."""
    room = ".".join(module.split(".")[:2])
    return "smtpd.policy" if room in ("smtpd.model", "smtpd.services") else room


def entered_rooms(path: Path) -> Iterator[str]:
    modules = {".".join(found.relative_to(TOP).with_suffix("").parts) for found in python_files("smtpd")}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from inside or {node.module}


def test_no_room_leads_back_to_itself() -> None:
    rooms: dict[str, set[str]] = {}
    for path in python_files("smtpd"):
        room = room_of(".".join(path.relative_to(TOP).with_suffix("").parts))
        entered = {room_of(name) for name in entered_rooms(path) if name.startswith("smtpd.")}
        rooms.setdefault(room, set()).update(entered - {room})
    TopologicalSorter(rooms).prepare()  # CycleError names the rooms


@each(EVERYTHING)
def test_file_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@each(EVERYTHING)
def test_function_fits_on_a_screen(path: Path) -> None:
    sizes = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions(parse(path))]
    assert not [found for found in sizes if found[1] > LONGEST_FUNCTION]


def undocumented(tree: ast.Module) -> Iterator[str]:
    if ast.get_docstring(tree) is None:
        yield "the file itself"
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            yield from undocumented_below(node, "")


def undocumented_below(node: Function | ast.ClassDef, prefix: str) -> Iterator[str]:
    if node.name.startswith("_"):
        return
    if ast.get_docstring(node) is None and not speaks_for_itself(node):
        yield prefix + node.name
    for child in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(child, Function | ast.ClassDef):
            yield from undocumented_below(child, f"{prefix}{node.name}.")


def speaks_for_itself(node: Function | ast.ClassDef) -> bool:
    # A setter, an overload or an @override says nothing that its first definition does not say,
    # and a member of a protocol that is just `...` says it with its name and type.
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    is_stub = isinstance(node, Function) and [ast.unparse(statement) for statement in node.body] == ["..."]
    return is_stub or any(mark.endswith((".setter", "override", "overload")) for mark in marks)


@each(PRODUCT)
def test_everything_public_says_what_it_is(path: Path) -> None:
    assert not list(undocumented(parse(path)))


def reply_literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    prose = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            value = node.value
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            if isinstance(text, str) and REPLY_LINE.match(text):
                yield node.lineno, text


def docstrings(tree: ast.Module) -> set[int]:
    # Any string that stands alone as a statement, so that attribute docstrings are among them.
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def reply_calls(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "Reply":
            yield node.lineno, ast.unparse(node)


@each(path for path in PRODUCT if path != TOP / "smtpd" / "replies.py")
def test_what_a_client_can_hear_stands_in_replies_alone(path: Path) -> None:
    tree = parse(path)
    assert not [*reply_literals(tree), *reply_calls(tree)]


@pytest.mark.parametrize(
    "source",
    ["x = b'250 2.0.0 Ok\\r\\n'", "x = '550 5.1.1 no'", "x = f'421-{name}'", "x = Reply('a', 250, '', '')"],
)
def test_reply_outside_replies_is_found(source: str) -> None:
    tree = ast.parse(source)
    assert [*reply_literals(tree), *reply_calls(tree)]


@pytest.mark.parametrize("source", ['"""250 is said last."""', "x = 'RFC 5321'", "x = 'at 250 MB'", "x = '64 KiB'"])
def test_prose_is_not_mistaken_for_a_reply(source: str) -> None:
    assert not list(reply_literals(ast.parse(source)))


@each(EVERYTHING)
def test_no_exception_is_swallowed(path: Path) -> None:
    handlers = [node for node in ast.walk(parse(path)) if isinstance(node, ast.ExceptHandler)]
    assert not [node.lineno for node in handlers if all(is_nothing(statement) for statement in node.body)]


def is_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


@each(EVERYTHING)
def test_module_is_named_after_what_it_holds(path: Path) -> None:
    assert not VAGUE_NAMES & {path.stem, *path.relative_to(TOP).parts[:-1]}


def test_tests_are_no_package() -> None:
    assert not list((TOP / "tests").rglob("__init__.py"))


def declared_entry_points() -> list[tuple[str, str, str]]:
    project = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    return [(group, name, value) for group, points in groups.items() for name, value in points.items()]


@pytest.mark.parametrize(("group", "name", "value"), declared_entry_points())
def test_declared_entry_point_leads_somewhere(group: str, name: str, value: str) -> None:
    module, _, attribute = value.partition(":")
    found = getattr(import_module(module), attribute)
    assert callable(found), (group, name)


@pytest.mark.parametrize("value", [value for group, _, value in declared_entry_points() if group != "console_scripts"])
def test_plugin_carries_its_own_manual_page(value: str) -> None:
    source = TOP.joinpath(*value.partition(":")[0].split(".")).with_suffix(".py")
    assert len((ast.get_docstring(parse(source)) or "").splitlines()) >= 3
