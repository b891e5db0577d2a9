"""Columns of a table as everybody may know them: names, types, bounds and categories, and nothing of a record.

A value is stored as a code, a whole number from 0, so that whatever a flow draws is a valid value again:

    number, integer, ordinal   code v of L stands for the v-th of L steps from `lower` to `upper`, on a public scale
    category                   code v stands for the v-th of `categories`
    missing                    the last code, where a value may be missing

Names follow the schemas of synthesizers with differential privacy: `lower`, `upper`, `categories`.
"""

import math
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

__all__ = ["MAX_CATEGORIES", "MAX_COLUMNS", "MAX_STEPS", "Block", "Column"]

MAX_COLUMNS = 4096
MAX_CATEGORIES = 1000
MAX_STEPS = 1 << 16
"""Values of a column of numbers. Integers between bounds that are farther apart share steps."""

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\p{C}]+$")]
_Finite = Annotated[float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)]

Block = tuple[Literal["number", "number-or-missing", "category"], int]
"""What a column is in the vector that a flow is given, and how many numbers of it."""


class Column(BaseModel):
    """One column of a table.

    Attributes:
        name: as the file names it.
        type: number and integer have bounds; ordinal, with an order, and category have categories.
        lower, upper: bounds, of which no record knows anything.
        scale: what is divided into equal steps: the value, or its logarithm.
        knots: values from `lower` to `upper` that are equal steps apart instead; linear between them.
        decimals: of a number, when it is written; by default as many as its steps need.
        categories: every value.
        missing: whether a value may be missing.
        outside: what a value outside of bounds and categories is: refused, brought to the nearest bound, or missing.

    Raises:
        pydantic.ValidationError: it does not fit together.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: _Name
    type: Literal["number", "integer", "ordinal", "category"]
    lower: _Finite | None = None
    upper: _Finite | None = None
    scale: Literal["linear", "log"] = "linear"
    knots: tuple[_Finite, ...] = Field((), max_length=1000)
    decimals: int | None = Field(None, ge=0, le=12)
    categories: tuple[_Name, ...] = Field((), max_length=MAX_CATEGORIES)
    missing: bool = False
    outside: Literal["refuse", "clip", "missing"] = "refuse"

    @model_validator(mode="after")
    def _fits_together(self) -> "Column":
        if self.has_bounds:
            self._check_bounds()
        elif len(self.categories) < 2 or len(set(self.categories)) < len(self.categories):
            raise ValueError(f"column '{self.name}' has two or more categories that differ")
        elif self.lower is not None or self.upper is not None or self.knots or self.scale != "linear":
            raise ValueError(f"column '{self.name}' has categories, and no bounds, scale or knots")
        if self.outside == "missing" and not self.missing:
            raise ValueError(f"column '{self.name}' makes values missing, so they may be: give missing: true")
        if self.outside == "clip" and not self.has_bounds:
            raise ValueError(f"column '{self.name}' has no bounds to clip to")
        return self

    def _check_bounds(self) -> None:
        if self.lower is None or self.upper is None or not self.lower < self.upper:
            raise ValueError(f"column '{self.name}' has bounds, lower below upper")
        if self.categories:
            raise ValueError(f"column '{self.name}' has bounds, and no categories")
        if self.type == "integer" and (self.lower != round(self.lower) or self.upper != round(self.upper)):
            raise ValueError(f"column '{self.name}' has whole numbers as bounds")
        if self.scale == "log" and (self.lower <= 0 or self.knots):
            raise ValueError(f"column '{self.name}' has a logarithmic scale: lower is above 0, and there are no knots")
        if self.knots and not (
            len(self.knots) > 1
            and (self.knots[0], self.knots[-1]) == (self.lower, self.upper)
            and all(low < high for low, high in zip(self.knots, self.knots[1:], strict=False))
        ):
            raise ValueError(f"column '{self.name}' has knots that rise from lower to upper")

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what a column does not say."""
        fields = type(self).model_fields
        tree: dict[str, Any] = handler(self)
        return {name: value for name, value in tree.items() if getattr(self, name) != fields[name].default}

    @property
    def has_bounds(self) -> bool:
        """Whether its values are numbers."""
        return self.type in ("number", "integer")

    @cached_property
    def steps(self) -> int:
        """L, the number of values, without that of being missing."""
        if not self.has_bounds:
            return len(self.categories)
        assert self.lower is not None, "checked"
        assert self.upper is not None, "checked"
        is_exact = self.type == "integer" and self.scale == "linear" and not self.knots
        return int(min(MAX_STEPS, self.upper - self.lower + 1)) if is_exact else MAX_STEPS

    @property
    def codes(self) -> int:
        """Number of codes: one a value, and the last for a missing one."""
        return self.steps + self.missing

    @property
    def block(self) -> Block:
        """What it is in the vector that a flow is given.

        A category of two is one number, and one of more is one-hot; that a value is missing is one of the categories,
        or a number beside the value.
        """
        if self.type == "category":
            return "category", 1 if self.codes == 2 else self.codes
        return ("number-or-missing", 2) if self.missing else ("number", 1)

    def codes_of(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of values, int32 (records,), and which are outside of the schema, bool (records,).

        A missing value is outside where none may be missing. What `outside` says is done to the codes; a caller that
        refuses looks at the flags.

        Args:
            values: float64 with NaN, of a column with bounds; else of text, with None, dtype object.
        """
        if self.has_bounds:
            return self._codes_of_numbers(values)
        of_name = {name: code for code, name in enumerate(self.categories)}
        found = np.array([-2 if value is None else of_name.get(value, -1) for value in values], dtype=np.int32)
        outside = found == -1
        gone = found == -2
        return self._with_missing(found, outside, gone)

    def _codes_of_numbers(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.lower is not None, "checked"
        assert self.upper is not None, "checked"
        gone = np.isnan(values)
        outside = ~gone & ~((values >= self.lower) & (values <= self.upper))
        if self.type == "integer":
            outside |= ~gone & (values != np.round(values))
        inside = np.clip(np.where(gone, self.lower, values), self.lower, self.upper)
        codes = np.round(inside) - self.lower if self._is_counted else np.floor(self._unit(inside) * self.steps)
        found = np.clip(codes, 0, self.steps - 1).astype(np.int32)
        if self.outside == "clip":
            return self._with_missing(found, np.zeros_like(gone), gone)[0], outside | (gone & (not self.missing))
        return self._with_missing(found, outside, gone)

    def _with_missing(self, codes: np.ndarray, outside: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return codes in which what is missing, and what is outside, has the last code or else the first."""
        nowhere = self.steps if self.missing else 0
        return np.where(outside | gone, np.int32(nowhere), codes), outside | (gone & (not self.missing))

    def values_of(self, codes: np.ndarray) -> np.ndarray:
        """Return the values of codes: float64 with NaN of a column with bounds, else text with None, dtype object."""
        if not self.has_bounds:
            names: np.ndarray = np.array([*self.categories, None], dtype=object)[np.minimum(codes, self.steps)]
            return names
        assert self.lower is not None, "checked"
        if self._is_counted:
            values = codes + self.lower
        else:
            values = np.round(self._value((codes + 0.5) / self.steps), self._decimals)
            values = np.clip(values, self.lower, self.upper) + 0.0  # and no negative zero
        known: np.ndarray = np.where(codes >= self.steps, np.nan, values)
        return known

    @property
    def _is_counted(self) -> bool:
        """Whether every whole number between the bounds has a code of its own."""
        assert self.lower is not None, "checked"
        assert self.upper is not None, "checked"
        is_linear = self.scale == "linear" and not self.knots
        return self.type == "integer" and is_linear and self.steps == self.upper - self.lower + 1

    @property
    def _decimals(self) -> int:
        if self.type == "integer":
            return 0
        if self.decimals is not None:
            return self.decimals
        assert self.lower is not None, "checked"
        assert self.upper is not None, "checked"
        return max(0, math.ceil(-math.log10((self.upper - self.lower) / self.steps)))

    def _unit(self, values: np.ndarray) -> np.ndarray:
        """Return where values lie on the scale, from 0 to 1."""
        if self.knots:
            knotted: np.ndarray = np.interp(values, self.knots, np.linspace(0, 1, len(self.knots)))
            return knotted
        assert self.lower is not None, "checked"
        assert self.upper is not None, "checked"
        if self.scale == "log":
            return self._between(np.log(values), math.log(self.lower), math.log(self.upper))
        return self._between(values, self.lower, self.upper)

    @staticmethod
    def _between(values: np.ndarray, low: float, high: float) -> np.ndarray:
        unit: np.ndarray = (values - low) / (high - low)
        return unit

    def _value(self, unit: np.ndarray) -> np.ndarray:
        """Return the values at places on the scale; the inverse of `_unit`."""
        if self.knots:
            knotted: np.ndarray = np.interp(unit, np.linspace(0, 1, len(self.knots)), self.knots)
            return knotted
        assert self.lower is not None, "checked"
        assert self.upper is not None, "checked"
        if self.scale == "log":
            value: np.ndarray = self.lower * (self.upper / self.lower) ** unit
            return value
        linear: np.ndarray = self.lower + (self.upper - self.lower) * unit
        return linear
