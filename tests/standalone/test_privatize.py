"""A release by hand is the federation's, and claims no more than it may."""

import numpy as np
import pytest

from cadp_fl.config import load_study
from cadp_fl.data.schema import Schema
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError, DataError, InputError, PrivacyError
from cadp_fl.flow.storage import FlowCard, save_flow
from cadp_fl.release.bundle import open_bundle
from cadp_fl.release.dataset import load_release
from cadp_fl.standalone.privatize import make_release
from cadp_fl.standalone.release_inputs import ReleaseOptions
from tests.conftest import ROOT, TINY
from tests.federated.test_workflow import Run
from tests.standalone.conftest import SCHEMA, contents

FILE = ReleaseOptions(epsilon=3.0, delta=1e-4, clip_norm=4.0)


def with_(options, **changes):
    return ReleaseOptions(**(vars(options) | changes))


@pytest.mark.parametrize("site", ["north", "east", "south"])
def test_a_release_by_hand_is_the_federations_byte_for_byte(federation, tmp_path, site):
    flow = federation.folder / "models" / "flow.safetensors"
    made = make_release(flow, federation.folder / "config.yaml", tmp_path / "x", ReleaseOptions(site=site))
    assert contents(tmp_path / "x") == contents(federation.folder / "releases" / site)
    assert made.manifest == open_bundle(tmp_path / "x").manifest
    assert made.manifest.claim.guarantee == "given-flow"
    assert made.manifest.event_id == "cadp-given-flow-release-1"
    assert "NO end-to-end guarantee" in made.statement
    assert "and the noise not been seeded" in made.statement
    assert [path.name for path in tmp_path.iterdir()] == ["x"], "nothing else is left"


def test_a_release_with_a_public_flow_is_that_of_the_method_cadp(tmp_path):
    overrides = [f"{key}={value}" for key, value in TINY.items() if not key.startswith("methods.")]
    study = load_study(ROOT / "configs" / "quickstart.yaml", overrides)
    card = FlowCard(study.flow, load_source(study.data).schema, 5, "public")
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    start = f"{{path: {tmp_path / 'flow.safetensors'}, trained_on: public, freeze: [all]}}"
    run = Run(
        {
            "config": str(ROOT / "configs" / "quickstart.yaml"),
            "output-dir": str(tmp_path / "run"),
            "set": "; ".join(overrides),
        },
        f"flow.pretrained={start}",
        "methods=[cadp]",
    )
    assert run.go() == "complete"
    stored = run.folder / "models" / "flow.safetensors"
    for number, flow in enumerate((stored, tmp_path / "flow.safetensors")):
        output = tmp_path / f"x{number}"
        made = make_release(flow, run.folder / "config.yaml", output, ReleaseOptions(site="east"))
        assert contents(output) == contents(run.folder / "releases" / "east")
        assert (made.manifest.claim.guarantee, made.manifest.event_id) == ("end-to-end", "cadp-release-1")
        assert made.manifest.flow_sha256[:12] in made.statement
        assert "This rests on a declaration" in made.statement
        assert "no private record had a part" in made.manifest.claim.declared[0]
        assert "trained on 'digits', and these records are of 'digits' too" in made.caution


def test_a_study_that_calls_a_flow_private_is_believed_whatever_the_file_says(federation, tmp_path):
    card = FlowCard(federation.study.flow, load_source(federation.study.data).schema, 5, "public")
    save_flow(tmp_path / "flow.safetensors", card.build(), card)
    config = (federation.folder / "config.yaml").read_text()
    start = f"  pretrained: {{path: {tmp_path / 'flow.safetensors'}, trained_on: private, freeze: []}}\n"
    (tmp_path / "study.yaml").write_text(config.replace("  pretrained: null\n", start))
    options = ReleaseOptions(site="north")
    made = make_release(tmp_path / "flow.safetensors", tmp_path / "study.yaml", tmp_path / "x", options)
    assert made.manifest.claim.guarantee == "given-flow"


