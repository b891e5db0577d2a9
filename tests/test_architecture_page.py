"""What the pages on the code say of it: rooms, files, numbers of actions, ranges of values."""

import re

import pytest

from cadp_fl.classifier.training import as_input
from cadp_fl.site.protocol import ACTIONS
from tests.conftest import ROOT
from tests.test_architecture import LEVELS

PAGE = ROOT / "docs" / "architecture.md"
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
NUMBERS = {"ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13}


def _section(name):
    return PAGE.read_text().split(f"## {name}")[1].split("\n## ")[0]


def test_every_room_has_a_line_in_the_order_of_imports():
    rows = [re.findall(r"`([a-z_]+)`", line.split("|")[1]) for line in _section("Rooms").splitlines() if "|" in line]
    named = [name for row in rows for name in row]
    level_of = {name: level for level, names in enumerate(LEVELS) for name in names}
    assert sorted(named) == sorted(level_of)
    levels = [level_of[name] for name in named]
    assert all(later >= max(levels[:place], default=0) - 1 for place, later in enumerate(levels))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_of_the_code_that_a_page_names_is_there(page):
    text = page.read_text()
    for path in re.findall(r"`((?:cadp_fl|tests|clients|server|configs|docs|examples|deploy)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for path in re.findall(r"\]\((?!https?://|#)([^)#]+)", text):
        assert (page.parent / path).exists(), f"{page.name} links to {path}"


def test_the_files_of_the_table_are_there():
    rooms = r"(?:privacy|site|federated|classifier|data|config|study|report)"
    for path in re.findall(rf"`({rooms}/[\w./]+)`", PAGE.read_text()):
        assert (ROOT / "cadp_fl" / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_that_counts_the_actions_counts_them_right(page):
    for number in re.findall(r"(\w+) (?:named |)(?:actions|requests)\b", page.read_text()):
        if number.lower() in NUMBERS:
            assert NUMBERS[number.lower()] == len(ACTIONS), f"{page.name}: {number}"


def test_a_classifier_sees_the_range_that_the_page_on_plugins_says():
    import torch

    pixels = as_input(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    assert (float(pixels.min()), float(pixels.max())) == (-0.5, 0.5)
    assert "maps images in\n[-0.5, 0.5]" in (ROOT / "docs" / "plugin.md").read_text()
