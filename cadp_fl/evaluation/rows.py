"""What models learn from rows that were released or drawn: trained on those alone, tested on real ones.

References:
    Xu, Skoularidou, Cuesta-Infante, Veeramachaneni: Modeling tabular data using conditional GAN, arXiv 1907.00503
    (train on synthetic, test on real).
"""

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score

from cadp_fl.data.codec import codec_of
from cadp_fl.data.schema import Dataset
from cadp_fl.flow.cinn import ConditionalFlow
from cadp_fl.flow.conditions import condition_of

__all__ = ["drawn_rows", "marginal_distance", "models_on"]

_BATCH = 4096


def models_on(rows: Dataset, real: Dataset) -> dict[str, dict[str, float | None]]:
    """Return AUROC and accuracy on real rows of a logistic regression and of gradient boosting on other rows.

    None where either holds one class alone. With more than two classes, AUROC is the mean of one against the rest.
    """
    x, tested = (codec_of(each.schema).inputs(each.records).numpy() for each in (rows, real))
    models = {
        "logistic": LogisticRegression(max_iter=2000),
        "boosting": HistGradientBoostingClassifier(max_iter=100, random_state=0),
    }
    classes = np.arange(len(rows.schema.classes))
    if not all(np.isin(classes, each.labels).all() for each in (rows, real)):
        return {name: {"auroc": None, "accuracy": None} for name in models}
    figures: dict[str, dict[str, float | None]] = {}
    for name, model in models.items():
        shares = model.fit(x, rows.labels).predict_proba(tested)
        scores = shares[:, 1] if len(classes) == 2 else shares
        figures[name] = {
            "auroc": float(roc_auc_score(real.labels, scores, multi_class="ovr")),
            "accuracy": float(accuracy_score(real.labels, shares.argmax(axis=1))),
        }
    return figures


def marginal_distance(rows: Dataset, real: Dataset) -> float:
    """Return the total variation distance of each column's values between two sets of rows, mean over columns.

    Numbers are counted in twenty steps of equal size.
    """
    distances = []
    for column, ours, theirs in zip(rows.schema.columns, rows.records.T, real.records.T, strict=True):
        step = max(1, column.steps // 20) if column.has_bounds else 1
        counts = [np.bincount(codes // step, minlength=column.codes // step + 1) for codes in (ours, theirs)]
        shares = [count / max(1, count.sum()) for count in counts]
        distances.append(0.5 * float(np.abs(shares[0] - shares[1]).sum()))
    return float(np.mean(distances))


@torch.no_grad()
def drawn_rows(flow: ConditionalFlow, like: Dataset, count: int, *, seed: int) -> Dataset:
    """Return rows that a flow draws, of each class as many as its shares say, or equally many where it knows none."""
    schema, generator = like.schema, torch.Generator().manual_seed(seed)
    shares = None if flow.affine is None else flow.affine.shares
    weights = torch.ones(flow.conditions) if shares is None else shares.clamp_min(0)
    labels = torch.multinomial(weights, count, replacement=True, generator=generator)
    codec = codec_of(schema)
    parts = [
        codec.from_unit(flow.sample(condition_of(part, flow.conditions), generator=generator)).numpy()
        for part in labels.split(_BATCH)
    ]
    return Dataset(schema, np.concatenate(parts), labels.numpy())
