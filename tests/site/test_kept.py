"""What a release keeps of its records is measured for the steward of a real site, and for nobody else."""

import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cadp_fl.cli.main import app
from cadp_fl.config import FlowConfig
from cadp_fl.data.codec import codec_of
from cadp_fl.data.partition import SiteData
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.errors import CadpError, InputError
from cadp_fl.evaluation.fidelity import fidelity_of, message_of
from cadp_fl.evaluation.pairs import Pairs, pairs_of
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.storage import FlowCard, flow_sha256, save_flow
from cadp_fl.privacy.claims import FLOW_WEIGHTS
from cadp_fl.privacy.events import DeclaredPublic, LatentGaussian, LatentPrivUnit
from cadp_fl.privacy.plan import Plan
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.release.manifest import manifest_from_json
from cadp_fl.site import releases
from cadp_fl.site.client import AgentClient
from cadp_fl.site.kept import FOR_THE_STEWARD, Figures, Kept
from cadp_fl.site.protocol import Request
from cadp_fl.site.requests import FetchRequest, ReleaseRequest, ReserveRequest
from cadp_fl.site.review import Review
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from cadp_fl.weights import get_weights
from tests.site.agents import make, served
from tests.site.test_durable_site import site as durable
from tests.site.test_site import EVENT, FLOW, dataset, fetch, outboxes, release, reserved, weights  # noqa: F401

DELTA = 1e-4


def made_by(folder: Path, event=EVENT, mechanism="gaussian", *, run="r", labels="public", **arguments):
    """Return a durable site that made a release for a run, and the manifest."""
    made = durable(folder, review=True, labels=labels, **{"measures": True} | arguments)
    plan = Plan("m", (FLOW_WEIGHTS, event), DELTA, labels=labels)
    made.call(Request("reserve", {"plans": [plan.to_json()]}, run=run))
    asked = release(event, mechanism)
    reply = made.call(Request("release", asked.settings, asked.arrays, run=run, id=f"{run}/release"))
    return made, manifest_from_json(reply.content["manifest"])


def figures_file(folder: Path) -> Path:
    (path,) = folder.rglob("*.fidelity.json")
    return path


def own_flow():
    return ConditionalFlow(FLOW, (1, 4, 4), 3, seed=0).eval()


@torch.no_grad()
def by_hand(records, released, order):
    """Return the pairs of a release of single records, without the code that finds them."""
    position = np.argsort(order)
    mine = Dataset(released.schema, released.images.numpy()[position], released.labels.numpy()[position])
    latents = [
        own_flow()
        .encode(
            codec_of(each.schema).to_unit(torch.from_numpy(each.records)),
            condition_of(torch.from_numpy(each.labels), own_flow().conditions),
        )[0][:, :4]
        .double()
        .numpy()
        for each in (records, mine)
    ]
    return Pairs(records, mine, *latents)


def test_the_figures_are_those_of_the_records_and_their_own_releases(tmp_path, monkeypatch):
    orders, draw = [], releases.release_order
    monkeypatch.setattr(releases, "release_order", lambda *given: orders.append(draw(*given)) or orders[-1])
    made, manifest = made_by(tmp_path)
    kept = Kept.of(made.releases.outbox, manifest)
    pairs = by_hand(made.context.data.train, load_release(made.releases.outbox / manifest.event_id), orders[0])
    expected = fidelity_of([pairs], made.context.data.test, message=message_of((EVENT,), DELTA))
    assert kept.records == manifest.records == 40
    assert kept.figures == Figures.model_validate(expected)


