"""Configs: of a study, and of a site's policy."""

from cadp_fl.config.files import dump_study, load_policy, load_study
from cadp_fl.config.policy import EvaluationPolicy, PolicyConfig
from cadp_fl.config.settings import Settings, parse
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

__all__ = [
    "BudgetConfig",
    "CentralTrainingConfig",
    "ClassifierConfig",
    "DataConfig",
    "DenseConfig",
    "EvaluationConfig",
    "EvaluationPolicy",
    "FlowConfig",
    "FlowDpSgdConfig",
    "FlowTrainingConfig",
    "FrontEndConfig",
    "MomentsConfig",
    "PartitionConfig",
    "PolicyConfig",
    "PretrainedConfig",
    "ReleaseConfig",
    "ScaleConfig",
    "Settings",
    "SitesConfig",
    "StudyConfig",
    "dump_study",
    "load_policy",
    "load_study",
    "parse",
]
