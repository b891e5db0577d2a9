"""A study config: its records, sites, flow, release, classifier, methods and budget.

This module knows shapes and ranges. Names (of a data source, a mechanism, a method) are resolved by the package that
owns their registry. Every field says its unit and range.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, field_validator, model_validator

from cadp_fl.config.fitting import fitted
from cadp_fl.config.names import NAME, Unit
from cadp_fl.config.policy import PolicyConfig
from cadp_fl.config.renamed import renamed
from cadp_fl.config.settings import (
    AttributeName,
    Count,
    Decay,
    Fraction,
    LocalSteps,
    Name,
    Passes,
    Positive,
    PrivacyUnit,
    Seed,
    Settings,
    Threads,
    Width,
)
from cadp_fl.errors import ConfigError

__all__ = [
    "AttributesConfig",
    "BudgetConfig",
    "CentralTrainingConfig",
    "ClassifierConfig",
    "DataConfig",
    "DenseConfig",
    "EvaluationConfig",
    "FlowConfig",
    "FlowDpSgdConfig",
    "FlowTrainingConfig",
    "FrontEndConfig",
    "MomentsConfig",
    "PartitionConfig",
    "PretrainedConfig",
    "ReleaseConfig",
    "RolesConfig",
    "ScaleConfig",
    "SitesConfig",
    "StudyConfig",
]


_Place = Annotated[int, Field(ge=0, le=1_000_000, strict=True)]
_Stored = Annotated[float, Field(ge=-1e9, le=1e9)]


class RolesConfig(Settings):
    """Which column of a metadata file, or of a table, says what of a record. A role's own name is its default."""

    file: Name = Field("file_name", description="path of the record's file, relative to the metadata file")
    label: Name = Field("label", description="name of its class")
    patient: Name = Field("patient", description="whose record it is, where the column is there")
    id: Name = Field("id", description="which record it is, the same in every export, where the column is there")
    split: Name = Field("split", description="train, validation or test, where the column is there")
    site: Name = Field("site", description="which hospital it is of, where the column is there")


class DataConfig(Settings):
    """Which records the study is about."""

    source: str = Field(description="name of a data source, for example digits")
    path: Path | None = Field(
        None, description="the source's file or folder; relative to the config file, ~ and ${NAME} are expanded"
    )
    download: bool = Field(True, description="whether a source that can be downloaded is, where it is not at hand")
    classes: tuple[Name, ...] | None = Field(
        None,
        min_length=2,
        max_length=10_000,
        description="one name a label, from label 0; by default read from the file, as only a simulation may",
    )
    label: AttributeName | None = Field(
        None,
        description="which attribute is the class to be learned, by name or by column from 0, where a record has "
        "several; the flow is given all, and all are public: they leave with the record, and no claim covers them",
    )
    attributes: tuple[AttributeName, ...] | None = Field(
        None, min_length=2, max_length=1000, description="one name an attribute; 0, 1, ... by default"
    )
    test_fraction: Fraction = Field(
        0.2, description="share of a site's records held out for evaluation, where the source has no test split"
    )
    metadata: Path | None = Field(
        None,
        description="CSV, JSON lines or Parquet that says of every file what `roles` names; metadata.csv, .jsonl or "
        ".parquet in the folder by default, and the folders' names are the classes where there is none",
    )
    roles: RolesConfig = RolesConfig()
    size: int | None = Field(None, ge=8, le=256, description="pixels of each side of an image; 28 by default")
    channels: Literal[1, 3] | None = Field(None, description="1 for grey, 3 for RGB; grey by default")
    fit: Literal["letterbox", "crop"] = Field(
        "letterbox", description="how an image that is not square becomes so: black bars, or its middle"
    )
    window: Literal["voi", "full"] | tuple[_Stored, _Stored] = Field(
        "voi",
        description="which stored values are black and white: voi, what the file names, or else its full range; full; "
        "or two values",
    )
    frame: Literal["first", "middle", "last"] | _Place = Field(
        "middle", description="which frame of a file, or slice of a volume, is the record's image; a number from 0"
    )
    axis: Literal["axial", "coronal", "sagittal"] = Field(
        "axial", description="across which a volume is cut into slices, seen as usual: RAS"
    )
    columns: Path | None = Field(
        None, description="schema file of a table: names, types, bounds, categories and roles of its columns"
    )
    on_bad_record: Literal["refuse", "skip"] = Field(
        "refuse", description="what to do about a record that cannot be read; skipped ones are counted and named"
    )
    cache: Path | Literal["off"] | None = Field(
        None,
        description="folder of decoded images, which are a second copy of private data; a real site's own by "
        "default, none in a simulation",
    )

    @field_validator("classes", "attributes")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...] | None, field: ValidationInfo) -> tuple[str, ...] | None:
        if names is not None and len(set(names)) != len(names):
            one = "class" if field.field_name == "classes" else "attribute"
            raise ValueError(f"every {one} has a name of its own. Found {list(names)}")
        return names

    @model_validator(mode="after")
    def _window_goes_upwards(self) -> "DataConfig":
        if isinstance(self.window, tuple) and not self.window[0] < self.window[1]:
            raise ValueError(
                f"a window goes from black to white, upwards. Found {list(self.window)}; correct data.window"
            )
        return self

    @model_validator(mode="after")
    def _one_is_the_label(self) -> "DataConfig":
        if self.attributes is not None and self.label is None:
            raise ValueError("one attribute is the class to be learned. Found attributes and no label; give data.label")
        return self


