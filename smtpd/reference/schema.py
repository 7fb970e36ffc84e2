"""The JSON Schema of the configuration, plug-ins' options included; editors complete and check with it."""

import json
from collections.abc import Iterable

from pydantic.json_schema import models_json_schema

from smtpd import plugins
from smtpd.config.models import Config
from smtpd.config.schema import GROUPS, secret_fields
from smtpd.options import Json, Options
from smtpd.reference.own import own_plugins


def config_schema() -> str:
    """docs/config.schema.json."""
    tables = {group: _tables(group) for group in GROUPS.values()}
    every: set[type[Options]] = {Config}.union(*(found.values() for found in tables.values()))
    models = sorted(every, key=lambda table: (table.__module__, table.__qualname__))
    references, schema = models_json_schema([(model, "validation") for model in models])
    definitions: Json = schema["$defs"]
    named = {model: references[model, "validation"] for model in models}
    for model in models:
        _add_twins(_definition(named[model], definitions), model)
    root = _definition(named[Config], definitions)
    for key, group in GROUPS.items():
        kinds = {name: named[table] for name, table in tables[group].items()}
        _add_plugins(root["properties"][key], kinds, definitions, named_after_table=group == plugins.FILTERS)
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "smtpd",
        "type": "object",
        "properties": {"smtpd": named[Config]},
        "required": ["smtpd"],
        "$defs": definitions,
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _tables(group: str) -> dict[str, type[Options]]:
    return {name: plugins.options_class(group, name) for name in own_plugins(group)}


def _definition(reference: Json, definitions: Json) -> Json:
    found: Json = definitions[reference["$ref"].rpartition("/")[2]]
    return found


def _add_twins(definition: Json, model: type[Options]) -> None:
    for name in secret_fields(model):
        definition["properties"].setdefault(f"{name}_file", {"type": "string"})


def _add_plugins(place: Json, kinds: dict[str, Json], definitions: Json, *, named_after_table: bool) -> None:
    """Let each table be one of ours by its `type`, or anything a third party brings."""
    foreign = {"type": "object", "properties": {"type": {"type": "string", "not": {"enum": list(kinds)}}}}
    ours = [_with_type(name, reference, required=True) for name, reference in kinds.items()]
    target = place
    if "$ref" in place:  # [smtpd.auth], a table with keys of its own
        target = _definition(place, definitions)
    target["additionalProperties"] = {"anyOf": [*ours, {**foreign, "required": ["type"]}]}
    if named_after_table:
        target["properties"] = {
            name: {"anyOf": [_with_type(name, reference, required=False), {**foreign, "required": ["type"]}, *ours]}
            for name, reference in kinds.items()
        }


def _with_type(name: str, reference: Json, *, required: bool) -> Json:
    rules: Iterable[Json] = [reference, {"properties": {"type": {"const": name}}}]
    return {"allOf": list(rules), **({"required": ["type"]} if required else {})}
