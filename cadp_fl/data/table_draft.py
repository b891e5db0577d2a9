"""Drafts of schema files: from a public sample of a table, for a person to correct.

What a draft says comes from the sample's values, so that one of private records is a leak: bounds and categories that
were read from them say what they hold.
"""

import csv
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cadp_fl.config import dump_tree
from cadp_fl.config.scalars import NUMBER
from cadp_fl.data.columns import MAX_CATEGORIES
from cadp_fl.data.images import printable
from cadp_fl.data.table_files import open_table
from cadp_fl.data.table_schema import TableSchema, as_compared
from cadp_fl.errors import DataError, InputError

__all__ = ["LEAK", "Draft", "draft_of_sample"]

LEAK = (
    "A DRAFT, from the values of a sample. If the sample is of private records, this file is a LEAK: bounds and "
    "categories that are read from records say what they hold, and no budget covers that. Draft from public records "
    "alone, and correct every line by what is known of a measurement before any record is looked at."
)
"""Is printed, and stands on top of a draft."""

SEPARATORS = ",;\t|"
FEW_NUMBERS = 12
"""Different whole numbers up to which a column is taken for one of categories."""
MOST_CATEGORIES = 100
"""Different texts up to which a column is taken for one of categories, and not for names or remarks."""
WIDTH = 100

_LABELS = ("label", "target", "class", "outcome", "diagnosis", "y")
_ROLES = {
    "patient": ("patient", "patient_id", "patientid", "subject", "subject_id"),
    "id": ("id", "row_id", "record_id"),
    "site": ("site", "hospital", "centre", "center"),
    "split": ("split",),
}


@dataclass
class Draft:
    """A schema file that a person completes.

    Attributes:
        tree: as the file has it.
        remarks: what there is to look at, a sentence each.
    """

    tree: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return it as YAML, a column a line, below its remarks."""
        lines = [f"# {line}".rstrip() for remark in self.remarks for line in textwrap.wrap(remark, WIDTH)]
        for key, value in self.tree.items():
            if key == "columns":
                lines += ["columns:", *(f"  - {_in_line(column)}" for column in value)]
            elif isinstance(value, Mapping):
                lines.append(f"{_key(key)}: {_in_line(value)}")
            else:
                lines.append(_in_line({key: value})[1:-1])
        return "\n".join(lines) + "\n"


def _in_line(tree: Mapping[str, Any]) -> str:
    plain = {name: int(each) if isinstance(each, float) and each.is_integer() else each for name, each in tree.items()}
    return dump_tree(plain, in_one_line=True).strip()


def _key(key: str) -> str:
    return _in_line({key: 0})[1:].removesuffix(": 0}")


def draft_of_sample(path: Path, label: str | None) -> Draft:
    """Return a draft of the schema file of a table.

    Args:
        path: of a CSV or Parquet file, which is public.
        label: the column of classes; one that is called so, or the last, by default.

    Raises:
        InputError: there is no such file, or no such column.
        DataError: the file cannot be read.
    """
    if not path.is_file():
        raise InputError(f"A draft is made from a file of public records. There is none at '{path}'; check the path.")
    separator = _separator(path)
    table = open_table(path, separator)
    if label is not None and label not in table.columns:
        raise InputError(
            f"A label is one of the columns. '{table.name}' has no '{printable(label):.80}'; choose one of: "
            f"{', '.join(printable(name) for name in table.columns[:20])}."
        )
    label = label or next((name for name in table.columns if name.lower() in _LABELS), table.columns[-1])
    roles = {
        role: name
        for role, names in _ROLES.items()
        if (name := next((each for each in table.columns if each.lower() in names and each != label), None)) is not None
    }
    seen = {name: _Seen() for name in table.columns}
    for piece in table.pieces(table.columns):
        for name, texts in piece.columns.items():
            seen[name].add(texts)
    remarks = [LEAK, f"The label is '{printable(label)}'; say so with --label where it is another column."]
    columns, ignored = [], []
    for name in table.columns:
        if name == label or name in roles.values():
            continue
        column = seen[name].column(name)
        if column is None:
            ignored.append(name)
        else:
            columns.append(column)
    if ignored:
        remarks.append(
            f"Ignored, since they hold one value, or too many texts for categories: "
            f"{', '.join(printable(name) for name in ignored[:20])}."
        )
    if not columns:
        raise DataError(f"A table has columns of features. '{table.name}' has none that can be told; write the schema.")
    tree: dict[str, Any] = {"name": re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:80] or "table"}
    tree["label"] = seen[label].label(label)
    if separator != "," and not table.is_parquet:
        tree["separator"] = separator
    tree["columns"] = columns
    tree |= {"roles": roles} if roles else {}
    tree |= {"ignore": ignored} if ignored else {}
    return Draft(tree, remarks)


def _separator(path: Path) -> str:
    """Return the separator that the header of a CSV has most of."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            header = file.readline(1 << 20)
        return max(SEPARATORS, key=lambda each: len(next(csv.reader([header], delimiter=each), [])))
    except (OSError, csv.Error):
        return ","