class PartitionConfig(Settings):
    """How a simulation deals records to its sites."""

    kind: str = Field(
        "iid",
        description="name of a partition: iid, dirichlet, label, quantity, or column, where the source says of which "
        "site each record is",
    )
    alpha: Positive = Field(
        1.0, description="dirichlet and quantity: concentration of the shares; smaller is more skewed"
    )
    classes_per_site: Count = Field(2, description="label: number of classes that every site holds")
    min_records: Count = Field(20, description="training records that every site gets at least")


class SitesConfig(Settings):
    """The sites of a study. Partition, CPUs, GPUs and policy are a simulation's; real sites have their own."""

    count: int = Field(ge=2, le=1000, description="number of sites")
    names: tuple[str, ...] | None = Field(
        None,
        description="one name a site; site-1, site-2, ... by default in a simulation. Real sites are those whose nodes "
        "are registered under these names",
    )
    partition: PartitionConfig = PartitionConfig()
    quorum: Count | None = Field(None, description="sites below which a run stops; all but one by default")
    timeout_seconds: Positive = Field(3600.0, description="seconds after which a site counts as late in a round")
    review_timeout_seconds: float = Field(
        3600.0,
        ge=0,
        le=1e9,
        description="seconds that a run over real sites waits for a steward's approval of a release; 0: not at all",
    )
    cpus_per_client: Threads = Field(1, description="CPU threads of one site, and of the server")
    gpus_per_client: float | None = Field(
        None, ge=0, le=64, description="share of a GPU of one site, 0 for none; by default the GPUs in equal shares"
    )
    policy: PolicyConfig | None = Field(
        None, description="what every simulated site allows a method; all that the study asks without it"
    )

    @model_validator(mode="after")
    def _names_fit(self) -> "SitesConfig":
        if self.names is not None:
            if len(self.names) != self.count or len(set(self.names)) != self.count:
                raise ValueError(f"names must be {self.count} different names. Found {list(self.names)}")
            for name in self.names:
                if not re.fullmatch(NAME, name):
                    raise ValueError(f"a site's name is 1 to 40 lower-case letters, digits and hyphens. Found '{name}'")
        if self.quorum is not None and self.quorum > self.count:
            raise ValueError(f"quorum must be at most the number of sites, {self.count}. Found {self.quorum}")
        return self

    @property
    def site_names(self) -> tuple[str, ...]:
        """One name a site, in the order of the partition."""
        return self.names or tuple(f"site-{index + 1}" for index in range(self.count))

    @property
    def needed(self) -> int:
        """Number of sites that a phase needs to go on."""
        return self.quorum or max(1, self.count - 1)


