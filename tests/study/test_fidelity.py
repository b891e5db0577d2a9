"""A simulation measures what its releases keep, and shows originals beside their own releases to its eyes alone."""

import pytest

from cadp_fl.study.fidelity import add_fidelity
from cadp_fl.study.run import check_study
from cadp_fl.study.simulated_sites import ORDERS
from tests.federated.test_workflow import Run

FIGURES = {
    "image_correlation",
    "latent_correlation",
    "label_agreement",
    "linear_released",
    "quadratic_released",
    "nearest",
    "linkage",
    "distributions",
}
RELEASE = "release={mechanism: privunit, labels: covered, label_classes: 10, shuffled_units: 60}"


def test_releases_of_every_method_are_compared_with_their_records(run_config):
    run = Run(run_config, "methods={cadp-given-flow: {}, cadp: {}}", "flow.warm_start=moments", RELEASE)
    assert run.go() == "complete"
    study, sites = check_study(run.study)[:2]
    assert "fidelity" not in run.json("summary.json")["methods"]["cadp"]
    add_fidelity(study, sites, run.folder)
    rows = run.json("summary.json")["methods"]
    for name in ("cadp-given-flow", "cadp"):
        kept = rows[name]["fidelity"]
        assert set(kept) == FIGURES
        assert -0.2 < kept["image_correlation"] < 0.9
        assert 0.1 < kept["label_agreement"] < 0.9
        assert kept["linkage"]["linked"] <= kept["linkage"]["at_most"] < 1
        for site in study.sites.site_names:
            path = run.folder / "sites" / site / f"pairs-{name}.npz"
            assert path.stat().st_mode & 0o077 == 0
    page = (run.folder / "report.html").read_text()
    assert "What do the releases keep of their records?" in page
    assert page.count("its own released record") == 2
    assert (run.folder / "report.html").stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_without_it_no_order_is_kept_and_nothing_is_measured(run_config):
    run = Run(run_config, "methods={cadp: {}}", "flow.warm_start=moments", RELEASE, "evaluation.fidelity=false")
    assert run.go() == "complete"
    assert not list(run.folder.rglob(f"{ORDERS}/*.npy"))
    study, sites = check_study(run.study)[:2]
    add_fidelity(study, sites, run.folder)
    assert "fidelity" not in run.json("summary.json")["methods"]["cadp"]


@pytest.mark.slow
def test_a_latent_that_is_not_noised_is_the_records_own(run_config):
    run = Run(
        run_config,
        "methods={cadp-given-flow: {}}",
        "release={mechanism: none, labels: public, latent_dims: 16}",
    )
    assert run.go() == "complete"
    study, sites = check_study(run.study)[:2]
    add_fidelity(study, sites, run.folder)
    kept = run.json("summary.json")["methods"]["cadp-given-flow"]["fidelity"]
    assert kept["label_agreement"] == 1.0
    assert kept["image_correlation"] > 0.1
    assert kept["linkage"]["at_most"] == pytest.approx(1.0)
    assert kept["linkage"]["linked"] > 0.3
