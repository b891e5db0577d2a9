import csv
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cadp_fl.config import DataConfig, dump_tree
from cadp_fl.data import table_files
from cadp_fl.data.sources import load_source
from cadp_fl.data.table_schema import load_table_schema
from cadp_fl.errors import CadpError, ConfigError, DataError
from tests.conftest import ROOT

TABLES = ROOT / "configs" / "tables"

SCHEMA = {
    "name": "ward",
    "label": {"column": "ill", "classes": {"no": [0], "yes": [1, 2]}},
    "columns": [
        {"name": "age", "type": "integer", "lower": 18, "upper": 90},
        {"name": "dose", "type": "number", "lower": 0, "upper": 10, "missing": True, "missing_values": [-1]},
        {"name": "sex", "type": "category", "categories": ["f", "m"]},
        {"name": "stage", "type": "ordinal", "categories": [1, 2, 3], "missing": True},
    ],
    "roles": {"patient": "who", "id": "row", "site": "hospital", "split": "part"},
    "ignore": ["remark"],
}
HEADER = ["row", "who", "hospital", "part", "age", "dose", "sex", "stage", "ill", "remark"]
ROWS = [
    ["1", "a", "North", "train", "30", "1.5", "f", "1", "0", "x"],
    ["2", "a", "North", "train", "31", "", "m", "2.0", "1", 'a "quoted", text'],
    ["3", "b", "South", "validation", "90.0", "-1", "f", "", "2", "line\nbreak"],
    ["4", "c", "South", "test", "18", ".25", " m ", "3", "0.0", ""],
]


@pytest.fixture
def shared_data():
    folder = Path(os.environ["CADP_FL_DATA"])
    if not (folder / "heart_disease").is_dir():
        pytest.skip("the shared tables are not here")
    return folder


def written(folder: Path, rows=ROWS, *, header=HEADER, separator=",") -> Path:
    path = folder / "ward.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([header, *rows])
    return path


def schema_file(folder: Path, tree=SCHEMA, **changed) -> Path:
    path = folder / "columns.yaml"
    path.write_text(dump_tree({**tree, **changed}), encoding="utf-8")
    return path


def read(path: Path, columns: Path, **keys):
    return load_source(DataConfig(source="table", path=path, columns=columns, **keys))


def small(tmp_path, column, values, *, skip=False, **changed):
    """Return what a table of one column, beside a label, is read as."""
    rows = [[value, str(number % 2)] for number, value in enumerate(values)]
    tree = {"name": "t", "label": {"column": "y", "classes": ["0", "1"]}, "columns": [column], **changed}
    path = written(tmp_path, rows, header=[column["name"], "y"], separator=changed.get("separator", ","))
    return read(path, schema_file(tmp_path, tree), on_bad_record="skip" if skip else "refuse")


AGE = {"name": "age", "type": "integer", "lower": 18, "upper": 90}


SEX = {"name": "sex", "type": "category", "categories": ["f", "m"]}


def test_every_value_of_a_csv_is_where_its_schema_puts_it(tmp_path):
    source = read(written(tmp_path), schema_file(tmp_path))
    train, test = source.train, source.test
    assert (len(train), len(test), source.site_names) == (3, 1, ("north", "south"))
    values = [
        column.values_of(codes).tolist() for column, codes in zip(train.schema.columns, train.records.T, strict=True)
    ]
    assert values[0] == [30, 31, 90]
    np.testing.assert_allclose(values[1], [1.5, np.nan, np.nan], atol=10 / 2**16)
    assert values[2:] == [["f", "m", "f"], ["1", "2", None]]
    assert train.labels.tolist() == [0, 1, 1]
    assert train.sites.tolist() == [0, 0, 1]
    assert train.patients[0] == train.patients[1] != train.patients[2]
    assert test.labels.tolist() == [0]
    assert test.schema.columns[2].values_of(test.records[:, 2]).tolist() == ["m"]
    assert source.notes == ()