class FrontEndConfig(Settings):
    """The fixed, public front end of a warm-started flow: few numbers of an image, of a norm of at most 1."""

    size: int = Field(
        6,
        ge=1,
        le=64,
        description="k: the k x k lowest DCT coefficients of each channel; fewer if a side is shorter",
    )
    offset: float = Field(0.3, ge=0, le=1, description="grey level that is taken off every pixel")
    contrast: float = Field(
        0.2,
        gt=0,
        le=1,
        description="root mean square of the lowest frequencies' image, beyond which contrast is cut off",
    )
    descriptor: Literal["oriented-gradients", "none"] = Field(
        "oriented-gradients", description="what else of an image is used, so that classes differ"
    )
    image_weight: float = Field(
        0.4, gt=0, le=1, description="alpha: share of the lowest frequencies in the norm, beside a descriptor"
    )
    radius: float = Field(
        0.3, ge=1e-3, le=2, description="R: distance from the centre beyond which a record counts as if it were there"
    )
    detail: Positive = Field(0.02, description="standard deviation of every other coefficient, as pixels of 0 to 1")


class ScaleConfig(Settings):
    """One scale of a convolutional flow: a downsampling, then coupling blocks."""

    blocks: int = Field(4, ge=1, le=128, description="coupling blocks at this scale")
    channels: Width = Field(32, description="hidden channels of the subnets at this scale")
    split: Fraction | None = Field(
        None, description="share of the channels that goes on after this scale; the others are latents already"
    )


class DenseConfig(Settings):
    """The coupling blocks on the flattened latent."""

    blocks: int = Field(2, ge=0, le=128, description="coupling blocks on the flattened latent")
    width: Width = Field(128, description="hidden width of the subnets")


class FlowTrainingConfig(Settings):
    """Federated training of the flow by maximum likelihood."""

    rounds: int = Field(
        10, ge=0, le=10_000, description="rounds of federated averaging; 0 to use a pretrained flow as it is"
    )
    local_epochs: Passes = Field(4, description="passes over a site's records in one round")
    batch_size: Count = Field(64, description="records in one step")
    learning_rate: Positive = Field(2e-3, description="Adam's step size at its peak; falls to a twentieth by a cosine")
    weight_decay: Decay = Field(1e-5, description="Adam's L2 penalty")
    max_gradient_norm: Positive = Field(10.0, description="clipping norm of the averaged gradient (no privacy)")


_Weight = Annotated[float, Field(ge=0, le=16)]


