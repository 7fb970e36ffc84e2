import re
import tomllib

from hypothesis import given
from hypothesis import strategies as st

from smtpd.config.lines import key_lines

TRICKY = """\
# [smtpd]
top = 1 # x = 2
[smtpd . "quoted.key"]
text = '''
fake = 1
[fake]
'''
other = \"\"\"a\\"\"\" b = 1 ""\"\"\"
'lit eral' = { a = 1, b.c = [ { d = "}" }, # comment ]
  {d = 2} ], e = "\\"]" }
a.b."c d" = [
  [1, 2],
  ["]", '#'], # tail
]
date = 2020-01-01 10:00:00
[[list.of]]
x = 1
[[list.of]]
x = 2
[list.of.inner]
y = 1
"""


def test_lines_of_keys_are_found_in_tricky_texts() -> None:
    tomllib.loads(TRICKY)
    lines = key_lines(TRICKY)
    assert lines[("top",)] == 2
    assert lines[("smtpd", "quoted.key", "text")] == 4
    assert lines[("smtpd", "quoted.key", "other")] == 8
    assert lines[("smtpd", "quoted.key", "lit eral", "b", "c", 1, "d")] == 10
    assert lines[("smtpd", "quoted.key", "lit eral", "e")] == 10
    assert lines[("smtpd", "quoted.key", "a", "b", "c d", 1)] == 13
    assert lines[("smtpd", "quoted.key", "date")] == 15
    assert lines[("list", "of", 1, "x")] == 19
    assert lines[("list", "of", 1, "inner", "y")] == 21
    assert not any("fake" in path for path in lines)


def paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    return {path}.union(*(paths(inner, (*path, key)) for key, inner in items))


bare = st.from_regex(r"[a-c_-]{1,3}", fullmatch=True)
strings = st.text(st.sampled_from("ab\"'#[]{}=,. \n\\é"), max_size=6)
toml_values = st.recursive(
    st.integers(0, 9) | st.booleans() | strings,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(bare | strings, inner, max_size=3),
    max_leaves=8,
)


def quoted(text: str) -> str:
    if re.fullmatch("[A-Za-z_-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value) if not re.fullmatch("[A-Za-z_-]+", value) else f"'{value}'"
    if isinstance(value, list):
        return "[ # ]\n" + ",\n".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(inner)}" for key, inner in value.items()) + "}"
    return str(value)


@given(st.dictionaries(bare | strings, toml_values, max_size=4))
def test_every_key_of_a_text_has_a_line(table: dict[str, object]) -> None:
    text = "[t]\n" + "".join(f"{quoted(key)} = {written(value)}\n" for key, value in table.items())
    assert tomllib.loads(text) == {"t": table}
    lines = key_lines(text)
    assert set(lines) == paths({"t": table}) - {()}
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())
