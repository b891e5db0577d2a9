"""Schema files from and to what other tools keep of a table, as far as they say the same.

    SDV            metadata, V1 or SINGLE_TABLE_V1: names, kinds, whole or not, primary key. No bounds, no categories.
    Frictionless   Table Schema: names, types, minimum, maximum, enum or categories, required, missing values, key.

What a file does not say is left out of a draft, and named in a remark: the schema file is refused until it is there.

References:
    https://docs.sdv.dev/sdv/concepts/metadata/metadata-json
    https://datapackage.org/standard/table-schema/
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cadp_fl.data.columns import Column
from cadp_fl.data.images import printable
from cadp_fl.data.table_draft import Draft
from cadp_fl.data.table_schema import LabelRule, TableSchema
from cadp_fl.errors import InputError

__all__ = ["from_frictionless", "from_sdv", "to_frictionless", "to_sdv"]

MAX_BYTES = 16 << 20
_IMPORTED = "From {kind}. Bounds and categories are public: take none from private records."


def from_sdv(path: Path, label: str | None) -> Draft:
    """Return a draft from SDV's metadata of one table.

    Raises:
        InputError: the file is no such metadata, is of several tables, or has no such label.
    """
    tree = _json(path, "SDV metadata")
    tables = tree.get("tables")
    if isinstance(tables, Mapping):
        if len(tables) != 1:
            raise InputError(f"A schema file is of one table. '{path.name}' is of {len(tables)}; give one of them.")
        (table,) = tables.values()
    else:
        table = tree
    columns = table.get("columns") if isinstance(table, Mapping) else None
    if not isinstance(columns, Mapping) or not all(isinstance(each, Mapping) for each in columns.values()):
        raise InputError(f"SDV metadata has columns, each with an sdtype. '{path.name}' has none; check the file.")
    key = table.get("primary_key")
    described: dict[str, dict[str, Any] | None] = {}
    for name, said in columns.items():
        kind = said.get("sdtype")
        if kind == "numerical":
            whole = "int" in str(said.get("computer_representation", "")).lower()
            described[name] = {"name": name, "type": "integer" if whole else "number"}
        elif kind == "boolean":
            described[name] = {"name": name, "type": "category", "categories": ["false", "true"]}
        elif kind == "categorical":
            ordered = said.get("order")
            values = [str(each) for each in ordered] if isinstance(ordered, Sequence) else None
            described[name] = {"name": name, "type": "ordinal" if values else "category"} | (
                {"categories": values} if values else {}
            )
        else:
            described[name] = None
    return _draft(path, "SDV metadata", described, label, key)


def from_frictionless(path: Path, label: str | None) -> Draft:
    """Return a draft from a Frictionless Table Schema, or from the one resource of a data package.

    Raises:
        InputError: the file is no such schema, or has no such label.
    """
    tree = _json(path, "Frictionless Table Schema")
    resources = tree.get("resources")
    if isinstance(resources, Sequence) and len(resources) == 1 and isinstance(resources[0], Mapping):
        tree = resources[0].get("schema", {})
    fields = tree.get("fields") if isinstance(tree, Mapping) else None
    if not isinstance(fields, list) or not all(isinstance(each, Mapping) and "name" in each for each in fields):
        raise InputError(f"A Frictionless Table Schema has fields. '{path.name}' has none; check the file.")
    key = tree.get("primaryKey")
    key = key[0] if isinstance(key, list) and len(key) == 1 else key
    draft = _draft(
        path, "a Frictionless Table Schema", {str(each["name"]): _of_field(each) for each in fields}, label, key
    )
    if isinstance(values := tree.get("missingValues"), list):
        draft.tree["missing_values"] = [str(each) for each in values]
    return draft


def _of_field(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a column of a draft; None for a kind that tables here do not have."""
    constraints = said.get("constraints", {})
    constraints = constraints if isinstance(constraints, Mapping) else {}
    missing = {} if constraints.get("required") is True else {"missing": True}
    name, kind = str(said["name"]), said.get("type", "string")
    listed = said.get("categories", constraints.get("enum"))
    if kind == "boolean":
        return {"name": name, "type": "category", "categories": ["false", "true"], **missing}
    if isinstance(listed, list):
        values = [str(each["value"] if isinstance(each, Mapping) and "value" in each else each) for each in listed]
        is_ordered = said.get("categoriesOrdered") is True
        return {"name": name, "type": "ordinal" if is_ordered else "category", "categories": values, **missing}
    if kind in ("integer", "number", "year"):
        bounds = {
            mine: constraints[theirs]
            for mine, theirs in (("lower", "minimum"), ("upper", "maximum"))
            if isinstance(constraints.get(theirs), (int, float)) and not isinstance(constraints.get(theirs), bool)
        }
        return {"name": name, "type": "number" if kind == "number" else "integer", **bounds, **missing}
    return {"name": name, "type": "category", **missing} if kind == "string" else None


