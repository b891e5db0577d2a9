"""Laws of reading YAML: what is meant is read, and everything else ends in a sentence that names its place."""

import contextlib
import math
import re
import string
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cadp_fl.config import (
    PolicyConfig,
    Settings,
    dump_tree,
    load_coordinator,
    load_invitation,
    load_node,
    load_policy,
    load_site,
    load_study,
    parse,
    plain_value,
)
from cadp_fl.config.reader import MAX_ALIASES, MAX_CONFIG_BYTES, MAX_DEPTH, read_file, read_value
from cadp_fl.config.settings import Count, Positive
from cadp_fl.config.writer import dump_tree as dumped
from cadp_fl.errors import ConfigError

LOADERS = [load_study, load_policy, load_site, load_node, load_coordinator, load_invitation]


def _read(folder: Path, text: str | bytes):
    path = folder / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path, "study config")


def _refusal(folder: Path, text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        _read(folder, text)
    sentence = str(caught.value)
    assert sentence.startswith("A study config is ")
    assert "\n" not in sentence
    assert sentence.isprintable()
    return sentence


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, None) for text in ("", "~", "null", "Null", "NULL")),
        *((text, True) for text in ("true", "True", "TRUE")),
        *((text, False) for text in ("false", "False", "FALSE")),
        ("0", 0),
        ("-7", -7),
        ("+3", 3),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-5", 1e-5),
        ("1.0E+3", 1000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", -math.inf),
        ("1e400", math.inf),
        ("9" * 5000, math.inf),
        ("-" + "9" * 5000, -math.inf),
        ("0x" + "f" * 5000, math.inf),
    ],
)
def test_a_plain_scalar_is_what_the_core_schema_says(text, value):
    assert plain_value(text) == value
    assert type(plain_value(text)) is type(value)


def test_not_a_number_is_one_by_the_core_schema():
    assert math.isnan(plain_value(".nan"))


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "no", "on", "off", "Yes", "NO", "y", "n", "tRue"),
        *("1:30", "1:30:00", "190:20:30.15", "3_0", "1_000.5", "0b11", "0x1_f", "0o8", "0xg"),
        *("2024-01-31", "2024-31-01", "2001-12-14t21:59:43.10-05:00", "1.2.3", "1e", "e5", ".", "+", "1,5", "=", "<"),
        *(
            "\u0661",
            "inf",
            "nan",
            "NaN",
            "Infinity",
            "-0o7",
            "+0x1",
            "--1",
        ),  # a digit of another script, and Python's own
    ],
)
def test_all_else_is_text(text):
    assert plain_value(text) == text


class _Named(Settings):
    names: tuple[str, ...] = ()
    name: str | None = None
    path: Path | None = None
    counts: dict[str, Count] | None = None


@pytest.mark.parametrize("text", ["no", "0", "010", "1e3", "1.50", "true", "NULL", "0x10", "2024-31-01", ".inf", "+1"])
def test_text_is_read_as_it_is_written(tmp_path, text):
    tree = _read(tmp_path, f"names: [{text}, a]\nname: {text}\npath: {text}\ncounts: {{{text}: 3}}\n")
    named = parse(_Named, tree)
    assert named.names == (text, "a")
    assert (named.name, named.path) in [(text, Path(text)), (None, None)]
    assert (named.name is None) == (text == "NULL")  # where nothing may stand, null is nothing
    assert named.counts == {text: 3}


def test_text_in_quotes_is_no_number(tmp_path):
    class Numbered(Settings):
        number: Positive

    with pytest.raises(ConfigError, match=r"'number' is a number\. Found '3'; write it in digits, .* without quotes"):
        parse(Numbered, _read(tmp_path, "number: '3'"))
    assert parse(Numbered, _read(tmp_path, "number: 3")).number == 3.0