def test_a_real_site_measures_what_a_simulation_does_with_the_order_that_it_keeps(tmp_path):
    real = reserved(simulation=False, measures=True)
    simulated = reserved(orders=tmp_path / "orders")
    manifests = [manifest_from_json(each.call(release()).content["manifest"]) for each in (real, simulated)]
    assert manifests[0].shards == manifests[1].shards
    data, outbox = simulated.context.data, simulated.releases.outbox
    pairs = pairs_of(
        open_bundle(outbox / manifests[1].event_id),
        data.train,
        simulated.context.units,
        np.load(tmp_path / "orders" / f"{manifests[1].event_id}.npy"),
        own_flow(),
        directions=None,
        latent_dims=4,
        device=torch.device("cpu"),
    )
    expected = fidelity_of([pairs], data.test, message=message_of((EVENT,), 1e-5))
    assert Kept.of(real.releases.outbox, manifests[0]).figures == Figures.model_validate(expected)


def test_the_first_released_records_are_a_sample_of_the_pairs_and_no_further_shard_is_read(tmp_path):
    made = reserved(orders=tmp_path / "orders")
    manifest = manifest_from_json(made.call(release()).content["manifest"])
    bundle = made.releases.outbox / manifest.event_id
    order = np.load(tmp_path / "orders" / f"{manifest.event_id}.npy")
    (bundle / "shards" / "00002.npz").unlink()
    pairs = pairs_of(
        open_bundle(bundle), made.context.data.train, made.context.units, order, own_flow(),
        directions=None, latent_dims=4, device=torch.device("cpu"), most=20,
    )  # fmt: skip
    chosen = np.argsort(order[:20])
    assert np.array_equal(pairs.originals.images, made.context.data.train.images[order[:20][chosen]])
    first = np.concatenate([part.images for part in _two_parts(bundle)])[:20]
    assert np.array_equal(pairs.released.images, first[chosen])


def _two_parts(bundle):
    parts = open_bundle(bundle).parts()
    return [next(parts), next(parts)]


def test_the_file_is_the_agents_alone_and_holds_nothing_of_a_single_record(tmp_path):
    _, manifest = made_by(tmp_path)
    path = figures_file(tmp_path)
    assert path.name == f"{manifest.event_id}.fidelity.json"
    assert path.stat().st_mode & 0o777 == 0o600
    tree = json.loads(path.read_text())
    assert set(tree) == {"manifest_sha256", "kept"}
    assert set(tree["kept"]) == {"records", "figures", "reason"}
    numbers = [value for value in _leaves(tree["kept"]["figures"]) if value is not None]
    assert len(numbers) == 19
    assert all(isinstance(value, float) for value in numbers)


def _leaves(tree):
    return chain.from_iterable(_leaves(value) for value in tree.values()) if isinstance(tree, dict) else [tree]


def test_no_order_is_on_the_disk_of_a_site_that_measured(tmp_path):
    made, manifest = made_by(tmp_path)
    assert Kept.of(made.releases.outbox, manifest).figures is not None
    assert not list(tmp_path.rglob("*.npy"))
    beside = {path.name for path in made.releases.outbox.iterdir()}
    assert beside == {manifest.event_id, f"{manifest.event_id}.fidelity.json"}
    inside = {str(path.relative_to(made.releases.outbox)) for path in made.releases.outbox.rglob("*") if path.is_file()}
    shards = {f"{manifest.event_id}/shards/{shard.name}" for shard in manifest.shards}
    assert inside == {f"{manifest.event_id}/manifest.json", f"{manifest.event_id}.fidelity.json", *shards}


def test_no_reply_and_no_stored_answer_has_a_figure(tmp_path):
    made, manifest = made_by(tmp_path)
    Review(made.releases.outbox).decide(manifest.event_id, "approved")
    shards = [
        Request("fetch", FetchRequest(event_id=manifest.event_id, shard=shard.name).model_dump(mode="json"), run="r")
        for shard in manifest.shards
    ]
    again = Request("release", release().settings, weights(), run="r", id="r/release")
    replies = [made.call(each) for each in (Request("describe"), Request("account", run="r"), again, *shards)]
    said = json.dumps([dict(reply.content) for reply in replies])
    assert _figures_in(said, tmp_path) == []
    assert all(set(reply.arrays) <= {"shard"} for reply in replies)
    fetched = [reply.arrays["shard"].tobytes() for reply in replies[3:]]
    assert fetched == [(made.releases.outbox / manifest.event_id / "shards" / each.name).read_bytes()
                       for each in manifest.shards]  # fmt: skip
    answers = list((tmp_path / "answers").iterdir())
    assert answers
    assert not any(_figures_in(path.read_bytes().decode("latin-1"), tmp_path) for path in answers)
    assert _figures_in(open_bundle(made.releases.outbox / manifest.event_id).manifest.model_dump_json(), tmp_path) == []