def test_what_only_says_how_a_column_is_read_is_not_in_the_schema_that_sites_share(tmp_path):
    source = read(written(tmp_path), schema_file(tmp_path))
    assert "missing_values" not in source.schema.model_dump_json()


@given(
    st.lists(
        st.tuples(
            st.integers(18, 90),
            st.none() | st.floats(0, 10),
            st.sampled_from("fm"),
            st.sampled_from(["1", "2", "3", None]),
            st.integers(0, 2),
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8),
        ),
        min_size=1,
        max_size=30,
    )
)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_and_parquet_of_the_same_rows_are_the_same_records(tmp_path, rows):
    names = ["age", "dose", "sex", "stage", "ill", "remark"]
    columns = schema_file(tmp_path, roles={})
    frame = pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String) | {"age": pl.Int16, "dose": pl.Float64,
                         "ill": pl.Int8}, orient="row")  # fmt: skip
    frame.with_columns(pl.col("stage").cast(pl.Float64)).write_parquet(tmp_path / "ward.parquet")
    frame.write_csv(tmp_path / "ward.csv")
    one, other = (read(tmp_path / f"ward.{kind}", columns).train for kind in ("csv", "parquet"))
    np.testing.assert_array_equal(one.records, other.records)
    np.testing.assert_array_equal(one.labels, other.labels)
    back = one.schema.columns[1].values_of(one.records[:, 1])
    np.testing.assert_allclose(back, [np.nan if row[1] is None else row[1] for row in rows], atol=10 / 2**16)
    assert one.schema.columns[0].values_of(one.records[:, 0]).tolist() == [row[0] for row in rows]


def test_pieces_make_the_whole(tmp_path, monkeypatch):
    rows = [[str(n), f"p{n // 2}", "North", "train", str(18 + n % 60), "", "f", "1", str(n % 3), ""] for n in range(50)]
    path, columns = written(tmp_path, rows), schema_file(tmp_path)
    pl.read_csv(path).write_parquet(tmp_path / "ward.parquet")
    whole = read(path, columns).train
    monkeypatch.setattr(table_files, "VALUES_OF_A_PIECE", 70)
    for each in (path, tmp_path / "ward.parquet"):
        pieces = read(each, columns).train
        np.testing.assert_array_equal(pieces.records, whole.records)
        np.testing.assert_array_equal(pieces.ids, whole.ids)
        np.testing.assert_array_equal(pieces.patients, whole.patients)


def test_heart_disease_is_what_an_independent_reader_finds(shared_data):
    folder = shared_data / "heart_disease"
    source = read(folder, TABLES / "heart-disease.yaml", on_bad_record="skip")
    assert source.site_names == ("cleveland", "hungarian", "switzerland", "va")
    frames = [
        pl.read_csv(folder / f"processed.{site}.data", infer_schema=False).cast(pl.Float64, strict=False)
        for site in source.site_names
    ]
    names = [column.name for column in source.schema.columns]
    frames = [frame.drop_nulls([name for name in names if name != "chol"]) for frame in frames]
    assert np.bincount(source.train.sites).tolist() == [len(frame) for frame in frames]
    whole = pl.concat(frames)
    np.testing.assert_array_equal(source.train.labels, whole["target"].to_numpy() > 0)
    for column, codes in zip(source.schema.columns, source.train.records.T, strict=True):
        values = column.values_of(codes)
        ours = np.array([np.nan if value is None else float(value) for value in values])
        theirs = whole[column.name].fill_null(np.nan).to_numpy().copy()
        theirs[theirs == 0] = np.nan if column.name == "chol" else 0
        if column.outside == "clip":
            theirs = np.clip(theirs, column.lower, column.upper)
        step = 0.05 + 1e-9 if column.name == "oldpeak" else 0
        np.testing.assert_allclose(ours, theirs, atol=step, err_msg=column.name)


def test_adult_and_the_bundled_tables_follow_their_schemas(shared_data):
    adult = read(shared_data / "adult.csv", TABLES / "adult.yaml")
    assert adult.train.records.shape == (30162, 8)
    assert adult.train.class_counts().tolist() == [22654, 7508]
    for name, shape in (("breast-cancer", (569, 30)), ("diabetes", (442, 10))):
        source = load_source(DataConfig(source=name))
        assert source.train.records.shape == shape
        assert source.notes == ()


