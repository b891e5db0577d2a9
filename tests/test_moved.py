"""What has another name now is still imported by the earlier one, with a warning that says the new one."""

import importlib
import sys
import warnings

import pytest

from cadp_fl.moved import MOVED, RENAMED


@pytest.mark.parametrize("earlier", MOVED)
def test_an_earlier_module_has_what_the_module_of_now_has(earlier):
    now = MOVED[earlier]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for above in [name for name in MOVED if earlier.startswith(f"{name}.")]:
            importlib.import_module(f"cadp_fl.{above}")
    sys.modules.pop(f"cadp_fl.{earlier}", None)
    with pytest.warns(DeprecationWarning, match=f"cadp_fl.{earlier} is cadp_fl.{now} now"):
        was = importlib.import_module(f"cadp_fl.{earlier}")
    real = importlib.import_module(f"cadp_fl.{now}")
    for name in getattr(real, "__all__", []):
        assert getattr(was, name) is getattr(real, name)
    for name, later in RENAMED.get(now, {}).items():
        assert getattr(was, name) is getattr(real, later)


def test_what_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("cadp_fl.site.nothing")