def _figures_in(text: str, folder: Path) -> list[str]:
    """Return the figures' names and values that a text has; not those that a short number may be by chance."""
    figures = json.loads(figures_file(folder).read_text())["kept"]["figures"]
    values = [repr(value) for value in _leaves(figures) if value is not None and len(repr(value)) > 8]
    assert len(values) > 5
    return [each for each in (*figures, "fidelity", "linked", *values) if each in text]


@pytest.mark.parametrize("suffix", [".fidelity.json", ".fidelity", "/../x"])
def test_no_request_names_the_figures(tmp_path, suffix):
    made, manifest = made_by(tmp_path)
    for event, shard in ((f"{manifest.event_id}{suffix}", "00000.npz"), (manifest.event_id, f"../{suffix}")):
        with pytest.raises(CadpError):
            made.call(Request("fetch", {"event_id": event, "shard": shard}, run="r"))


def test_figures_of_another_bundle_of_that_name_count_for_nothing(tmp_path):
    made, manifest = made_by(tmp_path)
    outbox = made.releases.outbox
    other = manifest.model_copy(update={"site": "south"})
    kept = Kept.of(outbox, other)
    assert (kept.figures, kept.records) == (None, 0)
    assert "no figures of this bundle" in kept.reason
    for damaged in ("", "{", "[]", '{"manifest_sha256": "0"}'):
        figures_file(tmp_path).write_text(damaged)
        assert Kept.of(outbox, manifest).figures is None
    figures_file(tmp_path).unlink()
    assert Kept.of(outbox, manifest).figures is None


def test_an_agent_that_is_stopped_while_it_measures_leaves_no_figures(tmp_path, monkeypatch):
    """What lay there of an earlier bundle of that name is gone before the new ones are computed."""
    outbox = tmp_path / "outbox"
    first, manifest = made_by(tmp_path / "earlier")
    outbox.mkdir()
    figures_file(tmp_path / "earlier").rename(outbox / f"{manifest.event_id}.fidelity.json")

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(releases, "fidelity_of", killed)
    with pytest.raises(KeyboardInterrupt):
        made_by(tmp_path)
    assert [path.name for path in outbox.iterdir()] == [manifest.event_id]
    assert Kept.of(outbox, open_bundle(outbox / manifest.event_id).manifest).figures is None
    assert Kept.of(first.releases.outbox, manifest).figures is None


@pytest.mark.parametrize("failing", ["fidelity_of", "pairs_of", "open_bundle"])
@pytest.mark.parametrize("error", [np.linalg.LinAlgError, MemoryError, AssertionError])
def test_a_release_is_answered_whatever_its_figures_do(tmp_path, failing, error, monkeypatch):
    def fails(*_, **__):
        raise error("did not converge")

    with monkeypatch.context() as patched:
        patched.setattr(releases, failing, fails)
        made, manifest = made_by(tmp_path)
    kept = Kept.of(made.releases.outbox, manifest)
    assert kept.figures is None
    assert kept.reason == f"it failed ({error.__name__}: did not converge)"
    assert made.ledger.spent("r/m") == (EVENT,)
    Review(made.releases.outbox).decide(manifest.event_id, "approved")
    settings = FetchRequest(event_id=manifest.event_id, shard="00000.npz").model_dump(mode="json")
    assert made.call(Request("fetch", settings, run="r")).arrays