def test_a_label_above_a_number(tmp_path):
    rows = [["20", "140"], ["21", "140.5"], ["22", "-3"], ["23", "1e3"]]
    tree = {"name": "t", "label": {"column": "y", "above": 140}, "columns": [AGE]}
    source = read(written(tmp_path, rows, header=["age", "y"]), schema_file(tmp_path, tree))
    assert source.train.labels.tolist() == [0, 1, 0, 1]
    assert source.schema.classes == ("up to 140", "above 140")
    tree["label"]["classes"] = ["slow", "fast"]
    assert read(tmp_path / "ward.csv", schema_file(tmp_path, tree)).schema.classes == ("slow", "fast")
    written(tmp_path, [*rows, ["24", "high"]], header=["age", "y"])
    with pytest.raises(DataError, match="label 'y': 1"):
        read(tmp_path / "ward.csv", schema_file(tmp_path, tree))


@pytest.mark.parametrize(
    ("column", "values", "expected", "note"),
    [
        (AGE | {"outside": "clip"}, ["17", "18", "1e3"], [18, 18, 90], "2 values outside the schema were brought to"),
        (AGE | {"outside": "missing", "missing": True}, ["17", "x", "20"], [None, None, 20], "2 values outside"),
        (AGE | {"missing": True}, ["", "18", "20.0"], [None, 18, 20], None),
        (AGE | {"outside": "clip"}, ["18.4", "18", "19"], [18, 18, 19], "1 value outside"),
        ({"name": "c", "type": "category", "categories": ["01", "1"]}, ["01", "1.0", "1"], ["01", "1", "1"], None),
        ({"name": "c", "type": "category", "categories": ["a", "b"], "missing": True, "outside": "missing"},
         ["z", "a", "b"], [None, "a", "b"], "1 value outside"),
    ],
)  # fmt: skip
def test_what_is_outside_of_the_schema_becomes_what_the_column_says_and_is_counted(
    tmp_path, column, values, expected, note
):
    source = small(tmp_path, column, values)
    found = source.schema.columns[0].values_of(source.train.records[:, 0]).tolist()
    assert [None if value != value else value for value in found] == expected
    assert source.notes == () if note is None else note in source.notes[0]


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (AGE, "17"), (AGE, "x"), (AGE, ""), (AGE, "18.5"), (AGE, "1_8"), (AGE, "nan"), (AGE, "1,8"),
        (AGE | {"outside": "clip"}, "old"), (AGE | {"outside": "clip"}, ""), (AGE | {"outside": "clip"}, "inf"),
        ({"name": "c", "type": "category", "categories": ["a", "b"]}, "A"),
        ({"name": "c", "type": "category", "categories": ["a", "b"]}, ""),
    ],
)  # fmt: skip
def test_a_value_that_the_schema_does_not_allow_is_refused_by_row_or_skipped_and_counted(tmp_path, column, value):
    good = "20" if "lower" in column else "a"
    with pytest.raises(DataError) as refused:
        small(tmp_path, column, [good, good, value, good])
    sentence = str(refused.value)
    assert f"1 of 4 rows break the schema (column '{column['name']}': 1)" in sentence
    assert "row 4 of 'ward.csv'" in sentence
    source = small(tmp_path, column, [good, good, value, good], skip=True)
    assert len(source.train) == 3
    assert source.notes == (f"Left out: 1 of 4 rows break the schema (column '{column['name']}': 1).",)


def test_no_value_of_a_record_is_in_an_error(tmp_path):
    with pytest.raises(DataError) as refused:
        small(tmp_path, AGE, ["20", "secret-1234"])
    assert "1234" not in str(refused.value)


@pytest.mark.parametrize("row", [["9", "", "North", "train"], ["", "a", "North", "train"], ["9", "a", "", "train"],
                                 ["9", "a", "North", "holdout"]])  # fmt: skip