_MISSING = {as_compared(text) for text in TableSchema.model_fields["missing_values"].default}


class _Seen:
    """What a column of a sample holds."""

    def __init__(self) -> None:
        self._texts: dict[str, None] | None = {}
        self._low, self._high = math.inf, -math.inf
        self._are_numbers, self._are_whole, self._has_missing, self._decimals = True, True, False, 0

    def add(self, texts: Sequence[str | None]) -> None:
        """Look at values."""
        for text in dict.fromkeys(texts):
            written = None if text is None else as_compared(text)
            if written is None or written in _MISSING:
                self._has_missing = True
                continue
            if self._texts is not None:
                self._texts[written] = None
                if len(self._texts) > MAX_CATEGORIES:
                    self._texts = None
            if not re.fullmatch(NUMBER, written):
                self._are_numbers = False
            elif self._are_numbers:
                number = float(written)
                self._low, self._high = min(self._low, number), max(self._high, number)
                self._are_whole = self._are_whole and number.is_integer()
                self._decimals = max(self._decimals, len(written.partition(".")[2]))

    def column(self, name: str) -> dict[str, Any] | None:
        """Return a column of a draft; None for one that holds one value, names or remarks."""
        missing = {"missing": True} if self._has_missing else {}
        few = FEW_NUMBERS if self._are_numbers else MOST_CATEGORIES
        if self._texts is not None and len(self._texts) < 2:
            return None
        if self._texts is not None and len(self._texts) <= few and (self._are_whole or not self._are_numbers):
            return {"name": name, "type": "category", "categories": self._sorted(), **missing}
        if not self._are_numbers:
            return None
        lower, upper = _rounded_outwards(self._low, self._high, whole=self._are_whole)
        if self._are_whole:
            return {"name": name, "type": "integer", "lower": int(lower), "upper": int(upper), **missing}
        decimals = {"decimals": self._decimals} if self._decimals <= 6 else {}
        return {"name": name, "type": "number", "lower": lower, "upper": upper, **decimals, **missing}

    def label(self, name: str) -> dict[str, Any]:
        """Return the label of a draft."""
        if self._texts is not None and 2 <= len(self._texts) <= MOST_CATEGORIES:
            return {"column": name, "classes": self._sorted()}
        if self._are_numbers and self._low < self._high:
            return {"column": name, "above": (self._low + self._high) / 2}
        raise DataError(
            f"A label has two or more classes, or is a number. Column '{printable(name)}' is neither; choose another "
            "with --label."
        )

    def _sorted(self) -> list[str]:
        assert self._texts is not None, "asked before"
        return sorted(self._texts, key=lambda text: (float(text), text)) if self._are_numbers else sorted(self._texts)


def _rounded_outwards(low: float, high: float, *, whole: bool) -> tuple[float, float]:
    """Return round numbers around a range, as a person might have named them."""
    if low == high:
        low, high = low - 1, high + 1
    step = 10.0 ** math.floor(math.log10(high - low))
    if whole:
        step = max(step, 1.0)
    digits = max(0, -math.floor(math.log10(step)))
    return round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits)
