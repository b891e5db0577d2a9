"""The public schema file of a table: what its columns are, and what each says of a record.

    name: heart
    label: {column: target, classes: {healthy: [0], ill: [1, 2, 3, 4]}}
    columns:
      - {name: age, type: integer, lower: 20, upper: 90}
      - {name: cp, type: category, categories: [1, 2, 3, 4]}
    roles: {patient: patient_id, site: hospital}
    ignore: [remark]

Whoever writes it takes names, bounds and categories from what everybody may know, and never from the records. A value
is compared as it is written, without spaces around it; a whole number is the same with and without `.0`, and `True` is
`true`.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from cadp_fl.config import Settings, parse
from cadp_fl.config.reader import read_file
from cadp_fl.config.settings import Name
from cadp_fl.data.columns import MAX_COLUMNS, Column
from cadp_fl.data.schema import MAX_ATTRIBUTES, Schema
from cadp_fl.errors import DataError

__all__ = [
    "LabelRule",
    "TableColumn",
    "TableRoles",
    "TableSchema",
    "as_compared",
    "load_table_schema",
    "table_schema_for",
]

_Bound = Annotated[float, Field(ge=-1e15, le=1e15)]
_WHOLE = re.compile(r"([-+]?[0-9]+)\.0+")


def as_compared(text: str) -> str:
    """Return a value as it is compared: without spaces around it, a whole number without `.0`, `True` as `true`."""
    text = text.strip()
    if text in ("True", "TRUE", "False", "FALSE"):
        return text.lower()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


class TableColumn(Column, Settings):
    """One column, and how it is written in files.

    Attributes:
        missing_values: texts that mean missing in this column, beside those of the file.
    """

    missing_values: tuple[str, ...] = Field((), max_length=100)

    @property
    def public(self) -> Column:
        """The column of a schema."""
        return Column(**{name: getattr(self, name) for name in Column.model_fields})

    @model_validator(mode="after")
    def _categories_differ(self) -> Self:
        if len({as_compared(each) for each in self.categories}) < len(self.categories):
            raise ValueError(f"column '{self.name}' has categories that differ in more than spaces or a '.0'")
        return self


class LabelRule(Settings):
    """Which column says what class a record is of, and how."""

    column: Name = Field(description="name of the column")
    classes: dict[Name, tuple[str, ...]] | tuple[Name, ...] | None = Field(
        None, description="the values of each class by its name; a list where the values are the names"
    )
    above: _Bound | None = Field(None, description="of a number: the second class is above it, the first is not")

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of their labels."""
        if self.classes is None:
            return (f"up to {self.above:g}", f"above {self.above:g}")
        return tuple(self.classes)

    @property
    def values(self) -> dict[str, int]:
        """The label of every value, as it is compared; none where a number is compared."""
        if self.above is not None:
            return {}
        classes = self.classes if isinstance(self.classes, dict) else {name: (name,) for name in self.names}
        return {as_compared(value): label for label, values in enumerate(classes.values()) for value in values}

    @model_validator(mode="after")
    def _says_how(self) -> Self:
        if self.above is None and self.classes is None:
            raise ValueError("a label has classes, or is above a number. Found neither; give label.classes")
        if len(self.names) < 2 or len(set(self.names)) < len(self.names):
            raise ValueError(f"a label has two or more classes that differ. Found {list(self.names)}")
        if self.above is not None:
            if len(self.names) != 2 or isinstance(self.classes, dict):
                raise ValueError("a label above a number has two classes. Give label.classes a list of two names")
            return self
        count = sum(map(len, self.classes.values())) if isinstance(self.classes, dict) else len(self.names)
        if len(self.values) < count:
            raise ValueError("a value is of one class. Found one twice in label.classes; remove one of the two")
        if isinstance(self.classes, dict) and not all(self.classes.values()):
            raise ValueError("a class has values. Found one without in label.classes; name its values, or remove it")
        return self


class TableRoles(Settings):
    """Columns that are no features, or features that a flow is given instead of the label."""

    patient: Name | None = Field(None, description="whose record it is")
    id: Name | None = Field(None, description="which record it is, the same in every export")
    site: Name | None = Field(None, description="which hospital it is of")
    split: Name | None = Field(None, description="train, validation or test")
    conditions: tuple[Name, ...] = Field(
        (),
        max_length=MAX_ATTRIBUTES - 1,
        description="columns of two categories that are public attributes of a record, as its label is, and no "
        "features; a release keeps or randomizes each (release.attributes)",
    )

    @property
    def given(self) -> dict[str, str]:
        """The columns by role."""
        columns = {role: getattr(self, role) for role in ("patient", "id", "site", "split")}
        return {role: column for role, column in columns.items() if column is not None}


