"""A site with a durable ledger answers a request once, whatever breaks, and the same again."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cadp_fl.config import ClassifierConfig
from cadp_fl.data.partition import SiteData
from cadp_fl.errors import BudgetError, CohortError, ConfigError, ExchangeError, LedgerError, TotalBudgetError
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.events import GaussianHistogram, PoissonGaussian
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.plan import Allowance, Plan
from cadp_fl.privacy.policy import open_policy
from cadp_fl.site.protocol import Request
from cadp_fl.site.reply_store import ReplyStore
from cadp_fl.site.requests import ClassifierRequest, DpSgdTraining
from cadp_fl.site.site import Site
from cadp_fl.weights import get_weights
from tests.site.test_site import dataset

STEPS = PoissonGaussian(stage="classifier", clip_norm=1.0, noise_std=2.0, sampling_rate=1.0, steps=1)
COUNTS = GaussianHistogram(stage="counts", histograms=1, noise_std=4.0)


def site(folder: Path, *, measures: bool = False, **allowed: object) -> Site:
    """Return the site of a folder, as a new process would make it."""
    path = folder / "ledger.db"
    if not path.exists():
        DurableLedger.create(path, population="p", unit="record")
    return Site(
        "north",
        SiteData(dataset(40, 0), dataset(10, 1)),
        ledger=DurableLedger.open(path, population="p", unit="record"),
        noise=NoiseSource.from_entropy(),
        device=torch.device("cpu"),
        outbox=folder / "outbox",
        simulation=False,
        policy=open_policy(labels="covered").model_copy(update={"delta": 1e-3, "population": "p", **allowed}),
        answers=ReplyStore(folder / "answers"),
        measures=measures,
    )


def reserve(made: Site, retry: float = 0.0) -> None:
    plan = Plan("m", (COUNTS,), 1e-4, labels="covered", retry=Allowance(retry, 1e-5 if retry else 0.0))
    made.call(Request("reserve", {"plans": [plan.to_json()]}, run="r"))


def count(name: str = "r/count/1", **changes: object) -> Request:
    settings = {"method": "m", "event": COUNTS.model_dump()} | changes
    return Request("count", settings, run="r", id=name)


def free(number: int) -> Request:
    """Return a request for a plan that costs next to nothing."""
    plan = Plan("m", (COUNTS.model_copy(update={"noise_std": 1e9}),), 1e-9, labels="covered")
    return Request("reserve", {"plans": [plan.to_json()]}, run=f"r{number}")


def test_plans_that_cost_next_to_nothing_do_not_fill_a_ledger(tmp_path):
    made = site(tmp_path, most_plans=3)
    for number in (1, 2, 3, 1, 2, 3):  # the same plan again is no other one
        made.call(free(number))
    before = made.ledger.links()
    with pytest.raises(BudgetError, match=r"at most 3 plans \(policy: most_plans\). This would be number 4"):
        made.call(free(4))
    assert made.ledger.links() == before
    site(tmp_path, most_plans=4).call(free(4))  # the steward raised it


def test_two_plans_of_a_method_are_both_counted(tmp_path):
    both = [
        Plan("m", (COUNTS,), 1e-6, labels="covered"),
        Plan("m", (COUNTS.model_copy(update={"stage": "evaluation"}),), 1e-6, labels="covered", split="test"),
    ]
    request = Request("reserve", {"plans": [plan.to_json() for plan in both]}, run="r")
    with pytest.raises(BudgetError, match="would be number 2"):
        site(tmp_path, most_plans=1).call(request)
    assert site(tmp_path).ledger.plans() == ()


def test_events_that_cost_next_to_nothing_do_not_fill_a_ledger(tmp_path):
    made = site(tmp_path, most_entries=4)  # the terms, a plan, an event and its answer
    made.call(free(1))
    settings = {"method": "m", "event": COUNTS.model_copy(update={"noise_std": 1e9}).model_dump()}
    first = made.call(Request("count", settings, run="r1", id="1")).content
    for further in (free(2), Request("count", settings, run="r1", id="2")):
        with pytest.raises(BudgetError, match=r"at most 4 entries \(policy: most_entries\). This would be number 5"):
            made.call(further)
    assert made.call(Request("count", settings, run="r1", id="1")).content == first
    assert len(made.ledger.links()) == 4


def test_the_same_request_gets_the_stored_answer_also_from_a_new_process(tmp_path):
    made = site(tmp_path)
    reserve(made)
    first = made.call(count()).content
    assert made.call(count()).content == site(tmp_path).call(count()).content == first
    assert len(site(tmp_path).ledger.spent("r/m")) == 1


def test_another_body_under_the_same_id_is_refused(tmp_path):
    made = site(tmp_path)
    reserve(made)
    made.call(count())
    other = COUNTS.model_copy(update={"noise_std": 5.0}).model_dump()
    with pytest.raises(ExchangeError, match="keeps its contents under its id"):
        made.call(count(event=other))


def test_a_new_id_spends_anew_and_so_is_refused(tmp_path):
    made = site(tmp_path)
    reserve(made)
    made.call(count())
    with pytest.raises(BudgetError, match="must be in the plan"):
        made.call(count("r/count/2"))


def test_a_request_that_spends_has_an_id(tmp_path):
    made = site(tmp_path)
    reserve(made)
    with pytest.raises(ExchangeError, match="has an id"):
        made.call(count(""))
    assert made.ledger.spent("r/m") == ()


@pytest.mark.parametrize("retry", [0.0, 2.0])
def test_an_answer_that_a_crash_lost_is_spent_and_a_retry_is_paid_from_the_reserve(tmp_path, retry, monkeypatch):
    made = site(tmp_path)
    reserve(made, retry)
    monkeypatch.setattr(ReplyStore, "store", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        made.call(count())
    monkeypatch.undo()
    again = site(tmp_path)
    assert again.ledger.spent("r/m") == (COUNTS,)
    if retry:
        assert set(again.call(count()).content["class_counts"]) == {"a", "b", "c"}
        assert again.ledger.spent("r/m") == (COUNTS, COUNTS)
    else:
        with pytest.raises(BudgetError, match="retry reserve"):
            again.call(count())


def test_an_answer_whose_file_is_gone_is_not_drawn_again(tmp_path):
    made = site(tmp_path)
    reserve(made)
    made.call(count())
    for path in (tmp_path / "answers").iterdir():
        path.unlink()
    with pytest.raises(LedgerError, match="cannot be read"):
        made.call(count())


KILLED = """
import os, signal, sys
from pathlib import Path
from cadp_fl.site import class_counts as module
from tests.site.test_durable_site import count, reserve, site

