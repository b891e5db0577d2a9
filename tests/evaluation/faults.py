"""Ways to break a release that an audit has to see, whatever the mechanism."""

import numpy as np

from cadp_fl.data.units import Units
from cadp_fl.release import privatize as release_path

__all__ = ["blanks_encoded_like_records", "bright_units_first", "true_labels"]


def true_labels(patch):
    patch.setattr(release_path, "randomize_labels", lambda labels, *_: labels)


def blanks_encoded_like_records(patch):
    honest = Units.take

    def take(self, dataset, places):
        taken, blank = honest(self, dataset, places)
        return taken, np.zeros_like(blank)

    patch.setattr(Units, "take", take)


def bright_units_first(patch):
    honest = Units.take

    def take(self, dataset, places):
        brightness = dataset.images[self.slots[places], 2, 0, -1].astype(int)
        return honest(self, dataset, places[np.argsort(-brightness, kind="stable")])

    patch.setattr(Units, "take", take)