@pytest.mark.parametrize(
    ("text", "found", "place"),
    [
        ("a: 1\na: 2", "Found 'a' again (first in line 1); remove one of the two", "line 2, column 1: a: 2"),
        ("a: {b: {c: 1, c: 1}}", "Found 'c' again", "line 1, column 15"),
        ("a: [{b: 1, 'b': 2}]", "Found 'b' again", "line 1, column 12"),
        ("010: 1\n'010': 2", "Found '010' again", "line 2, column 1"),
        ("a:\n\tb: 1", "Found a tab where spaces belong; replace it by spaces", r"line 2, column 1: \tb: 1"),
        ("a: 1\n \tb: 1", "Found a tab", "line 2, column 2"),
        ("a: [1,\t2]", "Found a tab", "line 1, column 7"),
        ("a: 1\n---\nb: 2", "is one document. Found a second one; remove it", "line 2, column 1: ---"),
        ("a: 1\n...\nb: 2", "Found more after the end of its value", "line 3, column 1: b: 2"),
        ("a: b\x07", "Found the character U+0007; remove it", r"line 1, column 5: a: b\x07"),
        ("a: 1\n# \x1b[2J", "Found the character U+001B", "line 2, column 3"),
        ('a: "\\e[2J"', "Found the character U+001B", "line 1, column 4"),
        ('a: "\\ud800"', "Found the character U+D800", "line 1, column 4"),
        ('a: 1\nb: "\\UFFFFFFFF"', "Found an escape of no character", "line 2, column 5"),
        ("a: b\u2028c: d", "Found the character U+2028", "line 1, column 5"),
        ("a:\n\u00a0\u00a0b: 1", "Found the character U+00A0", r"line 2, column 1: \xa0\xa0b: 1"),
        ("a: b\u200bc", "Found the character U+200B", "line 1, column 4"),
        ("a: &x [*x]", "is a tree. Found an alias inside of what it stands for", "line 1, column 8"),
        ("a: &x {b: {c: *x}}", "is a tree. Found an alias inside", "line 1, column 15"),
        ("a: *x", "Found one without; write the value, or quote the *", "line 1, column 4"),
        ("a: *.npz", "Found text that begins with * or &; put it in quotes", "line 1, column 5"),
        ("a: &x 1\nb: &x 2", "Found one again", "line 2, column 4"),
        ("b: &x {c: 1}\na:\n  <<: *x", "Found the key '<<'; write the keys out", "line 3, column 3"),
        ("a: !!python/object:os.system {}", "is YAML without tags. Found the tag", "line 1, column 4"),
        ("a: !!str 010", "Found the tag tag:yaml.org,2002:str; remove it, or put text in quotes", "column 4"),
        ("a: ! 010", "Found the tag !", "column 4"),
        ("%YAML 1.1\n---\na: 1", "is YAML 1.2. Found another version; remove the line", "line 1, column 1: %YAML 1.1"),
        ("? [a]\n: 1", "is YAML with text as keys", "line 1, column 3"),
        ("{a: 1}: 1", "is YAML with text as keys", "line 1, column 1"),
        ("? \n: 1", "Found the key ''", "line 1"),
        ("a: b: c", "Found a ': ' where no key can stand", "line 1, column 5: a: b: c"),
        ("a: 1\n  b: 2", "Found a ': ' where no key can stand; indent keys", "line 2, column 4"),
        ("a: [1, 2\nb: 3\n", "Found a bracket or brace that is not closed", "line 2, column 2"),
        ("a: [1, 2", "Found a bracket or brace that is not closed", "line 1, column 4"),
        ("a: [", "Found a bracket or brace that is not closed", "line 1, column 5"),
        ("a: ]", "Found a comma, bracket or brace where a value belongs", "line 1, column 4"),
        ("a: {b: ${C}}", "put text with commas, brackets or braces in quotes", "line 1, column 9"),
        ("a: 'b\nc: d", "Found a quotation mark that is not closed; close it", "line 1, column 4: a: 'b"),
        ('a: "C:\\data"', "Found a backslash in double quotes that escapes nothing; use single", "line 1, column 8"),
        ("a: @b", "Found text that begins with a sign of YAML; put it in quotes", "line 1, column 4"),
        ("a: 'b' c", "Found text that does not go on with what stands before it", "line 1, column 8"),
        ("a: - b", "Found an item where none can stand", "line 1, column 4"),
        ("a: |b\n  c", "Found text that begins with | or >", "line 1, column 5"),
        ("{a: 1} b", "Found more after the end of its value", "line 1, column 8"),
        ("", "Found nothing; write each as 'key: value'", "config.yaml'"),
        ("# nothing", "Found nothing", "config.yaml'"),
        ("- a", "is a mapping of keys to values. Found a list", "config.yaml'"),
        ("a", "is a mapping of keys to values. Found one value", "config.yaml'"),
        (
            "a: M\xfcller".encode("latin-1"),
            "Found the byte 0xfc, which is 'ü' in Latin-1; save it as UTF-8",
            "column 5",
        ),
        (b"a: 1\n# \x93b\x94", "Found the byte 0x93, which is '\u201c' in Latin-1", "line 2, column 3"),
        (b"a: 1\nb: \xc3\xa9 \xff", "Found the byte 0xff", "line 2, column 6: b: é \ufffd".replace("\ufffd", "")),
        ("a: 1".encode("utf-16"), "is text in UTF-8. Found UTF-16; save it as UTF-8", "config.yaml'"),
        ("name: tiny".encode("utf-16-le"), "Found UTF-16", "config.yaml'"),
        ("name: tiny".encode("utf-16-be"), "Found UTF-16", "config.yaml'"),
        ("a: 1".encode("utf-32"), "Found UTF-32", "config.yaml'"),
        (b"\0", "Found the character U+0000", "line 1, column 1"),
    ],
)
def test_what_nobody_means_is_refused_with_its_place_and_the_way_out(tmp_path, text, found, place):
    sentence = _refusal(tmp_path, text)
    assert found in sentence
    assert place in sentence