calls, fatal = 0, int(sys.argv[2])
def tick(original):
    def wrapped(*arguments, **keywords):
        global calls
        calls += 1
        if calls == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)
    return wrapped

made = site(Path(sys.argv[1]))
for name in ("reserve", "spend", "store"):
    setattr(made.ledger, name, tick(getattr(made.ledger, name)))
made._stored.store = tick(made._stored.store)
module.replaced_file = tick(module.replaced_file)
reserve(made)
print(sorted(made.call(count()).content["class_counts"].items()), flush=True)
"""


def test_a_site_that_is_killed_between_any_two_steps_never_sends_two_draws(tmp_path):
    """Kill before each durable step in turn: what was sent once is sent again, and what was not is spent at most."""
    for fatal in range(1, 7):
        folder = tmp_path / str(fatal)
        folder.mkdir()
        ended = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(fatal)],
            cwd=Path(__file__).parents[2],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
        )
        made = site(folder)
        if ended.returncode == 0:
            assert fatal == 6
            assert str(sorted(made.call(count()).content["class_counts"].items())) == ended.stdout.strip()
            return
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert ended.stdout == ""
        reserve(made)
        assert len(made.ledger.spent("r/m")) <= 1
        if made.ledger.spent("r/m"):
            with pytest.raises(BudgetError, match="retry reserve"):
                made.call(count())
    pytest.fail("it was killed every time")


def dp_sgd(site_made, *, run, method, event):
    classifier = ClassifierConfig(model="linear")
    weights = get_weights(site_made.context.classifier(classifier, 0))
    training = DpSgdTraining(event=event, learning_rate=1.0, momentum=0.0)
    asked = ClassifierRequest(method=method, classifier=classifier, seed=0, round=1, training=training)
    return Request("train_classifier", asked.model_dump(mode="json"), weights, run=run, id=f"{run}/train")


def test_no_plan_on_test_units_is_charged_for_training_units(tmp_path):
    """A run's name is the server's choice: with method `test` of run `r/m` it once named the test plan of `r`, `m`."""
    made = site(tmp_path)
    plan = Plan("m", (STEPS,), 1e-4, labels="covered", split="test")
    made.ledger.reserve(replace(plan, run="r"), Allowance(100.0, 1e-3))  # whatever a policy says of it
    with pytest.raises(BudgetError, match="reserves a plan"):
        made.call(dp_sgd(made, run="r/m", method="test", event=STEPS))
    made.call(Request("reserve", {"plans": [Plan("test", (STEPS,), 1e-4, labels="covered").to_json()]}, run="r/m"))
    made.call(dp_sgd(made, run="r/m", method="test", event=STEPS))
    assert made.ledger.spent("r/m:test") == ()
    assert made.ledger.spent("r/m/test") == (STEPS,)


def test_class_weights_that_do_not_fit_are_refused_before_anything_is_spent(tmp_path):
    made = site(tmp_path)
    made.call(Request("reserve", {"plans": [Plan("m", (STEPS,), 1e-4, labels="covered").to_json()]}, run="r"))
    classes = len(made.context.data.train.schema.classes)
    for wrong in ([1.0] * (classes + 1), [0.0] * classes, [-1.0] * classes, [1e4] * classes, [float("nan")] * classes):
        request = dp_sgd(made, run="r", method="m", event=STEPS)
        request.settings["training"]["class_weights"] = wrong
        with pytest.raises((ExchangeError, ConfigError)):
            made.call(request)
    assert made.ledger.spent("r/m") == ()
    request = dp_sgd(made, run="r", method="m", event=STEPS)
    request.settings["training"]["class_weights"] = [0.5] * classes
    made.call(request)
    assert made.ledger.spent("r/m") == (STEPS,)


def test_a_policy_that_became_stricter_holds_for_plans_that_were_reserved_before(tmp_path):
    made = site(tmp_path)
    made.call(Request("reserve", {"plans": [Plan("m", (STEPS,), 1e-4, labels="covered").to_json()]}, run="r"))
    allowed = made.context.privacy_filter.policy
    for stricter, refusal in (({"min_units": 1000}, CohortError), ({"epsilon": 1e-3}, TotalBudgetError)):
        made.context.privacy_filter.policy = allowed.model_copy(update=stricter)
        with pytest.raises(refusal):
            made.call(dp_sgd(made, run="r", method="m", event=STEPS))
    assert made.ledger.spent("r/m") == ()