def test_a_row_without_a_name_that_its_role_needs_is_refused(tmp_path, row):
    path = written(tmp_path, [*ROWS, [*row, "30", "", "f", "1", "0", ""]])
    with pytest.raises(DataError, match=r"1 of 5 rows break the schema \((patient|id|site|split) '"):
        read(path, schema_file(tmp_path))


def test_a_decimal_comma_and_a_semicolon(tmp_path):
    dose = {"name": "dose", "type": "number", "lower": 0, "upper": 2000}
    source = small(tmp_path, dose, ["1,5", "2", "1000,25"], separator=";", decimal=",")
    values = source.schema.columns[0].values_of(source.train.records[:, 0])
    np.testing.assert_allclose(values, [1.5, 2, 1000.25], atol=2000 / 2**16)
    with pytest.raises(DataError, match="1 of 1 rows"):
        small(tmp_path, dose, ["1.000,25"], separator=";", decimal=",")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"\n\n", "has blank lines"),
        (b"age,y\n", "A table has rows"),
        (b"age,y\n20,0\n21\n", "names 2, and row 3 has 1"),
        (b"age,y\n20,0\n21,0,1\n", "names 2, and row 3 has 3"),
        (b"age,y\n20,0\n\n21,1\n", "row 3 has 0"),
        (b"age,y\n20,0\n\xe9,1\n", "has the byte 0xe9"),
        (b"age,y\n20,0\n2\x001,1\n", "Line 3 of 'bad.csv' has a NUL byte"),
        (b'age,y\n20,0\n"21"x,1\n', "Row 3 of 'bad.csv' breaks that"),
        (b'age,y\n20,0\n"21,1\n', "breaks that"),
        (b"age,age,y\n20,0,0\n", "has 'age' twice"),
        (b",age,y\n0,20,0\n", "Column 1 of 'bad.csv' has none"),
        (b"age;y\n20;0\n", "correct the separator in the schema file"),
        (b"Age,y\n20,0\n", "the nearest is 'Age'"),
        (b"age,y,weight,height\n20,0,1,2\n", "has 'weight', 'height'; describe them under columns"),
        (b"age,y\n" + b"2" * (table_files.MAX_LINE + 5), "Line 2 of 'bad.csv' has more"),
        (b"age,y\n" + b"2" * 200_000 + b",0\n", "field larger than field limit"),
        (b"\xff\xfea\0g\0e\0", "is text in UTF-16"),
        (b"PK\x03\x04....", "is a zip file, such as a workbook of Excel"),
        (b"\x1f\x8b....", "is packed by gzip"),
        (b"PAR1....", "is cut short, damaged"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "bad.csv").write_bytes(content)
    tree = {"name": "t", "label": {"column": "y", "classes": ["0", "1"]}, "columns": [AGE]}
    with pytest.raises(DataError) as refused:
        read(tmp_path / "bad.csv", schema_file(tmp_path, tree))
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 500


def test_a_byte_order_mark_and_lines_of_any_system_are_read(tmp_path):
    tree = {"name": "t", "label": {"column": "y", "classes": ["0", "1"]}, "columns": [AGE]}
    columns = schema_file(tmp_path, tree)
    for content in (b"\xef\xbb\xbfage,y\n20,0\n30,1\n\n", b"age,y\r\n20,0\r\n30,1", b"age,y\r20,0\r30,1\r"):
        (tmp_path / "t.csv").write_bytes(content)
        assert read(tmp_path / "t.csv", columns).train.records[:, 0].tolist() == [2, 12]


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_file_is_read_or_refused_in_one_sentence(tmp_path, data):
    kind = data.draw(st.sampled_from(["csv", "parquet"]))
    path = written(tmp_path)
    if kind == "parquet":
        pl.read_csv(path).write_parquet(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "repeat"])):
            case "byte":
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=8))
            case "repeat":
                content += content[place:]
        if not content:
            break
    path.write_bytes(bytes(content))
    try:
        outcome = read(path, schema_file(tmp_path), on_bad_record=data.draw(st.sampled_from(["refuse", "skip"])))
    except CadpError as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert len(outcome) < 800
        assert outcome.isprintable()
    else:
        assert len(outcome.train)


