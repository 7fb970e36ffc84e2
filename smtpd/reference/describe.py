"""Take an options class apart into rows for people: name, kind of value, default, sentence."""

import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from smtpd.config.listeners import Addresses
from smtpd.config.schema import secret_fields
from smtpd.options import Bytes, IPNetwork, Options, Seconds
from smtpd.rewriting import WrittenTarget

UNSET = "unset"

_UNITS = (("d", 86400), ("h", 3600), ("m", 60))
_SIZES = (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))
_SPECIAL: Mapping[object, str] = {
    Seconds: "duration",
    Bytes: "size",
    IPNetwork: "network",
    Addresses: "text or list of text",
    WrittenTarget: "text or table",
}
_PLAIN: Mapping[object, str] = {
    str: "text", int: "integer", float: "number", bool: "true or false", SecretStr: "secret text", type(None): UNSET,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Option:
    """One key of a table; `default` is TOML, "" when the key must be set, UNSET when nothing stands for it."""

    name: str
    kind: str
    default: str
    sentence: str


def options_of(table: type[Options]) -> list[Option]:
    """Every key of a table in the order of the code, with the file twins of secrets."""
    return list(_options(table))


def summary(table: type[BaseModel]) -> str:
    """The class's docstring as one paragraph."""
    return one_line(table.__doc__ or "")


def one_line(text: str) -> str:
    """Text without its line breaks and indents."""
    return re.sub(r"\s+", " ", text).strip()


def to_toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{toml_key(str(key))} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Sequence | frozenset):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    if isinstance(value, BaseModel):
        return to_toml(value.model_dump())
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else to_toml(str(value))


def toml_key(key: str) -> str:
    """A key, in quotes where it needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)


def _options(table: type[Options]) -> Iterator[Option]:
    secrets = set(secret_fields(table))
    for name, field in table.model_fields.items():
        yield Option(name, _kind(field), _default(field), one_line(field.description or ""))
        twin = f"{name}_file"
        if name in secrets and twin not in table.model_fields:
            yield Option(twin, "text", UNSET, f"File with one line to read `{name}` from.")


def _whole(field: FieldInfo) -> Any:
    """The annotation with the metadata that pydantic took off its outside."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def _kind(field: FieldInfo) -> str:
    kinds = dict.fromkeys(_words(_whole(field)))
    kinds.pop(UNSET, None)
    return ", ".join(kinds) + _bounds(field)


def _words(annotation: Any) -> list[str]:
    for special, word in _SPECIAL.items():
        if annotation == special or _starts_like(annotation, special):
            return [word]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _words(arguments[0])
    if origin in (Union, types.UnionType):
        return [word for argument in arguments for word in _words(argument)]
    if origin is Literal:
        return [to_toml(argument) for argument in arguments]
    if origin in (tuple, list, frozenset, set):
        return [f"list of {' or '.join(_words(arguments[0]))}"]
    if origin is dict:
        return [f"table of {' or '.join(_words(arguments[1]))}"]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["table"]
    return [_PLAIN.get(annotation, "text")]


def _starts_like(annotation: Any, special: Any) -> bool:
    """Whether it is a special kind with bounds of its own behind it."""
    metadata = getattr(annotation, "__metadata__", ())
    if not metadata or metadata[0] != special.__metadata__[0]:
        return False
    return bool(annotation.__origin__ == special.__origin__)


def _bounds(field: FieldInfo) -> str:
    words = []
    for bound in field.metadata:
        match bound:
            case Ge(ge=low) if low != 0:
                words.append(f"at least {low}")
            case Gt(gt=low):
                words.append(f"above {low}")
            case Le(le=high):
                words.append(f"at most {high}")
            case Lt(lt=high):
                words.append(f"below {high}")
    return f" ({', '.join(words)})" if words else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    if value is None or isinstance(value, BaseModel):
        return UNSET
    words = _words(_whole(field))
    if "duration" in words and isinstance(value, int | float):
        return to_toml(_with_unit(value))
    if "size" in words and isinstance(value, int) and value:
        return next((to_toml(f"{value // unit}{name}") for name, unit in _SIZES if value % unit == 0), str(value))
    return to_toml(value)


def _with_unit(seconds: float) -> str:
    for name, unit in _UNITS:
        if seconds >= unit and seconds % unit == 0:
            return f"{seconds // unit:.0f}{name}"
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"