class MomentsConfig(Settings):
    """Noised moments of the sites' records, which a flow's affine layer is made of: counts, sums, second moments.

    Weights say what the noise falls on: a part of twice the weight has half the noise. Each is 0, for a part that is
    left out, or from 1/16 to 16.
    """

    ask: Literal["auto", "all", "few"] = Field(
        "auto",
        description="all numbers of the front end, or few: the lowest frequencies, without a descriptor and without "
        "second moments of each class. auto: few where the noise on a class's mean would be longer than any record is "
        "from the centre, which a simulation works out from public numbers; else all",
    )
    count_weight: _Weight = Field(0.25, description="a: of the classes' counts")
    sum_weight: _Weight = Field(0.7, description="b: of the classes' sums")
    shared_weight: _Weight = Field(0.3, description="s: of the second moment that all classes share")
    class_weight: _Weight = Field(1.0, description="w: of the second moments of each class")
    noise: Literal["each-site", "aggregator"] = Field(
        "each-site",
        description="each-site: every site adds all of its noise, which holds against the server; aggregator: sites "
        "add shares of one noise, and the server, which adds up what they send, is trusted not to look before",
    )
    ridge: float = Field(
        1.5,
        ge=0,
        le=100,
        description="rho: added to every class's covariance to tell classes apart, in units of the mean variance",
    )

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name, in the order a, b, s, w."""
        names = ("count_weight", "sum_weight", "shared_weight", "class_weight")
        return {name: getattr(self, name) for name in names}

    @model_validator(mode="after")
    def _weighs_something(self) -> "MomentsConfig":
        weights = tuple(self.weights.values())
        if not any(weights) or any(0 < weight < 1 / 16 for weight in weights):
            raise ValueError(f"weights are 0 or from 1/16 to 16, and one at least is not 0. Found {weights}")
        return self


_FEW_NUMBERS = {"size": 5, "descriptor": "none"}
_FEW_WEIGHTS = {"sum_weight": 1.0, "shared_weight": 0.1, "class_weight": 0.0}
"""What is asked for where noise would outweigh more."""


class PretrainedConfig(Settings):
    """A flow to start from."""

    path: Path = Field(description="a flow that cadp-fl pretrain or a run stored; relative to the config file")
    trained_on: Literal["public", "private"] = Field(
        description="public: a declaration that no private record had a part in it, on which the guarantee then rests"
    )
    freeze: tuple[str, ...] = Field((), description="parts that stay as they are: all, dense, scales.0, scales.1, ...")


class FlowDpSgdConfig(Settings):
    """Federated training of the flow by DP-SGD; how much noise its budget makes necessary is worked out."""

    rounds: Passes = Field(10, description="rounds of federated averaging")
    local_steps: LocalSteps = Field(6, description="noised steps of a site in one round")
    sampling_rate: float = Field(0.25, gt=0, le=1, description="q: probability of each unit to be in a step")
    clip_norm: float = Field(
        0.03, ge=1e-6, le=1e6, description="C: a unit's gradient norm after clipping, of its bits per dimension"
    )
    copies: int = Field(
        1, ge=1, le=64, description="noisy copies of a record whose gradients are averaged before clipping"
    )
    learning_rate: Positive = Field(1e-2, description="Adam's step size at its peak; falls to a twentieth by a cosine")
    ema: float = Field(
        0.5, ge=0, lt=1, description="weight of earlier rounds in the moving average that training ends with; 0: none"
    )


class FlowConfig(Settings):
    """Architecture and training of the conditional flow. Without scales it is dense.

    With a warm start, methods whose guarantee is end-to-end take another flow: a low-pass front end, an affine layer of
    noised moments, and above it the dense blocks, which start as the identity.
    """

    privacy: Literal["none", "dp-sgd"] = Field(
        "none", description="how methods with an end-to-end guarantee train the flow's blocks: dp-sgd, or not at all"
    )
    warm_start: Literal["none", "moments"] = Field(
        "none", description="what methods with an end-to-end guarantee start from: moments that sites release noised"
    )
    front_end: FrontEndConfig = FrontEndConfig()
    moments: MomentsConfig = MomentsConfig()
    dp_sgd: FlowDpSgdConfig = FlowDpSgdConfig()
    scales: tuple[ScaleConfig, ...] = Field(
        (), max_length=8, description="scales, the finest first; none for a dense flow"
    )
    coupling: str = Field("glow", description="coupling block: glow, gin or rnvp")
    downsampling: str = Field("haar", description="invertible downsampling of every scale: haar or checkerboard")
    permutation: str = Field(
        "hard", description="of channels before each block: hard, or soft (a rotation; hard above 512 dimensions)"
    )
    dense: DenseConfig = DenseConfig()
    clamp: Positive = Field(1.5, description="largest log-scale of one coupling (soft)")
    input_scale: Positive = Field(2.0, description="public factor from a pixel in [-0.5, 0.5] to the flow's input")
    training: FlowTrainingConfig = FlowTrainingConfig()
    pretrained: PretrainedConfig | None = Field(None, description="a flow to start from; new weights without it")

    @model_validator(mode="before")
    @classmethod
    def _asks_for_few(cls, given: Any) -> Any:
        """Set what `moments.ask: few` means, where the study does not say it itself."""
        moments = given.get("moments") if isinstance(given, Mapping) else None
        if not isinstance(moments, Mapping) or moments.get("ask") != "few":
            return given
        front_end = given.get("front_end", {})
        if not isinstance(front_end, Mapping):
            return given
        few = {name: weight for name, weight in _FEW_WEIGHTS.items() if weight or moments.get("shared_weight") != 0}
        return {**given, "moments": {**few, **moments}, "front_end": {**_FEW_NUMBERS, **front_end}}

    @property
    def is_fixed(self) -> bool:
        """Whether the flow is used as it is: nothing of it is trained on the sites' records."""
        return self.training.rounds == 0 or "all" in self.freeze

    @property
    def freeze(self) -> tuple[str, ...]:
        """Parts that stay as the flow that it starts from has them; none for a new flow."""
        return self.pretrained.freeze if self.pretrained else ()

    @property
    def is_warm(self) -> bool:
        """Whether the flow is the one with a warm start: a low-pass front end and an affine layer of moments."""
        return self.warm_start == "moments"

    def cold(self) -> "FlowConfig":
        """Return the flow without a warm start: what methods that train it without privacy take."""
        return self.model_copy(update={"warm_start": "none", "front_end": FrontEndConfig()})

    def architecture(self) -> "FlowConfig":
        """Return what the flow is, without how it is trained and what it starts from."""
        update: dict[str, Any] = {"training": FlowTrainingConfig(), "pretrained": None, "privacy": "none"}
        update |= {"moments": MomentsConfig(), "dp_sgd": FlowDpSgdConfig()}
        return self.model_copy(update=update | ({"scales": ()} if self.is_warm else {}))

    @model_validator(mode="after")
    def _starts_somewhere(self) -> "FlowConfig":
        if self.is_warm and self.pretrained is not None:
            raise ValueError(
                "a flow starts from one thing. Found warm_start: moments and flow.pretrained; leave one of them out"
            )
        if self.training.rounds == 0 and self.pretrained is None and not self.is_warm:
            raise ValueError(
                "a flow is trained or pretrained. Found training.rounds 0 and no flow.pretrained; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _has_blocks(self) -> "FlowConfig":
        if not self.is_warm and not self.scales and not self.dense.blocks:
            raise ValueError("a flow needs coupling blocks: give scales, or dense.blocks above zero")
        return self


class AttributesConfig(Settings):
    """What a release does with attributes: which leave as they are, and which are drawn at random."""

    keep: tuple[AttributeName, ...] | None = Field(
        None, description="attributes that leave with the record as they are; by default all that are not randomized"
    )
    randomize: tuple[AttributeName, ...] | None = Field(
        None, description="attributes that are drawn for each record, whatever it has; by default all that are not kept"
    )
    probability: dict[AttributeName, Fraction] = Field(
        {}, description="of a drawn attribute: how likely it is that a record has it, a public number; 0.5 by default"
    )

    def randomized(self, names: Collection[str], label: str) -> dict[str, float]:
        """Return the attributes that are drawn, in order, and how likely it is to have each.

        Args:
            names: of all attributes.
            label: the one that is the class, which stays.

        Raises:
            ConfigError: an unknown one is named, one is named twice or not at all, or the label is to be drawn.
        """
        keep, given = self.keep or (), list(self.randomize or ())
        if unknown := [name for name in (*keep, *given, *self.probability) if name not in names]:
            raise ConfigError(
                f"release.attributes names attributes of the records. '{unknown[0]}' is none of them; correct it."
            )
        if both := [name for name in keep if name in given]:
            raise ConfigError(f"An attribute is kept or randomized. Found '{both[0]}' in both; remove it from one.")
        if self.randomize is None:
            given = [name for name in names if name not in keep]
        elif self.keep is not None and (left := [name for name in names if name not in (*keep, *given)]):
            raise ConfigError(
                f"release.attributes says of every attribute whether it is kept or randomized. Found none for "
                f"'{left[0]}'; add it, or leave out keep or randomize for all others."
            )
        if label in given:
            raise ConfigError(
                f"A record leaves under its class, which is the attribute '{label}'. Found it among those to be "
                "randomized; keep it."
            )
        return {name: self.probability.get(name, 0.5) for name in names if name in given}


class ReleaseConfig(Settings):
    """The mechanism that privatizes a record in the latent space."""

    mechanism: str = Field(
        "grid-gaussian",
        description="grid-gaussian (L2 clip, noise on a grid: it holds exactly), gaussian (the same at the same cost, "
        "up to what floating-point rounding shows), laplace (L1 clip, likewise), privunit (no clip, no added noise: a "
        "latent is on its record's side more often than not, and hides among all others of the site in a shuffle), or "
        "none: no protection",
    )
    clip_norm: float | None = Field(
        None,
        ge=1e-6,
        le=1e6,
        description="C: a latent's norm after clipping, in the mechanism's norm; two are within 2 C. All but privunit "
        "and none need it",
    )
    latent_dims: Count | None = Field(
        None,
        description="number of latent dimensions that are privatized; the others come from the prior. By default 8 "
        "with privunit, and else those that move the image",
    )
    directions: Literal["leading", "first"] | None = Field(
        None,
        description="which of the latents: first, as the flow orders them; or leading, turned so that the first move "
        "the image most, as the flow alone says. By default leading with privunit, and else first",
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=1,
        description="standard deviation of the latents that come from the prior: less is smoother. By default 0.5 with "
        "privunit, and else 1",
    )
    amplification: Literal["shuffle", "none"] = Field(
        "shuffle",
        description="with privunit. shuffle: a unit hides among those of its site, in whose secret order the release "
        "leaves; the claim rests on the site for that. none: each message is claimed by itself",
    )
    shuffled_units: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="n: training units of a site that are shuffled together, at least; where labels are public, of "
        "each class. 0: no amplification is claimed. By default the smallest site's, where that is known before the "
        "run",
    )
    label_classes: int | None = Field(
        None, ge=2, le=10**6, description="K, of labels that are covered and shuffled; by default that of the records"
    )
    shrinkage: str = Field(
        "typical-set", description="how a noised latent is drawn towards the prior: typical-set or posterior-mean"
    )
    labels: Literal["public", "covered"] = Field(
        description="public: a record's label may be known, and so may its attributes if it has some, and the relation "
        "says so; covered: a record leaves with a label by randomized response, and class counts are noised"
    )
    attributes: AttributesConfig | None = Field(
        None, description="which attributes leave as they are, and which are drawn at random; all are kept without it"
    )
    shard_records: int = Field(4096, ge=1, le=100_000, description="records in one file of a release")

    @field_validator("labels", mode="before")
    @classmethod
    def _earlier_word(cls, labels: object) -> object:
        return renamed("release.labels", labels, {"randomized": "covered"})


