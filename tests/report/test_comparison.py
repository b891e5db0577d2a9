import json
import re

import numpy as np
import pytest

from cadp_fl.evaluation.utility import Metrics
from cadp_fl.report.comparison import FIGURES, Cell, CellResult, Comparison, comparison_json
from cadp_fl.report.comparison_page import format_interval, notes_of, tables_of, write_comparison
from cadp_fl.report.figures import EpsilonLine, epsilon_panels

T_OF_THREE = 4.302652729911275
MAJORITY = Metrics(0.6, 0.5, 0.5, 0.375, {})


def row(accuracy, *, guarantee="end-to-end", epsilon=0.99, auroc=0.9):
    is_bounded = guarantee == "end-to-end"
    return {
        **dict.fromkeys(FIGURES, accuracy),
        "auroc": auroc,
        "guarantee": guarantee,
        "epsilon": epsilon if is_bounded else None,
        "epsilon_add_remove": epsilon / 2 if is_bounded else None,
        "epsilon_if_flow_were_fixed": epsilon if guarantee == "given-flow" else None,
        "epsilon_if_flow_were_fixed_add_remove": epsilon / 2 if guarantee == "given-flow" else None,
        "delta": 1e-5,
        "relation": "replace one record, keep its label",
        "against": "server",
        "unprotected": [],
        "declared": [],
        "classifier": "cnn",
        "test": {"metrics": "exact"},
    }


def summary(methods, *, noise="entropy"):
    return {
        "dataset": "digits",
        "noise": noise,
        "relation": "replace one record, keep its label",
        "unit": "record",
        "budget": {"epsilon": 1.0, "delta": 1e-5},
        "software": {"cadp-fl": "0.1.0"},
        "resumed": [],
        "seconds": {"describe": 1.0, **{f"{name}/train": 2.0 for name in methods}, "dp-sgd-pooled/train": 50.0},
        "methods": methods,
    }


def complete(cell, methods, **named):
    return CellResult(cell, "complete", summary=summary(methods, **named))


def compared(tiny, results, *, epsilons=(1.0,), seeds=(1, 2, 3), methods=("dp-sgd", "cadp-given-flow")):
    study = tiny.model_copy(update={"methods": {name: {} for name in methods}})
    return comparison_json(Comparison(study, epsilons, seeds, tuple(results), dict.fromkeys(seeds, MAJORITY)))


def cell(seed, epsilon=1.0, methods=("dp-sgd", "cadp-given-flow")):
    return Cell(epsilon, seed, methods)


@pytest.fixture
def three(tiny):
    """Three seeds that differ much, and a second method that is better by 0.1, 0.11 and 0.12."""
    hard = {1: 0.5, 2: 0.7, 3: 0.6}
    results = [
        complete(
            cell(seed),
            {
                "dp-sgd": row(base, epsilon=0.99 + seed / 1000),
                "cadp-given-flow": row(base + 0.09 + 0.01 * seed, guarantee="given-flow"),
            },
        )
        for seed, base in hard.items()
    ]
    return compared(tiny, results)


def test_a_figure_is_the_mean_over_seeds_with_its_interval(three):
    figure = three["tables"][0]["methods"]["dp-sgd"]["figures"]["accuracy"]
    assert figure["mean"] == pytest.approx(0.6)
    assert figure["half_width"] == pytest.approx(T_OF_THREE * 0.1 / 3**0.5)
    assert (figure["runs"], figure["values"]) == (3, {"1": 0.5, "2": 0.7, "3": 0.6})


def test_what_a_split_does_to_both_methods_is_in_no_difference(three):
    difference = three["tables"][0]["differences"]["cadp-given-flow"]["accuracy"]
    assert difference["mean"] == pytest.approx(-0.11)
    assert difference["half_width"] == pytest.approx(T_OF_THREE * 0.01 / 3**0.5)
    assert (
        difference["half_width"] < 0.11 < three["tables"][0]["methods"]["dp-sgd"]["figures"]["accuracy"]["half_width"]
    )


def test_a_claim_is_copied_from_the_weakest_run(three):
    entry = three["tables"][0]["methods"]["dp-sgd"]
    assert (entry["epsilon"], entry["epsilon_add_remove"], entry["claim_of"]) == (0.993, 0.993 / 2, "eps-1-seed-3")


def test_a_run_without_a_guarantee_takes_it_from_the_mean(tiny):
    rows = {1: row(0.9), 2: row(0.9, guarantee="given-flow", epsilon=0.2), 3: row(0.9, epsilon=99.0)}
    tree = compared(
        tiny, [complete(cell(seed), {"dp-sgd": each, "cadp-given-flow": each}) for seed, each in rows.items()]
    )
    entry = tree["tables"][0]["methods"]["dp-sgd"]
    assert (entry["guarantee"], entry["epsilon"], entry["epsilon_if_flow_were_fixed"]) == ("given-flow", None, 0.2)