def test_an_option_overrides_the_study(federation, tmp_path):
    options = ReleaseOptions(
        site="north", name="ward-9", epsilon=1.0, delta=1e-6, clip_norm=2.0, latent_dims=3, mechanism="laplace",
        shrinkage="posterior-mean", noise="entropy",
    )  # fmt: skip
    flow = federation.folder / "models" / "flow.safetensors"
    manifest = make_release(flow, federation.folder / "config.yaml", tmp_path / "x", options).manifest
    own = manifest.parameters
    assert (manifest.site, manifest.noise, manifest.mechanism) == ("ward-9", "entropy", "laplace")
    assert (own.clip_norm, own.noise_scale, own.latent_dims, own.shrinkage) == (2.0, 4.0, 3, "posterior-mean")
    assert (manifest.claim.epsilon_if_flow_were_fixed, manifest.claim.delta) == (pytest.approx(1.0), 1e-6)


def test_laplace_noise_asks_for_no_delta_and_claims_none(scans, flow_file, tmp_path):
    flow = flow_file("public")
    for name, delta in (("none", None), ("given", 1e-4)):
        options = ReleaseOptions(epsilon=3.0, delta=delta, clip_norm=4.0, mechanism="laplace", labels="covered")
        made = make_release(flow, scans, tmp_path / name, options)
        assert (made.manifest.claim.epsilon, made.manifest.claim.delta) == (pytest.approx(3.0, abs=1e-3), 0.0)
        assert "(3.00, 0)-differentially private" in made.statement
    for mechanism in ("gaussian", "grid-gaussian"):
        with pytest.raises(InputError, match="Found no --delta"):
            make_release(flow, scans, tmp_path / "x", ReleaseOptions(epsilon=3.0, clip_norm=4.0, mechanism=mechanism))


@pytest.mark.parametrize(("trained_on", "guarantee"), [("public", "end-to-end"), ("private", "given-flow")])
def test_a_files_records_are_all_but_its_test_split_and_the_claim_follows_the_flow(
    scans, flow_file, tmp_path, trained_on, guarantee
):
    made = make_release(flow_file(trained_on), scans, tmp_path / "x", FILE)
    claim = made.manifest.claim
    assert (made.manifest.records, made.manifest.site, made.manifest.noise) == (80, "site", "entropy")
    assert made.manifest.released_labels == {"normal": 40, "ill": 40}
    assert claim.guarantee == guarantee
    epsilons = {"end-to-end": claim.epsilon, "given-flow": claim.epsilon_if_flow_were_fixed}
    assert epsilons.pop(guarantee) == pytest.approx(3.0, abs=0.01)
    assert list(epsilons.values()) == [None]
    assert made.caution == ""
    if guarantee == "given-flow":
        assert "no one has declared that it was" in made.statement


def test_releases_of_files_with_one_flow_pool_and_show_no_file_name(scans, flow_file, tmp_path):
    flow = flow_file("public")
    for name in ("a", "b"):
        scans = scans.rename(tmp_path / f"ward-{name}.npz")
        make_release(flow, scans, tmp_path / name, with_(FILE, name=name))
    pooled = load_release(tmp_path / "a", tmp_path / "b")
    assert (len(pooled), pooled.schema) == (160, SCHEMA)
    assert "ward" not in (tmp_path / "a" / "manifest.json").read_text()


