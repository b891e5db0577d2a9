"""scikit-learn's bundled tables, read by a public schema file as any other table is.

References:
    Street, Wolberg, Mangasarian: Nuclear feature extraction for breast tumor diagnosis, SPIE 1905, 1993.
    Efron, Hastie, Johnstone, Tibshirani: Least angle regression, Annals of Statistics 32, 2004.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from cadp_fl.config import DataConfig
from cadp_fl.data.schema import Source
from cadp_fl.data.table import check_columns, read_pieces, schema_of
from cadp_fl.data.table_files import Piece

__all__ = ["read_breast_cancer", "read_diabetes"]


def read_breast_cancer(config: DataConfig) -> Source:
    """Return 569 breast masses: 30 features of cell nuclei, and `diagnosis`, malignant or benign.

    Raises:
        ConfigError: there is no schema file, or it breaks a rule.
        DataError: rows break the schema.
    """
    from sklearn.datasets import load_breast_cancer  # imported here: half a second that other commands need not wait

    bunch = load_breast_cancer()
    diagnoses = [str(bunch.target_names[each]) for each in bunch.target]
    return _read(config, bunch.feature_names.tolist(), bunch.data, "diagnosis", diagnoses)


def read_diabetes(config: DataConfig) -> Source:
    """Return 442 diabetes patients: 10 measurements, and `target`, the disease's progression a year later.

    Raises:
        ConfigError: there is no schema file, or it breaks a rule.
        DataError: rows break the schema.
    """
    from sklearn.datasets import load_diabetes  # imported here, as above

    bunch = load_diabetes(scaled=False)
    return _read(config, bunch.feature_names, bunch.data, "target", [str(each) for each in bunch.target])


def _read(
    config: DataConfig, names: Sequence[str], values: np.ndarray, label: str, labels: Sequence[str | None]
) -> Source:
    columns = {name: [str(each) for each in column] for name, column in zip(names, values.T.tolist(), strict=True)}
    schema = schema_of(config)
    check_columns(config.source, [*columns, label], schema)

    def pieces() -> Iterator[tuple[str, str | None, Piece]]:
        yield config.source, None, Piece(1, {**columns, label: labels})

    return read_pieces(pieces(), schema, skip=config.on_bad_record == "skip")
