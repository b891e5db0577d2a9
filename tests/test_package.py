"""What others may import, and what an import brings along."""

import subprocess
import sys

import pytest

import cadp_fl
from tests.conftest import ROOT


def test_the_public_names_are_these():
    assert cadp_fl.__all__ == ["__version__", "load_release"]
    for name in cadp_fl.__all__:
        assert getattr(cadp_fl, name) is not None


def test_load_release_is_that_of_the_release_package():
    from cadp_fl.release.dataset import load_release

    assert cadp_fl.load_release is load_release
    with pytest.raises(AttributeError, match="has no attribute 'load_releases'"):
        _ = cadp_fl.load_releases


def test_importing_the_package_brings_nothing_of_its_own_and_no_torch():
    code = (
        "import sys, cadp_fl; "
        "own = {name for name in sys.modules if name.startswith('cadp_fl.')} - {'cadp_fl.moved'}; "
        "heavy = sorted(own | {'torch', 'numpy'} & set(sys.modules)); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    finished = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
