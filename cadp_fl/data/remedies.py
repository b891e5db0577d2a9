"""What to do about an array that is not in the format: numpy's expression where there is one that is right.

An expression holds the array's own name, so that it can be pasted. What it would guess, it leaves to the reader: LOW
and HIGH, the values that become black and white, are the same for all images of all sites.
"""

import numpy as np

__all__ = ["labels_as_integers", "labels_from_zero", "pixels_as_bytes", "shape_of_images"]


def pixels_as_bytes(name: str, values: np.ndarray) -> str:
    """Return what makes pixels of another type uint8, 0 to 255, and what was found of them.

    Args:
        name: of the array.
        values: of any type but uint8.
    """
    if values.dtype.kind not in "biuf":
        return f"is {values.dtype}; store each pixel as a number from 0 to 255, as np.uint8"
    if values.dtype.kind == "b":
        return f"is bool; write np.uint8(255) * {name}"
    finite, numbers, odd = np.isfinite(values), name, ""
    first = values.flat[int(finite.argmax())] if finite.any() else 0
    low, high = (float(extreme(values, where=finite, initial=first)) for extreme in (np.min, np.max))
    if not finite.all():
        odd = " and NaN or infinity, which become black or white here,"
        numbers = "np.nan_to_num({name}, nan={low}, neginf={low}, posinf={high})"
    found = f"is {values.dtype}, with values from {low:.6g} to {high:.6g}{odd}"
    if low >= 0 and high <= 1:
        ends = "0", "1"
    elif low >= 0 and high <= 255:
        ends = "0", "255"
    elif -1 <= low < -0.5 and high <= 1:
        ends = "-1", "1"
    else:
        ends = "LOW", "HIGH"
    numbers = numbers.format(name=name, low=ends[0], high=ends[1])
    if ends[1] == "255":
        return f"{found}; write np.round({numbers}).astype(np.uint8)"
    scaled = f"np.round(np.interp({numbers}, ({', '.join(ends)}), (0, 255))).astype(np.uint8)"
    if ends[1] == "HIGH":
        return f"{found}; choose LOW and HIGH, the same for the images of all sites, and write {scaled}"
    return f"{found}; write {scaled}, in every split and at every site"


def shape_of_images(name: str, shape: tuple[int, ...]) -> str:
    """Return what makes an array of images (images, height, width) or (images, height, width, 3)."""
    if len(shape) == 2:
        return f"write {name}.reshape(-1, HEIGHT, WIDTH)"
    if len(shape) == 4 and shape[3] == 1:
        return f"write {name}[..., 0]"
    if len(shape) == 4 and shape[3] == 4:
        return f"write {name}[..., :3], without the fourth channel"
    if len(shape) == 4 and shape[1] == 3:
        return f"write np.moveaxis({name}, 1, 3)"
    if len(shape) == 4 and shape[1] == 1:
        return f"write {name}[:, 0]"
    if len(shape) in (4, 5):
        return f"choose one slice of each, for example {name}[:, {shape[1] // 2}]"
    return "store one array of that shape"


def labels_as_integers(name: str, values: np.ndarray) -> str:
    """Return what makes labels of another type integers from 0, and what was found of them."""
    found = f"is {values.dtype}"
    if values.dtype.kind == "b":
        return f"{found}; write {name}.astype(np.uint8)"
    if values.dtype.kind == "f" and np.isfinite(values).all() and (values == np.round(values)).all():
        return f"{found}; write {name}.astype(np.int64)"
    if values.dtype.kind in "SU":
        return f"{found}; {_numbered(name)}, and name the classes in that order with data.classes"
    return f"{found}, with values that are no whole numbers; give every record the number of its class"


def labels_from_zero(name: str, smallest: int) -> str:
    """Return what makes integers labels from 0."""
    if smallest > 0:
        return f"subtract {smallest} from the labels of every split (at every site)"
    return _numbered(name)


def _numbered(name: str) -> str:
    return f"number the classes from 0, in every split with np.searchsorted(np.unique(train_labels), {name})"
