"""Studies of rows, over a grid in memory: every method, from a table to a page."""

import json

import numpy as np
import pytest
import torch

from cadp_fl.classifier.models import build_classifier
from cadp_fl.config import ClassifierConfig, FlowConfig, dump_study, load_study
from cadp_fl.data.codec import codec_of, input_shape
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema
from cadp_fl.data.sources import load_source
from cadp_fl.errors import ConfigError
from cadp_fl.evaluation.rows import drawn_rows, marginal_distance, models_on
from cadp_fl.features.front_end import front_end_of
from cadp_fl.features.linear import RowNumbers
from cadp_fl.federated.flower_server import Workflow
from cadp_fl.federated.row_defaults import radius_of
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of
from cadp_fl.flow.moments import NoisedMoments, fit_affine
from cadp_fl.privacy.moments import Moments
from cadp_fl.release.bundle import open_bundle
from cadp_fl.report.page import write_report
from cadp_fl.study.fidelity import add_fidelity
from cadp_fl.study.run import check_study
from cadp_fl.study.simulated_sites import dealt
from clients.client_app import app as client_app
from tests.conftest import ROOT
from tests.local_grid import LocalGrid

COLUMNS = (
    Column(name="age", type="integer", lower=0, upper=100),
    Column(name="dose", type="number", lower=0.1, upper=10, scale="log", missing=True),
    Column(name="sex", type="category", categories=("f", "m")),
    Column(name="ward", type="category", categories=("a", "b", "c", "d")),
)
SCHEMA = Schema(name="t", shape=(4,), classes=("no", "yes"), columns=COLUMNS)
WARM = FlowConfig(warm_start="moments", front_end={"radius": 1.0}, dense={"blocks": 0})


