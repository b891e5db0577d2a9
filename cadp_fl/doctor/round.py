"""A dummy round: what every connected site answers, by the whole way that a study takes, and who does not."""

from collections.abc import Iterator, Mapping
from typing import Any

from cadp_fl.deployment.roll_call import ask_all
from cadp_fl.doctor.coordinator import Coordinator
from cadp_fl.doctor.finding import Check, Finding, UnmetError, fault, ok, warning
from cadp_fl.errors import AgentError

__all__ = ["ROUND_CHECKS", "attendance"]

SEEDED = "Have its steward start the agent without --seeded-noise, unless this is a test."


def _dummy_round(coordinator: Coordinator) -> Iterator[Finding]:
    """Have Flower ask every connected site what it is."""
    if not coordinator.is_up:
        raise UnmetError("It needs the SuperLink.")
    yield from attendance(ask_all(coordinator.folder), list(coordinator.folder.key_files()))


def attendance(result: Mapping[str, Any], admitted: list[str]) -> Iterator[Finding]:
    """Return who answered a roll call, and who did not, and why.

    Args:
        result: as `federated.roll_call` returns it.
        admitted: names of the sites that should.
    """
    nodes = result["nodes"]
    for node in nodes:
        name = node["name"] or f"node {node['node']}"
        if "error" in node:
            fix = (
                "Have its steward start the agent: cadp-fl site serve."
                if node["code"] == AgentError.code
                else "Have its steward look: cadp-fl doctor, and the site's audit log."
            )
            yield fault(f"{name}: {node['error']}.", fix)
        elif node["name"] and node["site"] != node["name"]:
            yield fault(
                f"{name}: calls itself '{node['site']}'.",
                "Make its name and that of its key's file agree; admit it again.",
            )
        elif _line(node["library"]) != _line(result["library"]):
            yield fault(
                f"{name}: cadp-fl {node['library']}, and {result['library']} here.",
                "Install one major.minor version everywhere.",
            )
        else:
            yield ok(
                f"{name}: data set '{node['dataset']}', {node['classes']} classes, {node['train']} training and "
                f"{node['test']} test units ({node['unit']}), cadp-fl {node['library']}."
            )
    if sets := sorted({node["dataset"] for node in nodes if "error" not in node})[1:]:
        yield warning(f"Sites have different data sets ('{sets[0]}' among them).", "Give them one name and schema.")
    if seeded := [node["name"] for node in nodes if node.get("noise") == "seeded"]:
        yield warning(f"Noise from a seed, which protects nothing: {', '.join(seeded)}.", SEEDED)
    called = {node["name"] for node in nodes}
    if away := [name for name in admitted if name not in called]:
        yield fault(f"Not connected, so not asked: {', '.join(away)}.", "Have them start cadp-fl site connect.")


def _line(library: str) -> list[str]:
    return library.split(".")[:2]


ROUND_CHECKS = (Check("round", _dummy_round, seconds=180),)
"""What takes a run of Flower's."""
