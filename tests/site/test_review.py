"""No record leaves before a steward has approved its release, where the policy asks for that."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.errors import InputError, ReviewError
from cadp_fl.privacy.claims import FLOW_WEIGHTS
from cadp_fl.privacy.plan import Plan
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.site.protocol import Request
from cadp_fl.site.review import Review
from tests.site.agents import make
from tests.site.test_site import EVENT, fetch, outboxes, release, site  # noqa: F401


@pytest.fixture
def made():
    """A site whose policy asks for review, and the release that it made."""
    reviewed = site(review=True)
    reviewed.call(Request("reserve", {"plans": [Plan("m", (FLOW_WEIGHTS, EVENT), 1e-5).to_json()]}))
    return reviewed, manifest_from_json(reviewed.call(release()).content["manifest"])


def test_a_release_waits_until_it_is_approved(made):
    reviewed, manifest = made
    review = Review(reviewed.releases.outbox)
    with pytest.raises(ReviewError, match="waits") as refused:
        fetch(reviewed, manifest, manifest.shards[0].name)
    assert refused.value.code == 318
    assert [(each.manifest, each.decision) for each in review.staged()] == [(manifest, None)]
    review.decide(manifest.event_id, "approved")
    assert fetch(reviewed, manifest, manifest.shards[0].name)


def test_a_denied_release_never_leaves_and_its_cost_stays(made):
    reviewed, manifest = made
    review = Review(reviewed.releases.outbox)
    review.decide(manifest.event_id, "denied")
    with pytest.raises(ReviewError, match="was denied"):
        fetch(reviewed, manifest, manifest.shards[0].name)
    with pytest.raises(InputError, match="A decision is final"):
        review.decide(manifest.event_id, "approved")
    assert reviewed.ledger.spent("m") == (EVENT,)


def test_an_approval_is_of_the_bundle_that_was_looked_at(made):
    reviewed, manifest = made
    review = Review(reviewed.releases.outbox)
    review.decide(manifest.event_id, "approved")
    path = reviewed.releases.outbox / manifest.event_id / "manifest.json"
    tree = json.loads(path.read_text())
    tree["site"] = "south"
    path.write_text(json.dumps(tree))
    with pytest.raises(ReviewError, match="waits"):
        fetch(reviewed, manifest, manifest.shards[0].name)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"decision": "approved"}', '{"decision": 1, "manifest_sha256": 2}'])
def test_a_damaged_decision_is_none(made, text):
    reviewed, manifest = made
    Review(reviewed.releases.outbox).path(manifest.event_id).write_text(text)
    with pytest.raises(ReviewError, match="waits"):
        fetch(reviewed, manifest, manifest.shards[0].name)


def test_a_steward_decides_on_the_command_line(made):
    reviewed, manifest = made
    outbox, run = str(reviewed.releases.outbox), CliRunner().invoke
    (listed,) = json.loads(run(app, ["site", "review", "list", outbox, "--json"]).stdout)
    assert (listed["decision"], listed["manifest"]["event_id"]) == (None, manifest.event_id)
    assert "approved, 40 records" in run(app, ["site", "review", "approve", outbox, manifest.event_id]).stdout
    assert "approved" in run(app, ["site", "review", "list", outbox]).stdout
    assert isinstance(run(app, ["site", "review", "deny", outbox, manifest.event_id]).exception, InputError)
    assert isinstance(run(app, ["site", "review", "approve", outbox, "other"]).exception, InputError)


def test_a_decision_on_a_sites_folder_is_in_its_audit_log(made, tmp_path):
    reviewed, manifest = made
    folder = make(tmp_path / "north")
    shutil.copytree(reviewed.releases.outbox, folder.outbox, dirs_exist_ok=True)
    CliRunner().invoke(app, ["site", "review", "deny", str(folder.path), manifest.event_id])
    assert Review(folder.outbox).decision(manifest) == "denied"
    (line,) = (json.loads(line) for line in folder.audit.read_text().splitlines())
    assert (line["what"], line["event"], line["outcome"]) == ("decision", manifest.event_id, "denied")


def test_what_left_already_is_reported_and_cannot_be_denied(made):
    reviewed, manifest = made
    review = Review(reviewed.releases.outbox)
    review.note_fetched(manifest.event_id)
    assert [each.left for each in review.staged()] == [True]
    listed = CliRunner().invoke(app, ["site", "review", "list", str(reviewed.releases.outbox)]).stdout
    assert "left, without a review" in listed
    with pytest.raises(InputError, match="fetched already"):
        review.decide(manifest.event_id, "denied")
