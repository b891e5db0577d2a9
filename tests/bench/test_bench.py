import json

import numpy as np
import pytest
import torch

from cadp_fl.bench.contest import Contender, Contest, Setting, hold
from cadp_fl.bench.flows import PAPER_FLOW, SHAPE, SMALL_FLOW, synthetic_records
from cadp_fl.bench.freia import FreiaFlow
from cadp_fl.bench.run import BENCHMARKS, run_benchmarks, steps_of
from cadp_fl.cli import main as cli
from cadp_fl.data.codec import Pixels
from cadp_fl.errors import ConfigError
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of

CPU = torch.device("cpu")


def test_contenders_take_turns_and_neither_always_goes_first():
    calls, ticks = [], []
    contest = Contest(Contender(10, lambda: calls.append("ours")), Contender(1, lambda: calls.append("reference")))
    result = hold(contest, turns=2, device=CPU, tick=lambda: ticks.append(1))
    assert calls == ["ours", "reference", "ours", "reference", "reference", "ours"]
    assert len(ticks) == 3
    assert result.turns == 2
    assert result.spread[0] <= result.ratio <= result.spread[1]


@pytest.mark.parametrize("config", [PAPER_FLOW, SMALL_FLOW])
def test_the_reference_is_a_flow_of_the_same_size_that_inverts(config):
    images, labels = synthetic_records(4, 10, CPU)
    x, condition = Pixels(256).to_unit(images), condition_of(labels, 10)
    ours, freia = ConditionalFlow(config, SHAPE, 10, seed=1), FreiaFlow(config, SHAPE, 10, seed=1)
    with torch.no_grad():
        z, log_det = freia.encode(x, condition)
        assert (z.shape, log_det.shape) == ((4, 784), (4,))
        assert torch.isfinite(freia.log_prob(x, condition)).all()
        assert (freia.decode(z, condition) - x).abs().max() < 1e-4
    sizes = [sum(each.numel() for each in flow.parameters() if each.requires_grad) for flow in (ours, freia)]
    assert 0.7 < sizes[0] / sizes[1] <= 1  # FrEIA's condition has a weight for each of the nine pixels of a kernel


def test_the_reference_leaves_global_generators_alone():
    torch.manual_seed(0)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    FreiaFlow(SMALL_FLOW, SHAPE, 2, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])


def test_the_loop_over_records_writes_a_picture_each_and_the_release_a_bundle(tmp_path):
    contest = BENCHMARKS["release"].prepare(Setting(CPU, quick=True, folder=tmp_path))
    contest.reference.work()
    assert len(list((tmp_path / "0").glob("*.png"))) == contest.reference.items
    contest.ours.work()
    assert (tmp_path / "1" / "manifest.json").is_file()


def test_a_quick_run_of_all_prints_its_structure(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cadp-fl", "bench", "--quick", "--json", "--device", "cpu", "--threads", "1"])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    printed = json.loads(capsys.readouterr().out)
    assert exited.value.code == 0
    assert list(printed["benchmarks"]) == list(BENCHMARKS)
    assert (printed["quick"], printed["threads"], printed["schema_version"]) == (True, 1, 1)
    assert {"cadp-fl", "torch", "FrEIA"} <= set(printed["software"])
    for row in printed["benchmarks"].values():
        assert set(row) == {"title", "against", "unit", "ours", "reference", "ratio", "spread", "turns"}
        assert row["ours"] > 0
        assert row["reference"] > 0


def test_a_chosen_benchmark_runs_alone_and_is_printed(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cadp-fl", "bench", "--quick", "--only", "noise", "--device", "cpu"])
    with pytest.raises(SystemExit):
        cli.main()
    out = capsys.readouterr().out
    assert "noise ..." in out
    assert "its figures mean little" in out
    assert "noise: draw normal noise, 512 x 784. Reference: torch.randn" in out
    assert "release" not in out


def test_every_step_ticks_and_threads_are_put_back():
    ticks, before = [], torch.get_num_threads()
    run_benchmarks(["noise", "aggregation"], device="cpu", quick=True, threads=2, tick=ticks.append)
    assert len(ticks) == steps_of(["noise", "aggregation"], quick=True)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"names": ["nois"]}, "Unknown benchmark 'nois'. Choose one of: flow-training"),
        ({"threads": 0}, "--threads is at least 1"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run_benchmarks(**arguments, quick=True, tick=lambda name: None)