def test_a_nested_column_is_refused_and_one_that_is_not_read_may_be_anything(tmp_path):
    tree = {"name": "t", "label": {"column": "y", "classes": ["0", "1"]}, "columns": [AGE], "ignore": "rest"}
    path = tmp_path / "t.parquet"
    pl.DataFrame({"age": [20, 21], "y": [False, True], "extra": [[1], [2, 3]]}).write_parquet(path)
    tree["label"] = {"column": "y", "classes": {"no": [False], "yes": [True]}}
    columns = schema_file(tmp_path, tree)
    assert read(path, columns).train.labels.tolist() == [0, 1]
    pl.DataFrame({"age": [[20], [21]], "y": [False, True]}).write_parquet(path)
    with pytest.raises(DataError, match=r"Column 'age' of 't.parquet' holds List"):
        read(path, columns)


def test_a_folder_needs_names_of_files_and_tells_what_it_leaves_out(tmp_path):
    tree = {"name": "t", "label": {"column": "y", "classes": ["0", "1"]}, "columns": [AGE]}
    folder = tmp_path / "tables"
    folder.mkdir()
    for site, age in (("North Clinic", 20), ("south", 30)):
        (folder / f"extract-{site}.csv").write_text(f"age,y\n{age},0\n{age + 1},1\n")
    (folder / "README.txt").write_text("hello")
    with pytest.raises(ConfigError, match="add files, such as"):
        read(folder, schema_file(tmp_path, tree))
    source = read(folder, schema_file(tmp_path, tree, files="extract-{site}.csv"))
    assert source.site_names == ("north-clinic", "south")
    assert source.train.sites.tolist() == [0, 0, 1, 1]
    assert "1 that is hidden, a link or not named extract-{site}.csv (README.txt)" in source.notes[0]
    (folder / ".extract-x.csv").write_bytes(b"\0\5\x16\7")
    (folder / "extract-y.csv").symlink_to(folder / "extract-south.csv")
    again = read(folder, schema_file(tmp_path, tree, files="extract-{site}.csv"))
    assert again.site_names == source.site_names  # what a link leads to would count twice
    assert "3 that are hidden, a link or not named" in again.notes[0]
    assert read(folder, schema_file(tmp_path, tree, files="*.csv")).site_names == ()
    with pytest.raises(DataError, match=r"named as the schema file says, \*.parquet"):
        read(folder, schema_file(tmp_path, tree, files="*.parquet"))


def test_without_polars_a_csv_is_read_and_a_parquet_file_names_the_extra(tmp_path, monkeypatch):
    path, columns = written(tmp_path), schema_file(tmp_path)
    pl.read_csv(path).write_parquet(tmp_path / "ward.parquet")
    monkeypatch.setitem(__import__("sys").modules, "polars", None)
    assert len(read(path, columns).train) == 3
    with pytest.raises(ConfigError, match=r"pip install 'cadp-fl\[tables\]'"):
        read(tmp_path / "ward.parquet", columns)