def records(count=20_000, seed=0):
    """Return rows in which each class has its own ages, sexes and wards; a third of the first class lacks a dose."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.25).astype(np.int64)
    age = np.round(np.clip(generator.normal(40 + 20 * labels, 8), 0, 100))
    dose = np.where((generator.random(count) < 1 / 3) & (labels == 0), np.nan, np.exp(generator.normal(0, 0.5, count)))
    sex = (generator.random(count) < 0.2 + 0.5 * labels).astype(np.int32)
    shares = np.array([[0.7, 0.2, 0.08, 0.02], [0.1, 0.2, 0.3, 0.4]])
    ward = np.array([generator.choice(4, p=shares[label]) for label in labels], dtype=np.int32)
    codes = [COLUMNS[0].codes_of(age)[0], COLUMNS[1].codes_of(np.clip(dose, 0.1, 10))[0], sex, ward]
    return Dataset(SCHEMA, np.stack(codes, axis=1).astype(np.int32), labels)


def fitted(data, noise=1e-9):
    """Return a flow that is made of the exact moments of some rows."""
    flow = ConditionalFlow(WARM, input_shape(SCHEMA), 2, seed=0)
    front = flow.coordinates.front
    v = front(codec_of(SCHEMA).to_unit(torch.from_numpy(data.records)))[0].double().numpy()
    centre = v.mean(axis=0)
    u = v - centre
    u /= np.maximum(1, np.linalg.norm(u, axis=1))[:, None]
    own = [u[data.labels == label] for label in (0, 1)]
    second = np.stack([each.T @ each for each in own])
    moments = Moments(
        np.array([float(len(each)) for each in own]),
        np.stack([each.sum(axis=0) for each in own]),
        second.sum(axis=0),
        second,
        dict.fromkeys(("counts", "sums", "shared", "second"), noise),
    )
    fit_affine(flow, NoisedMoments(centre, moments, len(u)))
    return flow


def test_the_front_end_of_rows_is_in_the_unit_ball_and_leads_back():
    front, data = front_end_of(WARM.front_end, input_shape(SCHEMA)), records(500)
    x = codec_of(SCHEMA).to_unit(torch.from_numpy(data.records)).double()
    v, contrast, rest = front(x)
    assert v.norm(dim=1).max() <= 1
    assert rest.shape == (500, 0)
    torch.testing.assert_close(front.record(v, contrast, rest), x)


def test_a_category_has_norm_one_of_each_value_and_a_number_of_its_bounds():
    """So that no column takes more of the budget than another, whatever its categories."""
    shape = input_shape(SCHEMA)
    codes = torch.tensor([[0, 0, 0, 0], [100, 2**16 - 1, 1, 3], [50, 2**16, 0, 1]], dtype=torch.int32)
    v = front_end_of(WARM.front_end, shape)(codec_of(SCHEMA).to_unit(codes))[0] * 2  # of four columns
    for row, expected in zip(v, [(1, 1, 1, 1), (1, 1, 1, 1), (0, 1, 1, 1)], strict=True):
        for (_, place), norm in zip(shape.parts, expected, strict=True):
            assert row[place].norm().item() == pytest.approx(norm, abs=0.02)


def test_encoding_rows_and_decoding_them_gives_the_same_rows():
    data = records(300)
    flow, codec = fitted(data), codec_of(SCHEMA)
    condition = condition_of(torch.from_numpy(data.labels), 2)
    with torch.no_grad():
        z, _ = flow.encode(codec.to_unit(torch.from_numpy(data.records)), condition)
        back = codec.from_unit(flow.decode(z, condition)).numpy()
    off = np.abs(back[:, 0] - data.records[:, 0])
    assert off.max() <= 1  # float32 at the edge of a step
    np.testing.assert_array_equal(back[:, 3], data.records[:, 3])


def test_drawn_rows_have_the_classes_shares_and_marginals_of_real_ones():
    data = records()
    drawn = drawn_rows(fitted(data), data, 20_000, seed=1)
    assert abs(drawn.labels.mean() - data.labels.mean()) < 0.01
    for label in (0, 1):
        real, made = (each.records[each.labels == label] for each in (data, drawn))
        for column, name in ((2, "sex"), (3, "ward")):
            counts = [np.bincount(each[:, column], minlength=4) / len(each) for each in (real, made)]
            assert np.abs(counts[0] - counts[1]).max() < 0.012, name
        missing = [(each[:, 1] == COLUMNS[1].steps).mean() for each in (real, made)]
        assert abs(missing[0] - missing[1]) < 0.012
        ages = [COLUMNS[0].values_of(each[:, 0]) for each in (real, made)]
        assert abs(ages[0].mean() - ages[1].mean()) < 2
    assert marginal_distance(drawn, data) < 0.15
    assert marginal_distance(data, data) == 0


def test_models_on_drawn_rows_are_nearly_as_good_as_on_real_ones():
    data, test = records(4000), records(4000, seed=1)
    real, drawn = (models_on(each, test) for each in (data, drawn_rows(fitted(data), data, 8000, seed=1)))
    for model in ("logistic", "boosting"):
        assert real[model]["auroc"] > 0.95
        assert drawn[model]["auroc"] > real[model]["auroc"] - 0.03
    one_class = data.select(np.flatnonzero(data.labels == 0))
    assert models_on(one_class, test)["logistic"] == {"auroc": None, "accuracy": None}


def test_features_of_a_logistic_regression_have_a_norm_of_at_most_one_and_see_a_constant():
    features = RowNumbers(input_shape(SCHEMA))
    x = codec_of(SCHEMA).inputs(records(500).records)
    norms = features(x).norm(dim=1)
    assert norms.max() <= 1 + 1e-6
    assert features(x)[:, -1].unique().numel() == 1


@pytest.mark.parametrize(
    ("model", "shape", "sentence"),
    [
        ("linear-hog", input_shape(SCHEMA), "is for images. These records are rows; choose one of: linear, logistic"),
        ("logistic", (1, 8, 8), "is for rows of a table. These records are images"),
    ],
)
def test_a_classifier_of_another_kind_of_records_is_refused(model, shape, sentence):
    with pytest.raises(ConfigError, match=sentence):
        build_classifier(ClassifierConfig(model=model), shape, 2, seed=0)


def test_scales_are_for_images():
    with pytest.raises(ConfigError, match=r"remove flow\.scales"):
        ConditionalFlow(FlowConfig(scales=[{"blocks": 1}]), input_shape(SCHEMA), 2, seed=0)


METHODS = (
    "methods={cadp: {drawn: 500}, flow-samples: {drawn: 500}, moments: {drawn: 500}, flow-bayes: {}, "
    "cadp-given-flow: {}, dp-sgd: {rounds: 2, local_steps: 2}, fedavg: {rounds: 2}, local: {}}"
)
SMALL = (
    "flow.training={rounds: 1, local_epochs: 1}",
    "flow.dense={blocks: 2, width: 16}",
    "classifier.central={epochs: 1}",
    "evaluation.every=2",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every method on the breast cancer data, as `simulate` runs it, but without Flower."""
    folder = tmp_path_factory.mktemp("rows")
    study = check_study(load_study(ROOT / "configs" / "breast-cancer.yaml", [METHODS, *SMALL])).study
    config = folder / "study.yaml"
    config.write_text(dump_study(study))
    run_config = {"config": str(config), "output-dir": str(folder / "out"), "set": "", "federation": ""}
    grid = LocalGrid(client_app, 3, run_config)
    status = Workflow(study, folder / "out", watch=lambda step: None, resume=False).run(grid, None)
    assert status == "complete"
    add_fidelity(study, dealt(study.model_dump_json()), folder / "out")
    return study, folder / "out", json.loads((folder / "out" / "summary.json").read_text())


