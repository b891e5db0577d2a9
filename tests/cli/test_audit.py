"""The audit as a command: what it prints, and that a refuted claim is a failure."""

import json

import pytest

from cadp_fl.privacy.mechanisms import MECHANISMS, LaplaceMechanism
from tests.cli.test_cli import call

FEW = ["--draws", 10_000, "--dims", 2, "--seed", 1]
CLAIM = ["--epsilon", 3, "--delta", "1e-5"]


@pytest.fixture
def run(monkeypatch, capsys):
    return lambda *arguments: call(monkeypatch, capsys, "audit", *arguments)


class HalfTheNoise(LaplaceMechanism):
    def __call__(self, latents, *, noise):
        return LaplaceMechanism(self.clip_norm, self.noise_scale / 2)(latents, noise=noise)


def test_the_help_has_an_example_and_says_what_a_result_means(run):
    code, out, _ = run("--help")
    text = " ".join(out.split())
    assert code == 0
    assert "Example: cadp-fl audit --mechanism gaussian --epsilon 3 --delta 1e-5" in text
    assert "One below proves nothing" in text
    assert "which is no advice on a budget" in text


@pytest.mark.slow
def test_without_a_claim_every_protecting_mechanism_is_audited_at_two_and_it_says_so(run):
    code, out, err = run(*FEW)
    assert (code, err) == (0, "")
    for name in MECHANISMS:
        assert out.count(f"│ {name} ") == (0 if name == "none" else 2), name
    assert out.count("│ privunit,") == 2
    assert "epsilon 1 and 3 at delta 1e-5 were audited. That is no advice on a budget." in out
    assert out.count("not refuted") >= 4
    assert "canaries in one run" in out
    assert "69.06%" in out


def test_a_shuffle_has_a_row_with_its_size_and_its_claim(run):
    code, out, _ = run(*FEW, *CLAIM, "--mechanism", "privunit-shuffled", "--json")
    (finding,) = json.loads(out)["findings"]
    assert code == 0
    assert finding["mechanism"] == "privunit, shuffled among 200 units"
    assert finding["claim"] == pytest.approx(3.0, abs=1e-3)
    assert [each["attack"] for each in finding["attacks"]] == ["whole-release", "one-place"]


def test_json_holds_every_attack_and_the_limits_of_one_run(run):
    code, out, _ = run(*FEW, *CLAIM, "--mechanism", "gaussian", "--json")
    printed = json.loads(out)
    assert code == 0
    assert "note" not in printed
    assert (printed["schema_version"], printed["relation"], printed["settings"]["noise"]) == (
        1,
        "replace-one",
        "seeded",
    )
    (finding,) = printed["findings"]
    assert finding["lower_bound"] == max(each["lower_bound"] for each in finding["attacks"]) <= finding["claim"]
    assert printed["limits"][0]["canaries"] == 62
    assert run(*FEW, *CLAIM, "--mechanism", "gaussian", "--json")[1] == out


def test_a_refuted_claim_is_a_failure_in_one_sentence(run, monkeypatch):
    monkeypatch.setitem(MECHANISMS, "laplace", HalfTheNoise)
    code, out, err = run("--draws", 50_000, "--dims", 2, "--seed", 1, *CLAIM, "--mechanism", "laplace")
    assert (code, err.count("\n")) == (1, 1)
    assert "REFUTED" in out
    assert err.startswith(
        "cadp-fl: A certified lower bound on epsilon is at most the claim. It is above it for laplace"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epsilon", 3], "A claim is an epsilon at a delta. Found --epsilon alone;"),
        (["--epsilon", 0, "--delta", 1e-5], "epsilon is above 0, and finite. Found 0;"),
        (["--epsilon", "nan", "--delta", 1e-5], "epsilon is above 0, and finite. Found nan;"),
        (["--delta", 1e-5], "A claim is an epsilon at a delta. Found --delta alone;"),
        ([*CLAIM, "--mechanism", "none"], "The mechanism 'none' claims none; choose one of: "),
        ([*CLAIM, "--mechanism", "gauss"], "Unknown mechanism 'gauss'. Choose one of: "),
        ([*CLAIM, "--draws", 10], "draws is at least 10000. Found 10;"),
    ],
)
def test_a_wrong_argument_is_one_sentence(run, arguments, sentence):
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert sentence in err