class CentralTrainingConfig(Settings):
    """Training of the central classifier on privatized records."""

    epochs: Passes = Field(60, description="passes over the pooled, class-balanced release")
    batch_size: Count = Field(64, description="records in one step")
    learning_rate: Positive = Field(2e-3, description="Adam's step size at its peak; falls to a twentieth by a cosine")
    weight_decay: Decay = Field(1e-4, description="decoupled weight decay")


class ClassifierConfig(Settings):
    """The classifier that every method trains."""

    model: str = Field("cnn", description="name of a classifier, for example cnn")
    width: int = Field(16, ge=1, le=512, description="channels of the first layer")
    front_end: FrontEndConfig = Field(FrontEndConfig(), description="of the classifier quadratic")
    central: CentralTrainingConfig = CentralTrainingConfig()


class BudgetConfig(PrivacyUnit):
    """What a method may spend at a site, over all that it does. There is no default."""

    epsilon: float = Field(ge=1e-3, le=100, description="epsilon, under replace-one")
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="delta, at most 1 / (10 n) for n units at a site; a site's policy allows 1 / (100 n) and n^-1.5 by "
        "default"
    )
    unit: Unit = Field("record", description="what one neighbouring data set may change")
    split: dict[str, Fraction] = Field(
        {},
        description="shares of epsilon of the stages beside a method's release or classifier, which gets the rest: "
        "labels (0.2 by default; 0.02 above a warm start) and counts (0.05), where labels are covered and no moments "
        "hold counts; of what those leave, moments (0.95) and "
        "flow (0.25), where a method has them beside another stage",
    )
    retry_reserve: float = Field(
        0.0, ge=0, le=0.9, description="share set aside for events whose result a crash of the site lost"
    )