def test_a_release_is_answered_also_where_its_figures_cannot_be_written(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cadp_fl.site.kept.write_durably", full)
    made, manifest = made_by(tmp_path)
    assert not list(tmp_path.rglob("*.fidelity.json"))
    assert "could not write them" in Kept.of(made.releases.outbox, manifest).reason


def test_too_few_records_are_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(releases, "LEAST_MEASURED", 41)
    made, manifest = made_by(tmp_path)
    assert "fewer than 41 records" in Kept.of(made.releases.outbox, manifest).in_short()


def test_warnings_of_what_is_computed_are_in_no_log(tmp_path, monkeypatch, recwarn):
    measured = releases.fidelity_of

    def warns(*given, **named):
        import warnings

        warnings.warn("the covariance of class 2 is 0.3141", stacklevel=1)
        return measured(*given, **named)

    monkeypatch.setattr(releases, "fidelity_of", warns)
    made, manifest = made_by(tmp_path)
    assert Kept.of(made.releases.outbox, manifest).figures is not None
    assert not list(recwarn)


def test_nobody_to_test_on_leaves_figures_out_and_the_rest_is_there(tmp_path, monkeypatch):
    everyone = SiteData(dataset(40, 0), dataset(0, 1))
    monkeypatch.setattr("tests.site.test_durable_site.SiteData", lambda *_: everyone)
    made, manifest = made_by(tmp_path)
    kept = Kept.of(made.releases.outbox, manifest)
    assert kept.figures is not None
    assert kept.figures.nearest is None
    assert kept.figures.linear_released.accuracy is None
    assert any("No classifier was trained on it" in sentence for sentence in kept.sentences(manifest))


def test_without_review_nothing_is_measured(tmp_path):
    made_by(tmp_path, measures=False)
    assert not list(tmp_path.rglob("*.fidelity.json"))


def show(folder: Path, event: str, *options: str) -> str:
    done = CliRunner().invoke(app, ["site", "review", "show", str(folder), event, *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_steward_reads_a_release_in_sentences(tmp_path):
    made, manifest = made_by(tmp_path)
    figures = Kept.of(made.releases.outbox, manifest).figures
    said = show(made.releases.outbox, manifest.event_id)
    assert f"{manifest.event_id}: waits. 40 records by the gaussian mechanism" in said
    counts = ", ".join(f"{name} {count}" for name, count in manifest.released_labels.items())
    assert f"Records by class: {counts}." in said
    assert "40 of the 40 released records" in said
    assert "100 % of released labels are true." in said
    correlation = float(re.search(r"correlation of (-?\d*\.\d\d) with its record", said)[1])
    assert correlation == pytest.approx(figures.image_correlation, abs=0.0051)
    linked, most = re.search(r"right one (\d+) % of the time \(10 % by chance, at most (\d+) %", said).groups()
    assert int(linked) == round(100 * figures.linkage.linked)
    assert int(most) / 100 >= figures.linkage.at_most > int(most) / 100 - 0.01
    assert "among records of its label, which is public" in said
    assert FOR_THE_STEWARD in said
    assert "No epsilon covers them" in FOR_THE_STEWARD
    tree = json.loads(show(made.releases.outbox, manifest.event_id, "--json"))
    assert Figures.model_validate(tree["kept"]["figures"]) == figures
    assert tree["note"] == FOR_THE_STEWARD
    unknown = CliRunner().invoke(app, ["site", "review", "show", str(made.releases.outbox), "other"])
    assert isinstance(unknown.exception, InputError)


def test_a_shuffled_release_shows_both_epsilons_and_labels_that_were_drawn(tmp_path):
    event = LatentPrivUnit(
        stage="release", latent_epsilon=2.0, threshold=0.8, label_epsilon=1.0, classes=3, shuffled_units=40,
        records_per_unit=1,
    )  # fmt: skip
    made, manifest = made_by(tmp_path, event, "privunit", labels="covered")
    said = show(made.releases.outbox, manifest.event_id)
    assert "What one unit sends has epsilon 3.00 by itself; the claim counts on a shuffle of at least 40 units." in said
    assert "by labels that were drawn at random" in said
    assert "which is public" not in said
    figures = Kept.of(made.releases.outbox, manifest).figures
    assert figures.linkage.at_most == pytest.approx(np.exp(3) / (np.exp(3) + 9))


def test_the_list_says_in_short_what_a_waiting_release_keeps_and_its_json_does_not(tmp_path):
    made, manifest = made_by(tmp_path)
    arguments = ["site", "review", "list", str(made.releases.outbox)]
    listed = CliRunner().invoke(app, arguments).stdout
    assert "For you alone: It keeps a correlation of" in listed
    assert _figures_in(CliRunner().invoke(app, [*arguments, "--json"]).stdout, tmp_path) == []
    Review(made.releases.outbox).decide(manifest.event_id, "denied")
    assert "For you alone" not in CliRunner().invoke(app, arguments).stdout
    figures_file(tmp_path).unlink()
    assert "was not measured: no figures" in show(made.releases.outbox, manifest.event_id)


@pytest.fixture
def public_flow():
    """A flow that fits a rehearsal's records, and its card."""
    config = FlowConfig(scales=[{"blocks": 1, "channels": 4}], dense={"blocks": 1, "width": 8})
    schema = Schema(name="digits", shape=(1, 8, 8), classes=tuple("0123456789"), levels=17)
    card = FlowCard(config, schema, 0, "public")
    return card.build(), card


def test_an_agent_measures_what_waits_for_review_and_neither_its_log_nor_its_replies_say_so(tmp_path, public_flow):
    flow, card = public_flow
    sha256, event = flow_sha256(flow), LatentGaussian(stage="release", clip_norm=2.0, noise_std=8.0)
    folder = make(tmp_path / "north", review=True, public_flows=[sha256])
    declared = DeclaredPublic(stage="flow", what="the flow", sha256=sha256, dataset="digits")
    plan = Plan("cadp", (declared, event), 1e-5, run="run-1")
    settings = ReleaseRequest(
        method="cadp", flow=card.config.architecture(), seed=0, mechanism="gaussian", event=event, latent_dims=8,
        shrinkage="typical-set", shard_records=4096,
    )  # fmt: skip
    told: list[str] = []
    with served(folder, announce=told.append):
        client = AgentClient(folder.socket)
        reserve = ReserveRequest(plans=(plan.to_json(),)).model_dump(mode="json")
        client.call(Request("reserve", reserve, run="run-1", id="r/reserve"))
        asked = Request("release", settings.model_dump(mode="json"), get_weights(flow), run="run-1", id="r/release")
        reply = client.call(asked)
    manifest = manifest_from_json(reply.content["manifest"])
    assert Kept.of(folder.outbox, manifest).figures is not None
    assert figures_file(folder.path).stat().st_mode & 0o777 == 0o600
    assert not list(folder.path.rglob("*.npy"))
    assert set(reply.content) == {"manifest"}
    for text in (folder.audit.read_text(), "\n".join(told), json.dumps(dict(reply.content))):
        assert _figures_in(text, folder.path) == []
    assert "A released image has a correlation of" in show(folder.path, manifest.event_id)
    elsewhere = [path for path in folder.path.rglob("*") if path.is_file() and path != figures_file(folder.path)]
    assert not any(b"image_correlation" in path.read_bytes() for path in elsewhere)


def test_a_release_by_hand_is_handed_on_as_a_folder_and_so_has_no_figures_beside_it(tmp_path, public_flow):
    flow, card = public_flow
    save_flow(tmp_path / "flow.safetensors", flow, card)
    folder = make(tmp_path / "north", review=True, public_flows=[flow_sha256(flow)])
    options = ReleaseOptions(epsilon=1.0, delta=1e-6, clip_norm=4.0, latent_dims=8)
    make_release(tmp_path / "flow.safetensors", folder.path, tmp_path / "bundle", options)
    assert (tmp_path / "bundle" / "manifest.json").is_file()
    assert not list(tmp_path.rglob("*.fidelity.json"))