def test_every_method_runs_on_rows(finished):
    study, _, summary = finished
    assert list(summary["methods"]) == list(study.methods)
    assert all(0 <= row["auroc"] <= 1 for row in summary["methods"].values())
    assert summary["methods"]["cadp"]["auroc"] > 0.9
    assert summary["methods"]["dp-sgd"]["classifier"] == "logistic"


def test_a_study_of_rows_has_the_defaults_of_rows_and_keeps_what_it_says(finished):
    study = finished[0]
    assert study.flow.front_end.radius == radius_of(load_source(study.data).schema) == 0.32
    assert study.flow.moments.count_weight == 0.5
    said = ["flow.front_end={radius: 0.7}", "methods={dp-sgd: {model: linear}}", "classifier.model=linear"]
    own = check_study(load_study(ROOT / "configs" / "breast-cancer.yaml", said)).study
    assert own.flow.front_end.radius == 0.7
    assert own.methods["dp-sgd"]["model"] == own.classifier.model == "linear"


def test_what_is_released_is_rows_that_follow_the_schema(finished):
    _, folder, _ = finished
    for method in ("", "-cadp-given-flow"):
        for site in ("north", "east", "south"):
            bundle = open_bundle(folder / f"releases{method}" / site)
            assert bundle.manifest.dataset == load_source(finished[0].data).schema
            assert sum(len(part) for part in bundle.parts()) == bundle.manifest.records


def test_models_on_released_and_on_drawn_rows_stand_in_the_summary(finished):
    summary = finished[2]
    assert summary["real_rows"]["logistic"]["auroc"] > 0.97
    kinds = {name: set(row.get("rows", ())) for name, row in summary["methods"].items()}
    assert kinds == {
        "cadp": {"released", "drawn"},
        "flow-samples": {"drawn"},
        "moments": {"drawn"},
        "flow-bayes": {"drawn"},
        "cadp-given-flow": {"released", "drawn"},
        "dp-sgd": set(),
        "fedavg": set(),
        "local": set(),
    }
    assert summary["methods"]["cadp"]["rows"]["drawn"]["logistic"]["auroc"] > 0.9
    assert 0 <= summary["methods"]["cadp"]["rows"]["drawn"]["marginals"] <= 1
    assert summary["methods"]["cadp"]["fidelity"]["label_agreement"] > 0.5


def test_the_page_shows_columns_and_not_pictures(finished):
    _, folder, _ = finished
    page = write_report(folder).read_text()
    assert "Released rows beside real ones" in page
    assert "distribution of every column" in page
    assert "arXiv 2403.13612" in page
    assert "worst concave points" in page
    assert (folder / "report.html").stat().st_mode & 0o777 == 0o600  # it shows what real rows are like
    for preview in folder.glob("sites/*/preview.npz"):
        preview.unlink()
    plain = write_report(folder).read_text()
    assert "Released rows beside real ones" not in plain
    assert "Released rows" in plain