class EvaluationConfig(Settings):
    """Evaluation on the sites' held-out records, which no model is trained on; they have a budget of their own."""

    fidelity: bool = Field(
        True,
        description="whether a simulation measures what releases keep of their records: on originals, so for its own "
        "eyes. A real site measures it for its steward (policy: review), whatever a study says",
    )
    every: Count = Field(2, description="rounds between two evaluations of a federated baseline, if they are exact")
    metrics: Literal["exact", "noised"] = Field(
        "exact",
        description="exact: as only a simulation, or a site whose policy says so, gives out; noised: each method's "
        "classifier is evaluated once, when it is final, since each evaluation spends",
    )
    epsilon: float | None = Field(
        None, ge=1e-3, le=100, description="of the one noised evaluation of each method, for test units"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="of the one noised evaluation of each method; bounded as budget.delta, for n test units"
    )

    @model_validator(mode="after")
    def _noise_has_a_budget(self) -> "EvaluationConfig":
        if (self.metrics == "noised") != (self.epsilon is not None and self.delta is not None):
            raise ValueError(
                "noised metrics, and no others, have an epsilon and a delta. Found metrics "
                f"{self.metrics}, epsilon {self.epsilon} and delta {self.delta}"
            )
        return self


def _as_it_stands(settings: Any) -> Any:
    """Return a method's settings with the places of what was written, for the method that reads them."""
    if not isinstance(settings, dict):
        raise ValueError(f"a method's settings are a mapping. Found {settings!r:.80}; write it as {{key: value}}")
    return settings


