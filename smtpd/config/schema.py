"""Which options class or type governs a place in the configuration, plug-ins' tables included."""

import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo

from smtpd import plugins
from smtpd.config.models import AuthOptions, Config
from smtpd.config.problems import Path
from smtpd.options import Options

Tree = dict[str, object]

GROUPS: Mapping[str, str] = {
    "agents": plugins.AGENTS,
    "filters": plugins.FILTERS,
    "auth": plugins.PROVIDERS,
}
"""Tables whose tables belong to plug-ins, with their entry-point group."""


def is_plugin_table(path: Path) -> bool:
    """Whether the place is the table of one agent, filter or auth provider."""
    if len(path) != 2 or path[0] not in GROUPS:
        return False
    return path[0] != "auth" or path[1] not in AuthOptions.model_fields


def plugin_type(path: Path, table: Mapping[str, object]) -> object:
    """The `type` of a plug-in's table; a filter is named after its table unless it says otherwise."""
    return table.get("type") or (path[-1] if path[0] == "filters" else None)


def table_class(path: Path, tree: Tree) -> type[Options] | None:
    """The options class of the table at a place; None where there is none."""
    found = _without_none(_annotation(path, tree))
    return found if isinstance(found, type) and issubclass(found, Options) else None


def adapter_at(path: Path, tree: Tree) -> TypeAdapter[object] | None:
    """What checks the value at a place; None where nothing is known about it."""
    found = _annotation(path, tree)
    return None if found is None else TypeAdapter[object](found)


def secret_fields(options: type[BaseModel]) -> Iterator[str]:
    """Names of options that hold a secret; each has a twin NAME_file that reads it from a file."""
    for name, field in options.model_fields.items():
        if _without_none(field.annotation) is SecretStr:
            yield name


def option_names(options: type[BaseModel]) -> list[str]:
    """Every key a table accepts."""
    return [*options.model_fields, *(f"{name}_file" for name in secret_fields(options))]


def _annotation(path: Path, tree: Tree) -> Any:
    if not path:
        return Config
    if is_plugin_table(path):
        return _plugin_class(path, tree)
    parent, key = _without_none(_annotation(path[:-1], tree)), path[-1]
    if isinstance(parent, type) and issubclass(parent, BaseModel):
        if str(key).endswith("_file") and str(key)[: -len("_file")] in secret_fields(parent):
            return str
        return _with_metadata(parent.model_fields.get(str(key)))
    if get_origin(parent) in (dict, tuple):
        inner = get_args(parent)
        return inner[1] if get_origin(parent) is dict else inner[0]
    return None


def _plugin_class(path: Path, tree: Tree) -> type[Options] | None:
    group = tree.get(str(path[0]))
    table = group.get(str(path[1])) if isinstance(group, dict) else None
    kind = plugin_type(path, table) if isinstance(table, dict) else None
    try:
        return plugins.options_class(GROUPS[str(path[0])], kind) if isinstance(kind, str) else None
    except plugins.PluginError:
        return None


def _with_metadata(field: FieldInfo | None) -> object:
    if field is None:
        return None
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _without_none(annotation: object) -> object:
    if get_origin(annotation) is Annotated:
        return _without_none(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _without_none(kinds[0]) if len(kinds) == 1 else annotation
    return annotation
