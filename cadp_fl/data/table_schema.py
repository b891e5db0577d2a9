"""The schema file of a table: what everybody may know of it, in YAML.

    name: heart-disease
    label: {column: target, classes: {healthy: ["0"], diseased: ["1", "2", "3", "4"]}}
    columns:
      - {name: age, type: integer, lower: 20, upper: 90, outside: clip}
      - {name: cp, type: category, categories: ["1", "2", "3", "4"]}
    roles: {patient: patient_id}
    ignore: [remarks]

Bounds and categories are public: they come from what is known of a measurement, and never from the records.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from cadp_fl.config import Settings, parse
from cadp_fl.config.reader import read_file
from cadp_fl.data.columns import MAX_COLUMNS, Column
from cadp_fl.data.schema import MAX_CLASSES, Schema
from cadp_fl.errors import ConfigError

__all__ = ["LabelColumn", "TableRoles", "TableSchema", "as_text", "load_table_schema"]

_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Bound = Annotated[float, Field(ge=-1e15, le=1e15)]


def as_text(value: object) -> str:
    """Return a value as text that does not depend on how a file stores it: 1, 1.0, '1' and ' 1.0 ' are '1'."""
    text = str(value).strip()
    if re.fullmatch(r"-?[0-9]{1,15}\.0+", text):
        return text.partition(".")[0]
    return text


class LabelColumn(Settings):
    """Which column is the label, and what its values mean."""

    column: _Name = Field(description="that holds the label")
    classes: tuple[str, ...] | Mapping[str, tuple[str, ...]] = Field(
        description="names of the classes, in order: as the column has them, or each with the values that mean it"
    )
    above: _Bound | None = Field(None, description="of a number: above it a record is of the second of two classes")

    @field_validator("classes", mode="before")
    @classmethod
    def _values_are_text(cls, classes: Any) -> Any:
        if isinstance(classes, Mapping):
            return {
                as_text(name): tuple(as_text(value) for value in (values if isinstance(values, list) else [values]))
                for name, values in classes.items()
            }
        return tuple(as_text(name) for name in classes) if isinstance(classes, list | tuple) else classes

    @model_validator(mode="after")
    def _fits_together(self) -> "LabelColumn":
        if not 2 <= len(self.classes) <= MAX_CLASSES:
            raise ValueError(f"a label has two or more classes. Found {len(self.classes)}")
        if self.above is not None and (isinstance(self.classes, Mapping) or len(self.classes) != 2):
            raise ValueError("a label that is a number above a threshold has two names: of those below, and above")
        values = [value for each in self.values.values() for value in each]
        if len(set(values)) < len(values):
            raise ValueError("every value of a label means one class. Found one twice")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The classes' names, in order."""
        return tuple(self.classes)

    @property
    def values(self) -> dict[str, tuple[str, ...]]:
        """The values that mean each class."""
        return dict(self.classes) if isinstance(self.classes, Mapping) else {name: (name,) for name in self.classes}


class TableRoles(Settings):
    """Columns that say of a row who, which, where and when, and are no features."""

    patient: _Name | None = Field(None, description="whose row it is")
    id: _Name | None = Field(None, description="which row it is, the same in every export")
    site: _Name | None = Field(None, description="of which hospital it is")
    split: _Name | None = Field(None, description="train, validation or test")

    @property
    def given(self) -> dict[str, str]:
        """The columns by role."""
        return {role: name for role, name in dict(self).items() if name is not None}


class TableSchema(Settings):
    """A table as everybody may know it."""

    name: str = Field(min_length=1, max_length=80, description="of the data set, the same at every site")
    label: LabelColumn
    columns: tuple[Column, ...] = Field(min_length=1, max_length=MAX_COLUMNS)
    roles: TableRoles = TableRoles()
    ignore: tuple[_Name, ...] | str = Field((), description="columns that are left out; rest: all that are not named")
    missing_values: tuple[str, ...] = Field(
        ("", "NA", "NaN", "nan", "null", "?"), description="texts that mean missing"
    )
    separator: str = Field(",", min_length=1, max_length=1, description="between the values of a CSV file")
    files: str | None = Field(
        None,
        description="names of the files in a folder, one a site, with {site} in the place of its name: "
        "processed.{site}.data",
    )

    @field_validator("columns", mode="before")
    @classmethod
    def _categories_are_text(cls, columns: Any) -> Any:
        if not isinstance(columns, list | tuple):
            return columns
        return [
            {**each, "categories": [as_text(value) for value in each["categories"]]}
            if isinstance(each, Mapping) and isinstance(each.get("categories"), list)
            else each
            for each in columns
        ]

    @model_validator(mode="after")
    def _names_differ(self) -> "TableSchema":
        names = [column.name for column in self.columns] + [self.label.column, *self.roles.given.values()]
        names += self.ignore if isinstance(self.ignore, tuple) else []
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"every column of a table has one part in it. Found '{twice[0]}' twice")
        if isinstance(self.ignore, str) and self.ignore != "rest":
            raise ValueError(f"ignore is a list of columns, or rest. Found '{self.ignore}'")
        if self.files is not None and self.files.count("{site}") != 1:
            raise ValueError("files has {site} once, in the place of a site's name")
        return self

    def schema_of_records(self, name: str | None = None) -> Schema:
        """Return the public shape of the table's rows."""
        return Schema(
            name=name or self.name, shape=(len(self.columns),), classes=self.label.names, columns=self.columns
        )


def load_table_schema(path: Path) -> TableSchema:
    """Read a schema file.

    Raises:
        ConfigError: it is missing or breaks a rule of YAML, a key is unknown, or a value is out of range.
    """
    tree = read_file(path, "schema file")
    if "columns" not in tree:
        raise ConfigError(
            f"A schema file names the columns of a table. '{path}' has no columns; let cadp-fl data schema draft one "
            "from a public sample."
        )
    return parse(TableSchema, tree, where="")