def test_more_rows_than_memory_is_meant_for_are_refused(tmp_path, monkeypatch):
    path, columns = written(tmp_path), schema_file(tmp_path)
    pl.read_csv(path).write_parquet(tmp_path / "ward.parquet")
    monkeypatch.setattr(table_files, "MAX_ROWS", 3)
    for each in (path, tmp_path / "ward.parquet"):
        with pytest.raises(DataError, match="at most 3 rows"):
            read(each, columns)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"colums": []}, "Unknown key 'colums'. Did you mean 'columns'?"),
        ({"columns": [AGE | {"lowr": 1}]}, "Unknown key 'columns.0.lowr'. Did you mean 'lower'?"),
        ({"columns": [AGE | {"type": "float"}]}, "'columns.0.type' is 'number', 'integer', 'ordinal' or 'category'"),
        ({"columns": [AGE | {"lower": 100}]}, "column 'age' has bounds, lower below upper"),
        ({"columns": [AGE, AGE]}, "Found 'age' twice"),
        ({"columns": [{"name": "c", "type": "category", "categories": ["1", "1.0"]}]}, "categories that differ"),
        ({"columns": []}, "'columns' holds at least 1"),
        ({"label": {"column": "y"}}, "give label.classes"),
        ({"label": {"column": "y", "classes": ["a"]}}, "two or more classes that differ"),
        ({"label": {"column": "y", "classes": {"a": [1], "b": [1]}}}, "Found one twice in label.classes"),
        ({"label": {"column": "y", "classes": {"a": [1], "b": []}}}, "a class has values"),
        ({"label": {"column": "y", "above": 3, "classes": ["a", "b", "c"]}}, "has two classes"),
        ({"label": {"column": "age", "classes": ["a", "b"]}}, "Found 'age' twice"),
        ({"separator": ";;"}, "'separator' has at most 1 letter"),
        ({"separator": '"'}, "no quote"),
        ({"files": "a/{site}"}, "'files' has the form"),
        ({"files": "{site}", "roles": {"site": "hospital"}}, "remove one"),
        ({"roles": {"conditions": ["age"]}}, "a condition is one of columns, of two categories"),
        ({"columns": [SEX], "roles": {"conditions": ["sex"]}}, "a record has a feature"),
        ({"columns": [AGE, SEX | {"name": "s" * 70}], "roles": {"conditions": ["s" * 70]}}, "names are short"),
        ({"label": {"column": "y", "classes": ["a", "\ue000"]}}, "printable"),
    ],
)  # fmt: skip
def test_a_schema_file_that_does_not_fit_together_is_one_sentence(tmp_path, changed, sentence):
    tree = {"name": "t", "label": {"column": "y", "classes": ["0", "1"]}, "columns": [AGE]} | changed
    with pytest.raises(ConfigError) as refused:
        load_table_schema(schema_file(tmp_path, tree))
    assert sentence in str(refused.value)


def test_a_condition_is_an_attribute_of_a_record_and_no_feature(tmp_path):
    columns = schema_file(tmp_path, roles={**SCHEMA["roles"], "conditions": ["sex"]})
    source, plain = read(written(tmp_path), columns), read(written(tmp_path), schema_file(tmp_path))
    assert source.schema.attributes == ("yes", "sex=m")
    assert [column.name for column in source.schema.columns] == ["age", "dose", "stage"]
    np.testing.assert_array_equal(source.train.records, plain.train.records[:, [0, 1, 3]])
    np.testing.assert_array_equal(source.train.attributes, [[0, 0], [1, 1], [1, 0]])
    np.testing.assert_array_equal(source.train.labels, plain.train.labels)


def test_a_category_that_reads_like_a_missing_value_is_one(tmp_path):
    column = {"name": "c", "type": "category", "categories": ["NA", "b"], "missing": True}
    found = small(tmp_path, column, ["NA", "b", "?", ""]).train.records[:, 0]
    assert found.tolist() == [0, 1, 2, 2]


def test_a_tab_may_be_written_in_letters(tmp_path):
    (tmp_path / "t.tsv").write_text("age\ty\n20\t0\n21\t1\n")
    text = 'name: t\nlabel: {column: y, classes: ["0", "1"]}\nseparator: \\t\ncolumns:\n'
    (tmp_path / "c.yaml").write_text(text + "  - {name: age, type: integer, lower: 18, upper: 90}\n")
    assert len(read(tmp_path / "t.tsv", tmp_path / "c.yaml").train) == 2


def test_a_table_without_its_schema_file_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"data.columns is missing"):
        load_source(DataConfig(source="table", path=written(tmp_path)))


def test_ids_are_unique(tmp_path):
    with pytest.raises(DataError, match="Every record has an id of its own"):
        read(written(tmp_path, [*ROWS, ROWS[0]]), schema_file(tmp_path))