def test_entropy_noise_is_new_each_time_and_seeded_noise_is_not(scans, flow_file, tmp_path):
    flow, made = flow_file("public"), {}
    for number, options in enumerate([FILE, FILE, *[with_(FILE, noise="seeded", seed=7)] * 2]):
        made[number] = make_release(flow, scans, tmp_path / str(number), options)
    shards = [each.manifest.shards[0].sha256 for each in made.values()]
    assert shards[0] != shards[1]
    assert shards[2] == shards[3] != shards[0]
    assert "had the noise not been seeded" in made[2].statement


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"epsilon": None}, "Found no --epsilon; pass it"),
        ({"delta": None}, "Found no --delta; pass it"),
        ({"clip_norm": None}, "Found no --clip-norm; pass it"),
        ({"epsilon": 1000.0}, "'epsilon'.*Found 1000.0"),
        ({"delta": 0.01}, r"at most 1 / \(10 n\). Found 0.01 for n = 80"),
        ({"clip_norm": -1.0}, "'clip_norm'"),
        ({"latent_dims": 65}, "at most the flow's 64 dimensions"),
        ({"mechanism": "gauss"}, "Unknown mechanism 'gauss'"),
        ({"shrinkage": "x"}, "Unknown shrinkage 'x'"),
        ({"noise": "both"}, "Noise is entropy or seeded. Found 'both'"),
        ({"noise": "seeded"}, "pass --seed"),
        ({"seed": 3}, "A seed is for seeded noise. Found --seed 3"),
        ({"name": "Ward 3"}, "1 to 40 lower-case letters"),
        ({"site": "north"}, "pass --name"),
        ({"device": "gpu"}, "device must be auto"),
    ],
)
def test_what_does_not_fit_a_file_is_refused_and_writes_nothing(scans, flow_file, tmp_path, changes, sentence):
    flow = flow_file("public")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=sentence):
        make_release(flow, scans, tmp_path / "x", with_(FILE, **changes))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (ReleaseOptions(), "--site names one: north, east, south. Found none"),
        (ReleaseOptions(site="west"), "Found west"),
        (ReleaseOptions(site="north", noise="entropy", seed=1), "A seed is for seeded noise"),
        (ReleaseOptions(site="north", delta=0.5), "at most 1 / "),
    ],
)
def test_what_does_not_fit_a_study_is_refused(federation, tmp_path, options, sentence):
    flow = federation.folder / "models" / "flow.safetensors"
    with pytest.raises(InputError, match=sentence):
        make_release(flow, federation.folder / "config.yaml", tmp_path / "x", options)
    assert not list(tmp_path.iterdir())


def test_a_flow_of_other_records_is_refused(scans, flow_file, federation, tmp_path):
    with pytest.raises(ConfigError, match=r"number of grey levels is 256, that of the stored one 17"):
        make_release(flow_file("public", SCHEMA.model_copy(update={"levels": 17})), scans, tmp_path / "x", FILE)
    wide = Schema(name="x", shape=(1, 8, 16), classes=SCHEMA.classes)
    with pytest.raises(ConfigError, match=r"shape .* is \(1, 8, 8\), that of the stored one \(1, 8, 16\)"):
        make_release(flow_file("public", wide), scans, tmp_path / "x", FILE)
    config = federation.folder / "config.yaml"
    with pytest.raises(ConfigError, match="number of classes is 10, that of the stored one 2"):
        make_release(flow_file("public"), config, tmp_path / "x", ReleaseOptions(site="north"))


def test_a_label_that_the_flow_does_not_know_is_refused(flow_file, tmp_path):
    images = np.zeros((30, 8, 8), np.uint8)
    np.savez(tmp_path / "three.npz", train_images=images, train_labels=np.arange(30) % 3)
    with pytest.raises(DataError, match="'train_labels' holds 2"):
        make_release(flow_file("public"), tmp_path / "three.npz", tmp_path / "x", FILE)


def test_a_files_records_never_leave_unprotected_and_a_simulations_say_so(scans, flow_file, federation, tmp_path):
    with pytest.raises(PrivacyError, match="A real site releases no record unprotected"):
        make_release(flow_file("public"), scans, tmp_path / "x", with_(FILE, mechanism="none"))
    assert not (tmp_path / "x").exists()
    flow, config = federation.folder / "models" / "flow.safetensors", federation.folder / "config.yaml"
    made = make_release(flow, config, tmp_path / "x", ReleaseOptions(site="north", mechanism="none"))
    assert made.manifest.claim.guarantee == "none"
    assert "no privacy" in made.statement


def test_paths_that_cannot_be_are_refused(scans, flow_file, tmp_path):
    flow = flow_file("public")
    with pytest.raises(InputError, match="never written over"):
        make_release(flow, scans, tmp_path, FILE)
    with pytest.raises(InputError, match="There is none at"):
        make_release(flow, tmp_path / "none.npz", tmp_path / "x", FILE)
    with pytest.raises(InputError, match=r"a study config .* or a MedMNIST file"):
        make_release(flow, tmp_path / "records.csv", tmp_path / "x", FILE)
    with pytest.raises(DataError, match="A stored flow is a safetensors file"):
        make_release(scans, scans, tmp_path / "x", FILE)