class TableSchema(Settings):
    """What is public of a table."""

    name: str = Field(min_length=1, max_length=80, description="of the data set")
    label: LabelRule
    columns: tuple[TableColumn, ...] = Field(min_length=1, max_length=MAX_COLUMNS, description="features, in order")
    roles: TableRoles = TableRoles()
    ignore: Literal["rest"] | tuple[Name, ...] = Field(
        (), description="columns that are not read; rest: all that are not named"
    )
    files: str | None = Field(
        None,
        pattern=r"^[^/\\]+$",
        description="names of the files of a folder, such as *.csv; {site} stands for the name of a file's site",
    )
    separator: str = Field(",", min_length=1, max_length=1, description="between values of a CSV; \\t for a tab")
    decimal: Literal[".", ","] = Field(".", description="between the whole part of a number and its fraction")
    missing_values: tuple[str, ...] = Field(
        ("", "NA", "NaN", "nan", "null", "?"), max_length=100, description="texts that mean missing"
    )

    @field_validator("separator", mode="before")
    @classmethod
    def _tab(cls, text: object) -> object:
        return "\t" if text == "\\t" else text

    @field_validator("separator")
    @classmethod
    def _is_no_quote(cls, text: str) -> str:
        if text in '"\r\n':
            raise ValueError("a separator is a letter between values, and no quote or end of a line")
        return text

    @model_validator(mode="after")
    def _a_column_has_one_role(self) -> Self:
        ignored = () if self.ignore == "rest" else self.ignore
        names = [*self.read, *ignored]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"a column is a feature, the label, has one of the roles or is ignored. Found '{twice}' twice; name it "
                "once"
            )
        for name in self.roles.conditions:
            column = next((each for each in self.columns if each.name == name), None)
            if column is None or len(column.categories) != 2 or column.missing or len(self.label.names) != 2:
                raise ValueError(
                    "a condition is one of columns, of two categories, never missing, beside a label of two classes. "
                    f"Found '{name}' among roles.conditions; describe it so, or leave it out"
                )
        if self.files is not None and self.files.count("{site}") > 1:
            raise ValueError("files has {site} once. Found it again; remove one")
        if self.files is not None and "{site}" in self.files and self.roles.site is not None:
            raise ValueError("a site is named by a column or by files. Found roles.site and {site}; remove one")
        if not self.features:
            raise ValueError("a record has a feature. Found conditions alone; describe another column")
        try:
            _ = self.public
        except ValidationError as error:
            said = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
            raise ValueError(f"names are short, printable and differ. Found others ({said}); rename them") from error
        return self

    @property
    def read(self) -> tuple[str, ...]:
        """The columns that are read."""
        return (*(column.name for column in self.columns), self.label.column, *self.roles.given.values())

    @property
    def features(self) -> tuple[TableColumn, ...]:
        """The columns that make a record."""
        return tuple(column for column in self.columns if column.name not in self.roles.conditions)

    @property
    def conditions(self) -> tuple[TableColumn, ...]:
        """The columns that are attributes of a record, in order."""
        return tuple(column for column in self.columns if column.name in self.roles.conditions)

    @property
    def public(self) -> Schema:
        """The schema of the records. Its attributes are the second class, and of each condition the second category."""
        columns = tuple(column.public for column in self.features)
        named = [_attribute(column) for column in self.conditions]
        return Schema(
            name=self.name,
            shape=(len(columns),),
            classes=self.label.names,
            columns=columns,
            attributes=(self.label.names[-1], *named) if named else (),
            label_column=self.label.column,
        )

    @classmethod
    def of(cls, schema: Schema) -> "TableSchema":
        """Return how rows of a schema are read from a file that was written by it; see `cadp_fl.data.table_writer`."""
        names = {column.name for column in schema.columns}
        label = schema.label_column or "label"
        while label in names:
            label += "_"
        conditions = [
            TableColumn(name=name, type="category", categories=("0", "1"))
            for name in schema.attributes
            if name != schema.classes[-1]
        ]
        return cls(
            name=schema.name,
            label=LabelRule(column=label, classes=schema.classes),
            columns=(*(TableColumn(**column.model_dump()) for column in schema.columns), *conditions),
            roles=TableRoles(conditions=tuple(column.name for column in conditions)),
            missing_values=("",),
        )


def _attribute(column: Column) -> str:
    """Return the name of the attribute that a condition is: what a record has that is of its second category."""
    return column.name if column.categories == ("0", "1") else f"{column.name}={column.categories[1]}"


def table_schema_for(schema: Schema, columns: Path | None) -> TableSchema:
    """Return how rows of a schema are read: as its schema file says, or else as rows that were exported.

    Args:
        columns: the schema file.

    Raises:
        ConfigError: the schema file breaks a rule.
        DataError: it is of rows with other columns or classes.
    """
    if columns is None:
        return TableSchema.of(schema)
    read = load_table_schema(columns)
    found = read.public
    for what, mine, theirs in (
        ("columns", found.columns, schema.columns),
        ("classes", found.classes, schema.classes),
        ("conditions", found.attributes, schema.attributes),
    ):
        if mine != theirs:
            raise DataError(
                f"Rows follow the schema that a flow or a classifier was trained with. '{columns}' has other {what}; "
                "name the schema file of that training."
            )
    return read


def load_table_schema(path: Path) -> TableSchema:
    """Return what a schema file says.

    Raises:
        ConfigError: the file is missing or breaks a rule of YAML, a key is unknown, or columns do not fit together.
    """
    return parse(TableSchema, read_file(path, "schema file"))