def _draft(path: Path, kind: str, described: dict[str, dict[str, Any] | None], label: str | None, key: object) -> Draft:
    """Return a draft, and in remarks what is left to say."""
    label = label or next(reversed(described), "")
    if label not in described:
        raise InputError(
            f"A label is one of the columns. '{path.name}' has no '{printable(label):.80}'; choose one of: "
            f"{', '.join(printable(name) for name in list(described)[:20])}."
        )
    roles = {"id": key} if isinstance(key, str) and key in described and key != label else {}
    columns = [said for name, said in described.items() if said is not None and name not in (label, *roles.values())]
    ignored = [name for name, said in described.items() if said is None and name not in (label, *roles.values())]
    classes = (described[label] or {}).get("categories")
    remarks = [_IMPORTED.format(kind=kind)]
    unbounded = [each["name"] for each in columns if each["type"] in ("number", "integer") and not _is_whole(each)]
    unlisted = [each["name"] for each in columns if each["type"] in ("category", "ordinal") and not _is_whole(each)]
    for what, names in (("lower and upper", unbounded), ("categories", unlisted)):
        if names:
            remarks.append(f"Fill in {what} of: {', '.join(printable(name) for name in names)}.")
    if classes is None:
        remarks.append(f"Fill in label.classes: the values of '{printable(label)}', or above: a number.")
    if ignored:
        remarks.append(f"Ignored, since tables here have no such kind: {', '.join(map(printable, ignored))}.")
    tree: dict[str, Any] = {
        "name": path.stem[:80],
        "label": {"column": label} | ({"classes": classes} if classes else {}),
    }
    tree["columns"] = columns
    tree |= {"roles": roles} if roles else {}
    tree |= {"ignore": ignored} if ignored else {}
    return Draft(tree, remarks)


def _is_whole(column: Mapping[str, Any]) -> bool:
    return "categories" in column or ("lower" in column and "upper" in column)


def to_sdv(schema: TableSchema) -> dict[str, Any]:
    """Return SDV metadata, V1, of a table; bounds and categories have no place in it."""
    kinds = {
        "number": {"sdtype": "numerical", "computer_representation": "Float"},
        "integer": {"sdtype": "numerical", "computer_representation": "Int64"},
    }
    columns: dict[str, dict[str, str]] = {
        column.name: dict(kinds.get(column.type, {"sdtype": "categorical"})) for column in schema.columns
    }
    columns[schema.label.column] = {"sdtype": "numerical" if schema.label.above is not None else "categorical"}
    for role, name in schema.roles.given.items():
        columns[name] = {"sdtype": "id" if role in ("patient", "id") else "categorical"}
    table: dict[str, Any] = {"columns": columns}
    if schema.roles.id is not None:
        table["primary_key"] = schema.roles.id
    return {"METADATA_SPEC_VERSION": "V1", "tables": {schema.name: table}, "relationships": []}


def to_frictionless(schema: TableSchema) -> dict[str, Any]:
    """Return a Frictionless Table Schema."""
    fields = [_field(column) for column in schema.columns]
    fields.append({"name": schema.label.column, **_label_field(schema.label)})
    fields += [{"name": name, "type": "string"} for name in schema.roles.given.values()]
    tree: dict[str, Any] = {"fields": fields, "missingValues": list(schema.missing_values)}
    if schema.roles.id is not None:
        tree["primaryKey"] = schema.roles.id
    return tree


def _field(column: Column) -> dict[str, Any]:
    constraints: dict[str, Any] = {} if column.missing else {"required": True}
    if column.has_bounds:
        as_written = int if column.type == "integer" else float
        assert column.lower is not None, "checked"
        assert column.upper is not None, "checked"
        constraints |= {"minimum": as_written(column.lower), "maximum": as_written(column.upper)}
        return {"name": column.name, "type": column.type, "constraints": constraints}
    ordered = {"categoriesOrdered": True} if column.type == "ordinal" else {}
    named = {"name": column.name, "type": "string", "categories": list(column.categories)}
    return named | ordered | ({"constraints": constraints} if constraints else {})


def _label_field(label: LabelRule) -> dict[str, Any]:
    required = {"constraints": {"required": True}}
    if label.above is not None:
        return {"type": "number", **required}
    return {"type": "string", "categories": list(label.values), **required}


def _json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{what} is a JSON file. There is none at '{path}'; check the path.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        tree = json.loads(data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{what} is JSON. '{path.name}' is not; check the file.") from error
    if not isinstance(tree, dict):
        raise InputError(f"{what} is one JSON object of at most {MAX_BYTES >> 20} MiB. '{path.name}' is not; check it.")
    return tree
