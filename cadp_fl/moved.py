"""Modules that have another name now: an import of the earlier one gives the module of now, with a warning.

They go with the next minor version. This is loaded with the package, so it loads next to nothing itself.
"""

import sys
import warnings
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["MOVED", "RENAMED", "install"]

MOVED = {
    "federated.certificates": "deployment.certificates",
    "federated.coordinator": "deployment.coordinator",
    "federated.methods.central": "federated.methods.parts.central",
    "federated.methods.given_flow": "federated.methods.parts.plain_flow",
    "federated.methods.private_flow": "federated.methods.parts.dp_flow",
    "phases": "standalone",
    **{
        f"phases.{name}": f"standalone.{name}"
        for name in ("audit", "bundles", "central", "export", "images", "predict", "pretrain", "privatize")
    },
    "phases.terms": "standalone.release_inputs",
    "privacy.book": "privacy.rules",
    "site.account": "site.ledger_account",
    "site.answers": "site.reply_store",
    "site.holdings": "site.context",
    "site.opening": "site.open_site",
    "site.releasing": "site.releases",
    "site.setup": "deployment.site_setup",
    "site.spending": "site.privacy_filter",
    "study.account": "study.planned_costs",
    "study.deployment": "deployment.run",
    "study.launch": "study.simulate",
    "study.probe": "deployment.probe",
    "study.registration": "deployment.registration",
    "study.roll_call": "deployment.roll_call",
    "study.simulation": "study.simulated_sites",
    "study.started": "deployment.started_run",
    "study.superlink": "deployment.superlink",
    "study.supernode": "deployment.supernode",
}
"""Names below `cadp_fl`, of now by earlier."""

RENAMED = {
    "federated.methods.parts.dp_flow": {"PrivateFlow": "DpFlow"},
    "federated.methods.parts.plain_flow": {"GivenFlow": "PlainFlow"},
    "privacy.rules": {"Book": "LedgerRules"},
    "site.context": {"Holdings": "SiteContext"},
    "site.privacy_filter": {"Spending": "PrivacyFilter"},
    "site.reply_store": {"Answers": "ReplyStore"},
    "standalone.release_inputs": {"Terms": "ReleaseInputs", "terms_of": "release_inputs_of"},
}
"""Names in them, of now by earlier, by the module of now."""


class _Moved:
    """A finder and loader of modules by their earlier names."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Return how a module of an earlier name is loaded; None for any other."""
        earlier = fullname.removeprefix("cadp_fl.")
        if fullname == earlier or earlier not in MOVED:
            return None
        return ModuleSpec(fullname, self)  # type: ignore[arg-type]  # a loader by its methods, without its class

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that has all that the one of now has."""
        earlier = spec.name.removeprefix("cadp_fl.")
        now = MOVED[earlier]
        warnings.warn(f"cadp_fl.{earlier} is cadp_fl.{now} now; import that.", DeprecationWarning, stacklevel=2)
        module = ModuleType(spec.name, f"Now cadp_fl.{now}.")
        real = import_module(f"cadp_fl.{now}")
        module.__dict__.update({name: value for name, value in vars(real).items() if not name.startswith("__")})
        for was, name in RENAMED.get(now, {}).items():
            setattr(module, was, getattr(real, name))
        module.__all__ = [*getattr(real, "__all__", []), *RENAMED.get(now, {})]  # type: ignore[attr-defined]
        if hasattr(real, "__path__"):
            module.__path__ = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: it has all that it needs."""


def install() -> None:
    """Let earlier names be imported."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