class StudyConfig(Settings):
    """One study: its records, its sites, its methods and their budget."""

    name: str = Field(min_length=1, max_length=80, description="name of the study")
    seed: Seed = Field(0, description="governs splits and initial weights, and noise where it is seeded")
    noise: Literal["entropy", "seeded"] = Field(
        "entropy", description="where privacy noise comes from; seeded is reproducible, so it protects nothing"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:<index>")
    data: DataConfig
    sites: SitesConfig
    flow: FlowConfig = FlowConfig()
    release: ReleaseConfig
    classifier: ClassifierConfig = ClassifierConfig()
    methods: dict[str, Annotated[dict[str, Any], PlainValidator(_as_it_stands)]] = Field(
        min_length=1, description="the methods to run, each with its settings; a list takes every default"
    )
    budget: BudgetConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    plugins: tuple[str, ...] = Field(
        (),
        description="Python that adds sources, partitions, classifiers, mechanisms or methods: installed modules by "
        "their dotted names, or files that end in .py, relative to the config file. It runs as the code that it is",
    )

    @property
    def labels(self) -> Literal["public", "covered"]:
        """Whether a record's label is public by declaration, or covered by every claim."""
        return self.release.labels

    @field_validator("plugins")
    @classmethod
    def _are_modules(cls, plugins: tuple[str, ...]) -> tuple[str, ...]:
        for plugin in plugins:
            if not plugin.endswith(".py") and not all(part.isidentifier() for part in plugin.split(".")):
                raise ValueError(f"a plugin is a module's dotted name, or a path that ends in .py. Found '{plugin}'")
        return plugins

    @field_validator("methods", mode="before")
    @classmethod
    def _list_of_names(cls, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            names = fitted(tuple[str, ...], value)
            for name in names:
                if not isinstance(name, str):
                    raise ValueError(
                        f"a list of methods holds their names. Found {name!r:.80}; give settings as a mapping"
                    )
                if names.count(name) > 1:
                    raise ValueError(f"a method is listed once. Found '{name}' again; take it out")
            return {name: {} for name in names}
        if isinstance(value, Mapping):
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value
