"""Data sets that come with scikit-learn: real records, and nothing to download.

Bounds of the tables' columns are public: of the breast cancer data, round numbers around the summary that its authors
published with it; of the diabetes data, what a clinic can measure in an adult.

References:
    Street, Wolberg, Mangasarian: Nuclear feature extraction for breast tumor diagnosis, 1993.
    Efron, Hastie, Johnstone, Tibshirani: Least angle regression, Annals of Statistics 2004 (diabetes).
"""

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.columns import Column
from cadp_fl.data.schema import Dataset, Schema, Source

__all__ = ["read_breast_cancer", "read_diabetes", "read_digits"]

_NUCLEI = {
    "radius": ((5, 30), (0.1, 3), (5, 40)),
    "texture": ((5, 45), (0.3, 5), (10, 50)),
    "perimeter": ((30, 200), (0.5, 25), (50, 260)),
    "area": ((100, 2600), (5, 550), (150, 4500)),
    "smoothness": ((0.04, 0.2), (0.001, 0.035), (0.06, 0.25)),
    "compactness": ((0.01, 0.4), (0.001, 0.15), (0.02, 1.1)),
    "concavity": ((0, 0.5), (0, 0.4), (0, 1.3)),
    "concave points": ((0, 0.25), (0, 0.06), (0, 0.3)),
    "symmetry": ((0.1, 0.35), (0.005, 0.08), (0.15, 0.7)),
    "fractal dimension": ((0.04, 0.1), (0.0005, 0.03), (0.05, 0.21)),
}
"""Bounds of each measure of a cell nucleus: of its mean over nuclei, of that mean's error, and of the worst three."""

_DIABETES = (
    Column(name="age", type="integer", lower=18, upper=90),
    Column(name="sex", type="category", categories=("1", "2")),
    Column(name="bmi", type="number", lower=15, upper=50, decimals=1),
    Column(name="bp", type="number", lower=50, upper=140, decimals=2),
    Column(name="s1", type="integer", lower=80, upper=320),
    Column(name="s2", type="number", lower=30, upper=250, decimals=1),
    Column(name="s3", type="number", lower=15, upper=110, decimals=1),
    Column(name="s4", type="number", lower=1, upper=10, decimals=2),
    Column(name="s5", type="number", lower=3, upper=6.5, decimals=4),
    Column(name="s6", type="integer", lower=50, upper=140),
)
"""Age, sex, body mass index, blood pressure and six measures of blood serum, as the data set names them."""

_PROGRESSION = 140
"""Disease progression after a year, above which a patient is of the class 'progressed': about half of them."""


def read_digits(_config: DataConfig) -> Source:
    """Return scikit-learn's bundled handwritten digits: 1,797 grey images of 8 x 8 pixels with 17 levels."""
    from sklearn.datasets import load_digits  # imported here: half a second that other commands need not wait

    bunch = load_digits()
    levels = 17
    images = np.round(bunch.images * (255 / (levels - 1))).astype(np.uint8)[:, None]
    schema = Schema(name="digits", shape=(1, 8, 8), classes=tuple(str(digit) for digit in range(10)), levels=levels)
    return Source(Dataset(schema, images, bunch.target.astype(np.int64)))


def read_breast_cancer(_config: DataConfig) -> Source:
    """Return 569 rows of 30 measures of cell nuclei in a breast mass, benign or malignant."""
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    columns = tuple(_measure(str(name)) for name in bunch.feature_names)
    return _table("breast-cancer", columns, bunch.data.T, 1 - bunch.target, ("benign", "malignant"))


def read_diabetes(_config: DataConfig) -> Source:
    """Return 442 rows of patients with diabetes, whose disease progressed within a year or was stable."""
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    values = [each if column.has_bounds else each.astype(int).astype(str).astype(object)
              for column, each in zip(_DIABETES, bunch.data.T, strict=True)]  # fmt: skip
    return _table("diabetes", _DIABETES, values, bunch.target > _PROGRESSION, ("stable", "progressed"))


def _measure(name: str) -> Column:
    """Return the column of a measure, by its name in the data set: 'mean radius', 'radius error', 'worst radius'."""
    kind = 0 if name.startswith("mean ") else 2 if name.startswith("worst ") else 1
    lower, upper = _NUCLEI[name.removeprefix("mean ").removeprefix("worst ").removesuffix(" error")][kind]
    return Column(name=name, type="number", lower=lower, upper=upper)


def _table(
    name: str,
    columns: tuple[Column, ...],
    values: "list[np.ndarray] | np.ndarray",
    labels: np.ndarray,
    classes: tuple[str, str],
) -> Source:
    codes = [column.codes_of(each)[0] for column, each in zip(columns, values, strict=True)]
    schema = Schema(name=name, shape=(len(columns),), classes=classes, columns=columns)
    return Source(Dataset(schema, np.stack(codes, axis=1), labels.astype(np.int64)))
