"""Laws of every number in every config, in every request, and in everything else that crosses between parties."""

import importlib
import math
import pkgutil
import types
import typing
from typing import Annotated, Any, Union

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ValidationError

import cadp_fl
from cadp_fl.config import BudgetConfig, Settings

for _module in pkgutil.walk_packages(cadp_fl.__path__, "cadp_fl."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)


def _below(model: type) -> list[type[BaseModel]]:
    ours = [each for each in model.__subclasses__() if each.__module__.startswith("cadp_fl.")]
    return ours + [each for one in ours for each in _below(one)]


def _numbers(annotation: Any, limits: tuple[Any, ...] = ()) -> list[tuple[type, tuple[Any, ...]]]:
    """Every number in a type, with what limits it."""
    if typing.get_origin(annotation) is Annotated:
        base, *metadata = typing.get_args(annotation)
        found = [each for one in metadata for each in getattr(one, "metadata", [one])]
        return _numbers(base, (*limits, *found))
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [each for one in typing.get_args(annotation) for each in _numbers(one, limits)]
    if annotation in (int, float):
        return [(annotation, limits)]
    return [each for one in typing.get_args(annotation) if not isinstance(one, str) for each in _numbers(one)]


MODELS = {f"{each.__module__}.{each.__name__}": each for each in _below(BaseModel)}
FIELDS = {
    f"{name}.{key}": Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    for name, model in MODELS.items()
    for key, field in model.model_fields.items()
}
NUMBERS = {name: annotation for name, annotation in FIELDS.items() if _numbers(annotation)}


def test_the_law_sees_the_numbers_of_configs_methods_and_requests():
    names = " ".join(NUMBERS)
    for known in ("CentralTrainingConfig.weight_decay", "DpSgdSettings.rounds", "FlowRequest.seed", "min_units"):
        assert known in names
    assert "PolicyConfig.class_counts" in names
    assert "BudgetConfig.split" in names
    assert len(NUMBERS) > 100


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_finite_bounds(name):
    for kind, limits in _numbers(NUMBERS[name]):
        lower = [each.ge if isinstance(each, Ge) else each.gt for each in limits if isinstance(each, (Ge, Gt))]
        upper = [each.le if isinstance(each, Le) else each.lt for each in limits if isinstance(each, (Le, Lt))]
        assert math.isfinite(max(lower, default=-math.inf)), f"{name} ({kind.__name__}) has no lower bound"
        assert math.isfinite(min(upper, default=math.inf)), f"{name} ({kind.__name__}) has no upper bound"


OF_SETTINGS = [
    (MODELS[name.rpartition(".")[0]], name.rpartition(".")[2])
    for name in NUMBERS
    if issubclass(MODELS[name.rpartition(".")[0]], Settings)
]


@pytest.mark.parametrize(
    "value",
    [math.inf, -math.inf, math.nan, 10**400, -(10**400), True, "3", "yes", "1_0"],
    ids=lambda each: f"{each!r:.10}",
)
def test_no_number_is_infinite_or_true_or_text(value):
    for model, key in OF_SETTINGS:
        for shape in (value, [value], {"a": value}):
            with pytest.raises(ValidationError) as caught:
                model.model_validate({key: shape})
            assert key in [error["loc"][0] for error in caught.value.errors() if error["loc"]], (model, key, shape)


def test_a_whole_number_is_a_number_and_a_number_without_a_fraction_is_whole():
    budget = BudgetConfig.model_validate({"epsilon": 3, "delta": 1e-5, "records_per_patient": 2.0, "unit": "patient"})
    assert (budget.epsilon, type(budget.epsilon), budget.records_per_unit) == (3.0, float, 2)
