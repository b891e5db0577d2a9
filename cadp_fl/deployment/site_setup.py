"""Making a real site's folder: what the steward decided, a ledger of which nothing is spent, and a key pair."""

import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

from cadp_fl.config import Invitation, NodeConfig, PolicyConfig, PrivacyUnit, SiteConfig, SplitRule, dump, dump_tree
from cadp_fl.data.holdout import sides
from cadp_fl.data.units import PATIENTS_CAUTION, Units, has_shared_patients
from cadp_fl.errors import InputError
from cadp_fl.outputs import check_unicode, new_folder
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.policy import check_totals
from cadp_fl.site.folder import SiteFolder, check_socket
from cadp_fl.site.groups import gid_of
from cadp_fl.site.keys import fingerprint, new_key_pair
from cadp_fl.site.open_site import new_split_rule, read_records

__all__ = ["MadeSite", "count_units", "make_site", "refused_by"]


@dataclass(frozen=True)
class MadeSite:
    """A site's folder that was made.

    Attributes:
        folder: of the site.
        units: number of training units.
        test_units: number of test units.
        split: says who is tested on.
        caution: that a claim is for a record where patients have several, or nothing.
        fingerprint: of the public key of its SuperNode.
        ledger_head: hash of the ledger's first entry.
        notes: how the records were read, a sentence each.
    """

    folder: SiteFolder
    units: int
    test_units: int
    split: SplitRule
    caution: str
    fingerprint: str
    ledger_head: str
    notes: tuple[str, ...]


def make_site(path: Path, config: SiteConfig, policy: PolicyConfig, invitation: Invitation) -> MadeSite:
    """Make a site's folder, all of it or nothing. Its keys are made here and never leave it.

    The agent's user alone reads it, but for `node/` and `run/`, which the SuperNode's group may enter.

    Args:
        path: of the folder; its paths in `config` are absolute.

    Raises:
        InputError: it cannot be made there, or config, policy and records do not fit together.
        BudgetError: the policy's delta is too large for the number of its units.
        LedgerError: there is a mark of an older ledger.
    """
    final = SiteFolder(path.absolute())
    check_unicode(final.path, "A site's folder")
    records = (config.data.path, config.data.columns) if config.data is not None else ()
    for named in (*records, config.rehearsal, config.mark):
        if named is not None:
            check_unicode(named, "A file that site.yaml names")
    check_socket(final.socket)
    source = read_records(_without_cache(config))  # which lies in the folder that is not there yet
    split = new_split_rule(config, source)
    data = sides(source, split)
    units, tested = (
        len(Units.of(records, policy.unit, policy.records_per_unit)) for records in (data.train, data.test)
    )
    check_totals(policy, units=units, test_units=tested)
    group = gid_of(config.group)
    private, public = new_key_pair(config.site)
    with new_folder(path, "A site's folder", mode=0o700 if group is None else 0o710) as temporary:
        folder = SiteFolder(temporary)
        _write(folder.config, dump(config), 0o600)
        _write(folder.policy, _explained(policy), 0o600)
        node = folder.node
        for own in (folder.answers, folder.outbox, folder.socket.parent, node.path, node.flower):
            own.mkdir(mode=0o700)
        _write(node.key, private.decode(), 0o600 if group is None else 0o640)
        _write(node.public_key(config.site), public.decode(), 0o644)
        _write(node.config, dump(_node_config(config, invitation, final)), 0o644)
        if invitation.certificate is not None:
            _write(node.certificates, invitation.certificate, 0o644)
        if group is not None:
            _give(group, temporary, folder.socket.parent, node.path, node.key, node.flower)
            for shared, mode in ((folder.socket.parent, 0o750), (node.path, 0o750), (node.flower, 0o2770)):
                shared.chmod(mode)  # whatever the umask
        ledger = DurableLedger.create(
            folder.ledger,
            mark=config.mark,
            population=policy.population,
            unit=policy.unit,
            records_per_unit=policy.records_per_unit,
            split=split,
        )
        head = ledger.links()[-1].hash
    caution = PATIENTS_CAUTION if policy.unit == "record" and has_shared_patients(source.train) else ""
    return MadeSite(
        folder=final,
        units=units,
        test_units=tested,
        split=split,
        caution=caution,
        fingerprint=fingerprint(public),
        ledger_head=head,
        notes=source.notes,
    )


def refused_by(policy: PolicyConfig) -> list[str]:
    """Return what a policy refuses that a study may well ask for, each with the key that allows it."""
    releases = (
        "a release of the method cadp, if its flow is made of noised values of the same study (a warm start, DP-SGD)"
    )
    refused = {
        f"{releases}: made_flows": not (policy.made_flows or policy.unprotected),
        "a release with a flow that a server says is public: public_flows": not (
            policy.public_flows or policy.declared_flows
        ),
        "all that leaves without differential privacy, as in cadp-given-flow, fedavg and local: unprotected": (
            not policy.unprotected
        ),
        "every test result, so that no method has figures from this site: evaluation": policy.evaluation is None,
    }
    return [what for what, is_refused in refused.items() if is_refused]


def count_units(config: SiteConfig, unit: PrivacyUnit) -> int:
    """Return how many training units the site has at most: before its ledger is made, some may yet be held out.

    Raises:
        InputError: its records cannot be read, or do not say whose they are.
    """
    return len(Units.of(read_records(_without_cache(config)).train, unit.unit, unit.records_per_unit))


def _node_config(config: SiteConfig, invitation: Invitation, folder: SiteFolder) -> NodeConfig:
    return NodeConfig(
        site=config.site, federation=invitation.federation, address=invitation.address, socket=folder.socket
    )


def _give(group: int, *paths: Path) -> None:
    try:
        for path in paths:
            os.chown(path, -1, group)
    except OSError as error:
        raise InputError(
            f"A file is given to a group by one of its members. Group {group} cannot be given any ({error.strerror}); "
            "let the agent's user join it (usermod -aG), and log in again."
        ) from error


_EXAMPLES = {
    "evaluation": (
        "# For example, noised test results alone, ten in all:",
        "# evaluation: {exact: false, epsilon: 3.0, delta: 1.0e-5, count: 10}",
        "# exact: true lets exact ones leave; epsilon and delta are then still the totals of noised ones.",
    )
}


def _explained(policy: PolicyConfig) -> str:
    """Return a policy as YAML that a steward can read: every key, defaults too, below what it means."""
    lines = ["# What this site allows, whatever a server asks. An edit holds from cadp-fl site reload on."]
    values = policy.model_dump(mode="json")
    for name, field in PolicyConfig.model_fields.items():
        comment = textwrap.wrap(field.description or name, 100, initial_indent="# ", subsequent_indent="# ")
        lines += ["", *comment, *_EXAMPLES.get(name, ()), dump_tree({name: values[name]}).rstrip()]
    return "\n".join(lines) + "\n"


def _without_cache(config: SiteConfig) -> SiteConfig:
    """Return a site's settings without a place for decoded images."""
    if config.data is None or config.data.cache is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"cache": None})})


def _write(path: Path, text: str, mode: int) -> None:
    """Write a new file that has its mode from its first moment on."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
