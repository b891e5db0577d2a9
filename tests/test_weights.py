import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cadp_fl.config import FlowConfig
from cadp_fl.errors import ExchangeError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.storage import load_weights, save_weights
from cadp_fl.weights import average, get_weights, set_weights, structure_sha256, weights_sha256


def flow(seed=1):
    return ConditionalFlow(FlowConfig(scales=[{"blocks": 2, "channels": 4}]), (1, 4, 4), 3, seed=seed)


@given(sizes=st.lists(st.integers(1, 10**6), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_aggregating_identical_flows_changes_nothing(sizes, seed):
    weights = {"w": np.random.default_rng(seed).normal(size=(7, 3)).astype(np.float32)}
    sites = {f"site-{index}": weights for index in range(len(sizes))}
    averaged = average(sites, dict(zip(sites, sizes, strict=True)))
    assert np.array_equal(averaged["w"], weights["w"])
    assert averaged["w"].dtype == np.float32


def test_an_aggregated_flow_still_inverts():
    """FrEIA keeps permutations as integer parameters; averaging a whole state dict would corrupt them."""
    source, target = flow(), flow()
    set_weights(target, average({"a": get_weights(source), "b": get_weights(source)}, {"a": 137, "b": 211}))
    assert structure_sha256(source) == structure_sha256(target)
    x, condition = torch.rand(3, 1, 4, 4), torch.eye(3)
    assert (target.decode(target.encode(x, condition)[0], condition) - x).abs().max() < 1e-4


def test_the_average_weighs_by_declared_size_and_not_by_order():
    one, two = {"w": np.ones(2, np.float32)}, {"w": np.full(2, 4.0, np.float32)}
    assert average({"a": one, "b": two}, {"a": 2, "b": 1})["w"].tolist() == [2.0, 2.0]
    assert average({"b": two, "a": one}, {"b": 1, "a": 2})["w"].tolist() == [2.0, 2.0]


def test_a_missing_site_leaves_the_average_of_the_others():
    one = {"w": np.ones(2, np.float32)}
    assert average({"a": one}, {"a": 2, "b": 1})["w"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.pop(next(iter(w))), "is on one side only"),
        (lambda w: w.update(extra=np.zeros(1, np.float32)), "'extra' is on one side only"),
        (lambda w: w.update({next(iter(w)): np.zeros(3, np.float32)}), "of shape"),
        (lambda w: w.update({k: v.astype(np.float64) for k, v in list(w.items())[:1]}), "Found float64"),
        (lambda w: w.update({k: v * np.nan for k, v in list(w.items())[:1]}), "Weights are finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(change, sentence):
    network = flow()
    before = weights_sha256(get_weights(network))
    weights = get_weights(network)
    change(weights)
    with pytest.raises(ExchangeError, match=sentence):
        set_weights(network, weights)
    assert weights_sha256(get_weights(network)) == before


def test_hashes_see_names_shapes_and_bytes():
    base = {"a": np.zeros((2, 2), np.float32)}
    others = [
        {"b": np.zeros((2, 2), np.float32)},
        {"a": np.zeros(4, np.float32)},
        {"a": np.zeros((2, 2), np.float64)},
        {"a": np.full((2, 2), 1e-38, np.float32)},
    ]
    assert len({weights_sha256(each) for each in [base, *others]}) == 5
    assert weights_sha256(base) == weights_sha256({"a": np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize("view", [lambda grid: grid.T, lambda grid: grid[:, ::-1], lambda grid: grid[:, 1:]])
def test_weights_are_stored_as_they_are_however_they_lie_in_memory(tmp_path, view):
    weights = {"weight": view(np.arange(6, dtype=np.float32).reshape(2, 3))}
    save_weights(tmp_path / "weights.safetensors", weights, kind="test", description={})
    loaded = load_weights(tmp_path / "weights.safetensors", weights)
    np.testing.assert_array_equal(loaded["weight"], weights["weight"])
