"""A real site from its folder: its records, its ledger and its policy, as one `Site`."""

from dataclasses import replace
from pathlib import Path

from cadp_fl.config import PolicyConfig, SiteConfig, SplitRule, load_node, load_study
from cadp_fl.data.holdout import rehearsal_rule, sides, split_rule
from cadp_fl.data.partition import SiteData, deal_to_sites
from cadp_fl.data.schema import Dataset, Source
from cadp_fl.data.sources import SOURCES, load_source
from cadp_fl.data.units import Units
from cadp_fl.device import resolve_device
from cadp_fl.errors import ConfigError, DataError, LedgerError
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.privacy.policy import check_totals
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.register import check_sides
from cadp_fl.site.reply_store import ReplyStore
from cadp_fl.site.site import Site

__all__ = ["check_name", "mark_of", "new_split_rule", "open_ledger", "open_site", "read_records", "records_of"]


def read_records(config: SiteConfig) -> Source:
    """Return a site's records: its own, or those that a rehearsal deals to it. Its ledger says who is on which side.

    Raises:
        InputError: they cannot be read, what is public of them is not declared, or the rehearsal knows no such site.
    """
    if config.data is not None:
        _check_declared(config)
        source = load_source(config.data)
    else:
        source = _rehearsed(config)
    if config.dataset is None:
        return source
    test = None if source.test is None else _called(source.test, config.dataset)
    return replace(source, train=_called(source.train, config.dataset), test=test)


def new_split_rule(config: SiteConfig, source: Source) -> SplitRule:
    """Return the rule that a new ledger of the site keeps: who is tested on.

    Raises:
        DataError: some are to be tested on, and the records say neither whom nor who is who.
    """
    if config.rehearsal is not None:
        return rehearsal_rule(source)
    if source.test is not None and "test_fraction" in config.model_fields_set and config.test_fraction:
        raise DataError(
            f"A source's own test split is the one that is tested on. Found one, and test_fraction "
            f"{config.test_fraction}; leave that out, put all records into the train split, or test on nobody (0)."
        )
    return split_rule(source, config.test_fraction)


def records_of(ledger: DurableLedger, config: SiteConfig, source: Source) -> SiteData:
    """Return a site's training and test records, everyone on the side that the ledger's rule gives.

    Raises:
        LedgerError: the site's settings give another rule than the ledger's.
        DataError: the records give another one.
    """
    rule = ledger.terms.split
    held_out = {"hash": rule.fraction, "none": 0.0}.get(rule.rule) if rule is not None else None
    if held_out is not None and config.test_fraction != held_out:
        raise LedgerError(
            "Who is tested on is fixed when a ledger is made: another test_fraction would test on people that were "
            f"trained on. site.yaml says {config.test_fraction}, and the ledger {held_out}; put that back."
        )
    if rule is not None and (rule.rule == "rehearsal") != (config.rehearsal is not None):
        raise LedgerError(
            "A rehearsal's ledger is for its public records, and a site's for its own. Found one with the other; make "
            "a site for each."
        )
    data = sides(source, ledger.terms.sides)
    check_sides(ledger, data)
    return data


def mark_of(folder: SiteFolder, config: SiteConfig) -> Path:
    """Return the file that remembers how far a site's ledger has come."""
    return config.mark or folder.ledger.with_name(f"{folder.ledger.name}.mark")


def check_name(folder: SiteFolder, config: SiteConfig) -> None:
    """Check that a site has one name, for its agent and for its SuperNode.

    Raises:
        ConfigError: node.yaml has another one, or cannot be read.
    """
    node = load_node(folder.node.config)
    if node.site != config.site:
        raise ConfigError(
            f"A site has one name. site.yaml is of site '{config.site}', and node.yaml of '{node.site}'; give both one "
            "name."
        )


def open_ledger(folder: SiteFolder, config: SiteConfig, policy: PolicyConfig) -> DurableLedger:
    """Return the ledger of the policy's population, once all of it is verified.

    Raises:
        LedgerError: it is missing, another one's, or cannot be trusted.
    """
    return DurableLedger.open(
        folder.ledger,
        mark=config.mark,
        population=policy.population,
        unit=policy.unit,
        records_per_unit=policy.records_per_unit,
    )


def open_site(
    folder: SiteFolder, config: SiteConfig, policy: PolicyConfig, source: Source, *, noise: NoiseSource
) -> Site:
    """Return the site of a folder.

    Args:
        source: the site's records, as `read_records` returns them.
        noise: of this site alone.

    Raises:
        CadpError: ledger, policy and records do not fit together.
    """
    ledger = open_ledger(folder, config, policy)
    data = records_of(ledger, config, source)
    units = [len(Units.of(records, policy.unit, policy.records_per_unit)) for records in (data.train, data.test)]
    check_totals(policy, units=units[0], test_units=units[1])
    return Site(
        config.site,
        data,
        ledger=ledger,
        noise=noise,
        device=resolve_device(config.device),
        outbox=folder.outbox,
        simulation=False,
        policy=policy,
        answers=ReplyStore(folder.answers),
        measures=policy.review,
    )


def _check_declared(config: SiteConfig) -> None:
    """Check that what a site says of itself is declared: what was read from records would reveal something of them.

    Raises:
        ConfigError: the name of the data set, or those of its classes, would come from the file.
    """
    data = config.data
    assert data is not None, "asked for of own records"
    if config.dataset is None:
        raise ConfigError(
            "A site's records have a name that all sites share; it sends that to every server, and a file's name may "
            "reveal more. site.yaml has no dataset; add it, such as dataset: chest-xray."
        )
    reader = SOURCES.get(data.source)
    if reader is not None and reader.takes_classes and data.classes is None and data.label is None:
        raise ConfigError(
            "All sites share one schema, and a site names no class that its records alone show. site.yaml has no "
            "data.classes; name every class, from label 0, as the coordinator says."
        )


def _rehearsed(config: SiteConfig) -> Source:
    """Return what a simulation of a study deals to the site of this name: for trying a federation on public records."""
    assert config.rehearsal is not None, "asked for by the config"
    study = load_study(config.rehearsal)
    if config.site not in study.sites.site_names:
        raise ConfigError(
            f"A rehearsal gives a site the records of the study's site of that name: "
            f"{', '.join(study.sites.site_names[:20])}. Found '{config.site}'; name one of them."
        )
    sites = deal_to_sites(study, load_source(study.data))
    dealt = sites[study.sites.site_names.index(config.site)]
    return Source(dealt.train, dealt.test)


def _called(records: Dataset, name: str) -> Dataset:
    return replace(records, schema=records.schema.model_copy(update={"name": name}))
