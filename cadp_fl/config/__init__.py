"""Configs: of a study, of a site's policy, and of a real federation."""

from cadp_fl.config.deployment import LOOPBACK, CoordinatorConfig, Invitation, NodeConfig, SiteConfig, SiteName
from cadp_fl.config.files import (
    dump,
    dump_study,
    load_coordinator,
    load_invitation,
    load_node,
    load_policy,
    load_site,
    load_study,
)
from cadp_fl.config.policy import EvaluationPolicy, PolicyConfig
from cadp_fl.config.scalars import plain_value
from cadp_fl.config.settings import PrivacyUnit, Settings, parse
from cadp_fl.config.split import SplitRule
from cadp_fl.config.study import (
    BudgetConfig,
    CentralTrainingConfig,
    ClassifierConfig,
    DataConfig,
    DenseConfig,
    EvaluationConfig,
    FlowConfig,
    FlowDpSgdConfig,
    FlowTrainingConfig,
    FrontEndConfig,
    MomentsConfig,
    PartitionConfig,
    PretrainedConfig,
    ReleaseConfig,
    ScaleConfig,
    SitesConfig,
    StudyConfig,
)
from cadp_fl.config.writer import dump_tree

__all__ = [
    "LOOPBACK",
    "BudgetConfig",
    "CentralTrainingConfig",
    "ClassifierConfig",
    "CoordinatorConfig",
    "DataConfig",
    "DenseConfig",
    "EvaluationConfig",
    "EvaluationPolicy",
    "FlowConfig",
    "FlowDpSgdConfig",
    "FlowTrainingConfig",
    "FrontEndConfig",
    "Invitation",
    "MomentsConfig",
    "NodeConfig",
    "PartitionConfig",
    "PolicyConfig",
    "PretrainedConfig",
    "PrivacyUnit",
    "ReleaseConfig",
    "ScaleConfig",
    "Settings",
    "SiteConfig",
    "SiteName",
    "SitesConfig",
    "SplitRule",
    "StudyConfig",
    "dump",
    "dump_study",
    "dump_tree",
    "load_coordinator",
    "load_invitation",
    "load_node",
    "load_policy",
    "load_site",
    "load_study",
    "parse",
    "plain_value",
]