@pytest.mark.parametrize(
    "text", ["a: 1\r\nb: 2\r\n", "\ufeffa: 1\nb: 2", "---\na: 1\nb: 2\n...\n", "%YAML 1.2\n---\n{a: 1, b: 2}"]
)
def test_what_editors_add_is_read(tmp_path, text):
    assert _read(tmp_path, text) == {"a": 1, "b": 2}


def test_an_alias_is_a_copy(tmp_path):
    tree = _read(tmp_path, "a: &x {b: [1]}\nc: *x")
    tree["c"]["b"][0] = 2
    assert tree == {"a": {"b": [1]}, "c": {"b": [2]}}


def _laughs(width: int, levels: int) -> str:
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (_laughs(9, 10), "is a tree of at most 50000 values"),
        (_laughs(2, 30), "is a tree of at most 50000 values"),
        ("a: &a x\nb: [" + "*a, " * (MAX_ALIASES + 1) + "]", f"of at most {MAX_ALIASES} aliases"),
        ("a: " + "[" * 100_000, f"is at most {MAX_DEPTH} levels deep"),
        ("a: " + "{b: " * 5000 + "}" * 5000, f"is at most {MAX_DEPTH} levels deep"),
        ("- " * 5000, f"is at most {MAX_DEPTH} levels deep"),
        ("? " * 5000, "is YAML with text as keys"),
        ("a0: &a0 [x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 40)), "levels deep"),
    ],
)
def test_what_grows_is_refused_at_once(tmp_path, text, rule):
    begun = time.process_time()
    assert rule in _refusal(tmp_path, text)
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize(
    "text", ["a: " + "[" * 5000, "a: &a [*a]", _laughs(9, 10), "a: 2024-31-01", "a: \x07", "a: 1\na: 1"]
)
def test_every_config_is_read_by_the_same_reader(tmp_path, load, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml'"):
        load(tmp_path / "config.yaml")


def test_a_config_of_too_many_bytes_is_not_read(tmp_path):
    (tmp_path / "config.yaml").write_text("#" * (MAX_CONFIG_BYTES + 1))
    with pytest.raises(ConfigError, match=f"A policy has at most {MAX_CONFIG_BYTES} bytes"):
        load_policy(tmp_path / "config.yaml")


def test_a_long_line_is_shown_around_its_fault(tmp_path):
    sentence = _refusal(tmp_path, f"a: [{'x, ' * 500}b: c: d, {'y, ' * 500}]")
    assert "b: c: d" in sentence
    assert len(sentence) < 600


_POLICY = "population: lungs\nunit: record\nepsilon: 1\ndelta: 1e-6\n"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("labels: coverd", "is 'public' or 'covered'. Found 'coverd'. See {}, line 5, column 9: labels: coverd"),
        ("review: no", "'policy.review' is true or false. Found 'no'; write one of the two. See {}, line 5, column 9"),
        ("review: 0", "'policy.review' is true or false. Found 0;"),
        ("min_units: true", "'policy.min_units' is a whole number. Found true;"),
        ("min_units: 1.5", "'policy.min_units' is a whole number. Found 1.5;"),
        ("min_units: 2024-31-01", "'policy.min_units' is a whole number. Found '2024-31-01';"),
        (
            "class_counts: {no: 3, yes: -1}",
            "'policy.class_counts.yes' is at least 0. Found -1. See {}, line 5, column 2",
        ),
        ("mechanisms: laplace", "'policy.mechanisms' is a list. Found 'laplace'; write it as [a, b]."),
        ("evaluation: {epsilon: 1}", "'policy.evaluation.delta' is required and has no default. Add it to the"),
        ("reviev: false", "key 'policy.reviev'. Did you mean 'review'? See {}, line 5, column 1: reviev: false"),
        ("records_per_patient: 2", "policy: records_per_patient is given for the unit patient"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path, line, sentence):
    (tmp_path / "policy.yaml").write_text(_POLICY + line)
    with pytest.raises(ConfigError) as caught:
        load_policy(tmp_path / "policy.yaml")
    assert sentence.format(f"'{tmp_path / 'policy.yaml'}'") in str(caught.value)


def test_an_unknown_key_is_named_before_a_missing_one_and_before_a_wrong_value(tmp_path):
    (tmp_path / "policy.yaml").write_text("popluation: lungs\nepsilon: -1\n")
    with pytest.raises(
        ConfigError, match=r"Unknown key 'policy\.popluation'\. Did you mean 'population'\? See .* line 1"
    ):
        load_policy(tmp_path / "policy.yaml")


def test_a_method_names_the_line_of_its_settings(quickstart, tmp_path):
    from cadp_fl.federated.methods import build_methods

    text = quickstart.read_text()
    (tmp_path / "study.yaml").write_text(
        re.sub(r"(?m)^methods:.*\n(  .*\n)+", "methods:\n  fedavg:\n    ronds: 3\n", text)
    )
    study = load_study(tmp_path / "study.yaml")
    with pytest.raises(
        ConfigError, match=r"Unknown key 'methods\.fedavg\.ronds'\. Did you mean 'rounds'\? See .*: ronds: 3"
    ):
        build_methods(study)


def test_a_variable_stands_for_what_it_holds(quickstart, monkeypatch):
    monkeypatch.setenv("EPSILON", "0.5")
    monkeypatch.setenv("NAME", "010")
    study = load_study(quickstart, ["budget.epsilon=${EPSILON}", "name=${NAME}", "seed=${SEED:-7}"])
    assert (study.budget.epsilon, study.name, study.seed) == (0.5, "010", 7)
    monkeypatch.setenv("EPSILON", "yes")
    with pytest.raises(ConfigError, match=r"'budget\.epsilon' is a number\. Found 'yes'"):
        load_study(quickstart, ["budget.epsilon=${EPSILON}"])


@pytest.mark.parametrize("value", ["a\x07b", "\udcfc"])
def test_a_variable_that_no_config_can_hold_is_refused(quickstart, monkeypatch, value):
    monkeypatch.setenv("NAME", value)
    with pytest.raises(ConfigError, match="A variable NAME of the environment is printable text in UTF-8"):
        load_study(quickstart, ["name=${NAME}"])


_LETTERS = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\u2028\u2029\ufeff\ufffe\uffff")
_TEXT = st.text(_LETTERS | st.sampled_from(" \n\t#:-?[]{},&*!|>'\"%@`~=<"), max_size=30) | st.sampled_from(
    [
        "no",
        "1e-3",
        "010",
        "0o7",
        "0x1f",
        "1_0",
        "1:30",
        "2024-31-01",
        "null",
        "~",
        "",
        "true",
        "<<",
        "=",
        ".inf",
        "- a",
        "a: b",
        "---",
        "...",
        "a #b",
    ]
)
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
_TREES = st.dictionaries(
    _TEXT,
    st.recursive(
        _SCALARS, lambda below: st.lists(below, max_size=3) | st.dictionaries(_TEXT, below, max_size=3), max_leaves=8
    ),
    max_size=4,
)


@given(_TREES, st.booleans())
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_written_reads_back_equal(tree, in_one_line):
    text = dumped(tree, in_one_line=in_one_line)
    value, _ = read_value(text, "--set x=...")
    assert value == tree
    assert repr(value) == repr(tree)  # true is not 1, and 1 is not 1.0
    assert "\n" not in text.rstrip("\n") or not in_one_line


def test_what_was_read_is_written_again(tmp_path):
    tree = _read(tmp_path, "a: &x {b: [1, {c: no}]}\nd: [*x, *x]")
    value, _ = read_value(dumped(tree, in_one_line=True), "--set x=...")
    assert value == tree
    assert read_value(dumped({"e": [tree["a"], tree["a"]]}), "--set x=...")[0] == {"e": [tree["a"], tree["a"]]}


@given(_TEXT)
def test_another_reader_sees_the_same_text(text):
    assert yaml.safe_load(dump_tree({"name": text})) == {"name": text}


@given(st.text(max_size=60) | st.text(st.sampled_from(string.printable), max_size=80) | st.binary(max_size=60))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_ends_in_a_config_or_a_sentence(tmp_path, text):
    with contextlib.suppress(ConfigError):
        _read(tmp_path, text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


@given(_TREES)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree_ends_in_a_policy_or_a_sentence(tmp_path, tree):
    (tmp_path / "policy.yaml").write_text(
        _POLICY + "".join(f"{dump_tree({key: value})}" for key, value in tree.items())
    )
    with contextlib.suppress(ConfigError):
        assert isinstance(load_policy(tmp_path / "policy.yaml"), PolicyConfig)


def test_a_config_is_read_quickly(quickstart):
    load_study(quickstart)
    begun = time.process_time()
    for _ in range(5):
        load_study(quickstart)
    assert (time.process_time() - begun) / 5 < 0.2
