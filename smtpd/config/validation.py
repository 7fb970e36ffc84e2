"""Turn raw tables into a `Config`, collecting every mistake; what is wrong is left out and the rest goes on."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from smtpd import plugins
from smtpd.config.models import AuthOptions, Config
from smtpd.config.problems import Finding, Path, closest
from smtpd.config.schema import GROUPS, Tree, is_plugin_table, option_names, plugin_type, table_class

_STAND_INS: Mapping[str, object] = {"hostname": "localhost"}
_MAX_ROUNDS = 100


@dataclass(slots=True)
class Draft:
    """What came out: the configuration without its wrong parts, and what was wrong."""

    config: Config | None
    findings: list[Finding]
    broken: set[Path] = field(default_factory=set)
    """Places that were left out of `config`."""
    names: dict[str, frozenset[str]] = field(default_factory=dict)
    """Names of agents, filters, listeners and auth providers that were written down, right or wrong."""

    def is_whole(self, *path: str) -> bool:
        """Whether nothing at or below a place was left out."""
        return not any(found[: len(path)] == path or path[: len(found)] == found for found in self.broken)


def validate(tree: Tree) -> Draft:
    """Check all tables; the tree is used up."""
    draft = Draft(None, [], set(), {name: _table_names(tree, name) for name in (*GROUPS, "listeners")})
    for name in GROUPS:
        group = tree.get(name)
        if isinstance(group, dict):
            _replace_plugin_tables(name, group, tree, draft)
    for round_number in range(_MAX_ROUNDS):
        try:
            draft.config = Config.model_validate(tree)
            break
        except ValidationError as error:
            for details in error.errors(include_url=False, include_input=True):
                path = _inside(details, tree)
                if round_number == 0:
                    draft.findings.append(_finding(details, path, tree))
                draft.broken.add(_prune(tree, path, details["type"] == "missing"))
    draft.findings = _merged(draft.findings)
    return draft


def _table_names(tree: Tree, name: str) -> frozenset[str]:
    group = tree.get(name)
    found = group if isinstance(group, dict) else {}
    return frozenset(key for key in found if name != "auth" or key not in AuthOptions.model_fields)


def _replace_plugin_tables(name: str, group: Tree, tree: Tree, draft: Draft) -> None:
    """Put each plug-in's own options in the place of its raw table."""
    for key in list(group):
        path = (name, key)
        table = group[key]
        if not is_plugin_table(path):
            continue
        if name == "auth" and not isinstance(table, dict):
            found = [Finding(path, "unknown key", closest(key, AuthOptions.model_fields))]
        elif isinstance(table, dict):
            found = list(_replace_plugin_table(path, table, group, tree))
        else:
            continue
        if found:
            draft.findings += found
            draft.broken.add(path)
            del group[key]


def _replace_plugin_table(path: Path, table: Tree, group: Tree, tree: Tree) -> Iterator[Finding]:
    entry_points = GROUPS[str(path[0])]
    kind = plugin_type(path, table)
    if not isinstance(kind, str):
        yield Finding((*path, "type"), f"must be set; there is {_listed(plugins.names(entry_points))}")
        return
    try:
        options = plugins.options_class(entry_points, kind)
    except plugins.UnknownPlugin as error:
        known = plugins.names(entry_points)
        guess = closest(kind, known)
        yield Finding((*path, "type"), str(error) + ("" if guess else f"; there is {_listed(known)}"), guess)
        return
    except plugins.BrokenPlugin as error:
        yield Finding((*path, "type"), str(error))
        return
    values = {**table, "type": kind}
    if "type" not in options.model_fields:
        del values["type"]
    try:
        group[str(path[-1])] = options.model_validate(values)
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=True):
            place = (*path, *_inside(details, table))
            yield _finding(details, place, tree)
    except (Exception, SystemExit) as error:  # whatever a stranger's validators raise
        yield Finding(path, f"cannot be read: {type(error).__name__}: {error}")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none installed"


def _inside(details: ErrorDetails, table: object) -> Path:
    """The part of pydantic's location that the operator wrote; it also names members of unions and the like."""
    path: list[str | int] = []
    for key in details["loc"]:
        inner = _items(table)
        if key not in inner:
            break
        table = inner[key]
        path.append(key)
    if details["type"] == "missing":
        path.append(details["loc"][-1])
    return tuple(path)


def _items(table: object) -> Mapping[object, object]:
    if isinstance(table, list):
        return dict(enumerate(table))
    return table if isinstance(table, dict) else {}


def _finding(details: ErrorDetails, path: Path, tree: Tree) -> Finding:
    kind = details["type"]
    if kind == "extra_forbidden":
        options = table_class(path[:-1], tree)
        return Finding(path, "unknown key", closest(path[-1], option_names(options)) if options else None)
    if kind == "missing":
        return Finding(path, "must be set")
    if kind == "value_error":
        return Finding(path, str(details.get("ctx", {}).get("error", "is not valid")))
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return Finding(path, "must be a table")
    if kind == "literal_error":
        expected = str(details["ctx"]["expected"])
        known = expected.replace(" or ", ", ").replace("'", "").split(", ")
        guess = closest(details["input"], known)
        return Finding(path, f"must be {expected}".replace("'", '"'), guess)
    return Finding(path, plain_words(details["msg"]))


def plain_words(message: str) -> str:
    """Pydantic's sentence without its subject, as ours go on behind the key."""
    for start in ("Input should ", "Value should "):
        if message.startswith(start):
            return "must " + message[len(start) :].replace("be a valid ", "be a ").replace("a integer", "an integer")
    return message[:1].lower() + message[1:]


def _prune(tree: Tree, path: Path, missing: bool) -> Path:
    """Leave out what is wrong: the key, or the whole table where a key is missing; say what went."""
    if len(path) == 1 and missing:
        tree[str(path[0])] = _STAND_INS[str(path[0])]
        return path
    path = path[:-1] if missing else path
    cut = next((number for number, key in enumerate(path) if isinstance(key, int)), len(path))
    path = path[:cut]  # items of a list go together: leaving one out would move the others
    table: object = tree
    for key in path[:-1]:
        table = table.get(str(key)) if isinstance(table, dict) else None
    if isinstance(table, dict) and path:
        table.pop(path[-1], None)
    return path


def _merged(findings: list[Finding]) -> list[Finding]:
    """One finding per place; an option that takes several kinds of value has one complaint from each."""
    merged: dict[Path, Finding] = {}
    for finding in findings:
        before = merged.get(finding.path)
        if before is None:
            merged[finding.path] = finding
        elif finding.message not in before.message:
            text = f"{before.message}, or {finding.message}"
            merged[finding.path] = Finding(finding.path, text, before.suggestion or finding.suggestion)
    return list(merged.values())
