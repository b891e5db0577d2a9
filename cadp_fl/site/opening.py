"""A real site from its folder: its records, its ledger and its policy, as one `Site`."""

from dataclasses import replace

from cadp_fl.config import PolicyConfig, SiteConfig, load_study
from cadp_fl.data.holdout import held_out
from cadp_fl.data.partition import SiteData, deal
from cadp_fl.data.schema import Dataset
from cadp_fl.data.sources import load_source
from cadp_fl.device import resolve_device
from cadp_fl.errors import ConfigError
from cadp_fl.privacy.durable import DurableLedger
from cadp_fl.privacy.noise import NoiseSource
from cadp_fl.site.answers import Answers
from cadp_fl.site.folder import SiteFolder
from cadp_fl.site.site import Site

__all__ = ["open_ledger", "open_site", "read_records"]


def read_records(config: SiteConfig) -> SiteData:
    """Return a site's records, training and test: its own, or those that a rehearsal deals to it.

    Raises:
        InputError: they cannot be read, or the rehearsal knows no site of this name.
    """
    if config.data is not None:
        data = held_out(load_source(config.data), config.test_fraction)
    else:
        assert config.rehearsal is not None, "the config has one of the two"
        data = _rehearsed(config)
    if config.dataset is None:
        return data
    return SiteData(_called(data.train, config.dataset), _called(data.test, config.dataset))


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
    folder: SiteFolder, config: SiteConfig, policy: PolicyConfig, data: SiteData, *, noise: NoiseSource
) -> Site:
    """Return the site of a folder.

    Args:
        noise: of this site alone.

    Raises:
        CadpError: ledger, policy and records do not fit together.
    """
    return Site(
        config.site,
        data,
        ledger=open_ledger(folder, config, policy),
        noise=noise,
        device=resolve_device(config.device),
        outbox=folder.outbox,
        simulation=False,
        policy=policy,
        answers=Answers(folder.answers),
    )


def _rehearsed(config: SiteConfig) -> SiteData:
    """Return what a simulation of a study deals to the site of this name: for trying a federation on public records."""
    assert config.rehearsal is not None, "asked for by the config"
    study = load_study(config.rehearsal)
    if config.site not in study.sites.site_names:
        raise ConfigError(
            f"A rehearsal gives a site the records of the study's site of that name: "
            f"{', '.join(study.sites.site_names[:20])}. Found '{config.site}'; name one of them."
        )
    sites = deal(
        load_source(study.data), study.sites.count, study.sites.partition, study.data.test_fraction, seed=study.seed
    )
    return sites[study.sites.site_names.index(config.site)]


def _called(records: Dataset, name: str) -> Dataset:
    return replace(records, schema=records.schema.model_copy(update={"name": name}))