@pytest.mark.parametrize("status", ["incomplete", "failed", "pending"])
def test_a_cell_that_is_not_complete_is_named_and_in_no_mean(tiny, status):
    good = {"dp-sgd": row(0.8), "cadp-given-flow": row(0.7)}
    bad = CellResult(cell(3), status, "north was missing", summary({"dp-sgd": row(0.0), "cadp-given-flow": row(0.0)}))
    tree = compared(tiny, [complete(cell(1), good), complete(cell(2), good), bad])
    assert tree["status"] == "incomplete"
    figure = tree["tables"][0]["methods"]["dp-sgd"]["figures"]["accuracy"]
    assert (figure["mean"], figure["runs"]) == (pytest.approx(0.8), 2)
    assert tree["tables"][0]["differences"]["cadp-given-flow"]["accuracy"]["runs"] == 2
    assert tables_of(tree)[0].rows[0][1] == "0.800 ± 0.000 (2 of 3 seeds)"
    assert next(each for each in tree["cells"] if each["seed"] == 3)["reason"] == "north was missing"


def test_an_undefined_figure_is_in_no_mean_and_the_table_says_of_how_many_it_is(tiny):
    results = [
        complete(cell(seed), {"dp-sgd": row(0.8, auroc=None if seed == 2 else 0.9), "cadp-given-flow": row(0.7)})
        for seed in (1, 2, 3)
    ]
    tree = compared(tiny, results)
    figures = tree["tables"][0]["methods"]["dp-sgd"]["figures"]
    assert (figures["auroc"]["runs"], figures["accuracy"]["runs"]) == (2, 3)
    assert figures["auroc"]["values"]["2"] is None
    assert "(2 of 3 seeds)" in tables_of(tree)[0].rows[0][3]


def test_a_method_that_spends_nothing_is_the_same_at_every_epsilon(tiny):
    results = [complete(Cell(None, 1, ("fedavg",)), {"fedavg": row(0.95, guarantee="none")})]
    results += [
        complete(cell(1, epsilon, ("dp-sgd",)), {"dp-sgd": row(0.5 + epsilon / 100, epsilon=epsilon)})
        for epsilon in (1.0, 3.0)
    ]
    tree = compared(tiny, results, epsilons=(1.0, 3.0), seeds=(1,), methods=("dp-sgd", "fedavg"))
    one, three = (table["methods"] for table in tree["tables"])
    assert one["fedavg"] == three["fedavg"]
    assert (one["fedavg"]["once_a_seed"], one["dp-sgd"]["once_a_seed"]) == (True, False)
    assert (one["dp-sgd"]["epsilon"], three["dp-sgd"]["epsilon"]) == (1.0, 3.0)
    assert tables_of(tree)[0].rows[1][0] == "fedavg (*)"
    assert any(note.startswith("(*)") for note in notes_of(tree))
    assert "One seed" in notes_of(tree)[0]
    assert "±" not in tables_of(tree)[0].rows[0][1]


def test_cells_that_other_versions_ran_are_said(tiny):
    methods = {"dp-sgd": row(0.8), "cadp-given-flow": row(0.7)}
    other = CellResult(cell(2), "complete", summary=summary(methods) | {"software": {"cadp-fl": "0.2.0"}})
    tree = compared(tiny, [complete(cell(1), methods), other], seeds=(1, 2))
    assert not tree["same_software"]
    assert any("different versions" in note for note in notes_of(tree))


def test_seconds_are_those_of_a_methods_own_phases(three):
    assert three["tables"][0]["methods"]["dp-sgd"]["seconds"] == 2.0


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [
        (0.9125, 0.0101, "0.912 ± 0.011"),
        (0.5, 0.01, "0.500 ± 0.010"),
        (0.25, 1e-9, "0.250 ± 0.001"),
        (1, None, "1.000"),
    ],
)
def test_half_a_width_is_rounded_up(mean, half, text):
    assert format_interval({"mean": mean, "half_width": half, "runs": 3}, 3) == text


def test_a_table_prints_no_epsilon_below_its_own_and_none_for_a_flow_that_is_not_covered(three):
    headings, rows = tables_of(three)[0].headings, {each[0]: each for each in tables_of(three)[0].rows}
    epsilon, guarantee = headings.index("epsilon"), headings.index("guarantee")
    assert rows["dp-sgd"][epsilon] == "1.00"
    assert rows["dp-sgd"][guarantee] == "end-to-end"
    assert rows["cadp-given-flow"][epsilon] == "-"
    assert "the flow is not covered. 0.99 would hold" in rows["cadp-given-flow"][guarantee]
    assert rows["majority class"][1:5] == ("0.600 ± 0.000", "0.500 ± 0.000", "0.500 ± 0.000", "0.375 ± 0.000")


def test_the_page_is_one_file_that_loads_nothing_and_says_what_the_rows_claim(three, tmp_path):
    write_comparison(tmp_path, three)
    page = (tmp_path / "comparison.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for part in ("if only that method had been", "all of these runs would compose", "are not equals", "eps-1-seed-2"):
        assert part in page
    assert json.loads((tmp_path / "comparison.json").read_text()) == three
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_holds_the_same_cells_as_the_page(three, tmp_path):
    write_comparison(tmp_path, three)
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    for table in tables_of(three):
        for cells in table.rows:
            assert "| " + " | ".join(cells) + " |" in lines
    assert "**Incomplete.**" not in "\n".join(lines)


def test_a_reason_becomes_neither_markup_nor_a_row(tiny, tmp_path):
    failed = CellResult(cell(1), "failed", "<script>alert(1)</script> |\n| x | *y*")
    write_comparison(tmp_path, compared(tiny, [failed], seeds=(1,)))
    assert "<script>" not in (tmp_path / "comparison.html").read_text()
    text = (tmp_path / "comparison.md").read_text()
    assert r"- eps-1-seed-1: failed: \<script>alert(1)\</script> \| \| x \| \*y\*" in text
    assert not (tmp_path / "comparison.png").exists(), "nothing to draw"
    assert "no run is complete" in text


def test_seeded_noise_is_said_before_the_tables(tiny, tmp_path):
    methods = {"dp-sgd": row(0.8), "cadp-given-flow": row(0.7)}
    write_comparison(tmp_path, compared(tiny, [complete(cell(1), methods, noise="seeded")], seeds=(1,)))
    text = (tmp_path / "comparison.md").read_text()
    assert text.index("these runs protect nothing") < text.index("### ")
    assert "protect nothing" in (tmp_path / "comparison.html").read_text()


def test_a_caution_and_a_declaration_are_copied(tiny, tmp_path):
    cautioned = row(0.8) | {"caution": "CAUTION: the flow saw them.", "declared": ["the flow is public (sha256 0f)"]}
    write_comparison(
        tmp_path, compared(tiny, [complete(cell(1), {"dp-sgd": cautioned, "cadp-given-flow": cautioned})], seeds=(1,))
    )
    for name in ("comparison.html", "comparison.md"):
        text = (tmp_path / name).read_text()
        assert "dp-sgd: CAUTION: the flow saw them." in text
        assert "dp-sgd rests on a declaration: the flow is public (sha256 0f)." in text


KEPT = {
    "image_correlation": 0.2,
    "latent_correlation": 0.4,
    "label_agreement": 0.5,
    "linear_released": {"accuracy": 0.7, "balanced_accuracy": 0.6},
    "quadratic_released": {"accuracy": 0.8, "balanced_accuracy": 0.7},
}


def kept_at(tiny, tmp_path, epsilons):
    """A comparison of one seed whose method released at each epsilon, and kept pairs of one site."""
    results = []
    for epsilon in epsilons:
        one = cell(1, epsilon, methods=("dp-sgd",))
        results.append(complete(one, {"dp-sgd": row(0.9) | {"fidelity": KEPT}}))
        site = tmp_path / "cells" / one.name / "sites" / "north"
        site.mkdir(parents=True)
        images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
        np.savez_compressed(site / "pairs-dp-sgd.npz", originals=images, released=images, labels=np.arange(3))
    return compared(tiny, results, epsilons=epsilons, seeds=(1,), methods=("dp-sgd",))


def test_what_releases_keep_stands_beside_accuracy_and_its_page_is_its_readers_alone(tiny, tmp_path):
    tree = kept_at(tiny, tmp_path, (1.0, 3.0))
    assert tree["tables"][0]["kept"]["dp-sgd"]["linear_released"]["mean"] == 0.6
    write_comparison(tmp_path, tree)
    page = tmp_path / "comparison.html"
    text = page.read_text()
    assert "What releases keep of their records, at epsilon 3" in text
    assert "A record, and what is released of it" in text
    assert page.stat().st_mode & 0o077 == 0, "it shows originals"
    assert "| dp-sgd | 0.200 | 0.400 | 0.500 | 0.600 | 0.700 |" in (tmp_path / "comparison.md").read_text()


def test_without_the_same_originals_at_every_epsilon_there_is_no_picture_of_them(tiny, tmp_path):
    tree = kept_at(tiny, tmp_path, (1.0, 3.0))
    (tmp_path / "cells" / "eps-3-seed-1" / "sites" / "north" / "pairs-dp-sgd.npz").write_bytes(b"damaged")
    write_comparison(tmp_path, tree)
    page = tmp_path / "comparison.html"
    assert "A record, and what is released of it" not in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o644


def test_the_same_lines_draw_the_same_picture():
    line = EpsilonLine("a", "-", [0.5, float("nan")], [0.1, float("nan")], flat=False)
    flat = EpsilonLine("b", ":", [0.9, 0.9], [float("nan")] * 2, flat=True)
    drawn = [epsilon_panels([1.0, 3.0], {"accuracy": [line, flat], "AUROC": [line, flat]}) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0].startswith("data:image/svg+xml;base64,")
