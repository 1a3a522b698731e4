"""Arrays as users have them, to images in [0, 1] and one-hot labels."""

import math

import numpy as np

from capsnet import pictures
from capsnet.array_files import Arrays
from capsnet.batches import Pair
from capsnet.errors import MAX_CLASSES, MAX_NAME, DataError, warn
from capsnet.memory import check_memory

DARK = 1 / 16  # of white; no image is brighter where 12 bits are stored in 16


def convert(
    arrays: Arrays,
    classes: list[str] | None,
    image_size: tuple[int, int] | None,
    grayscale: bool,
    seed: int | None,
    name: str,
) -> tuple[Pair, Pair, list[str], bool]:
    """Makes images and labels of arrays as users have them.

    Args:
        arrays: x_train, y_train, x_test and y_test.
        classes: Names of the classes that labels are numbers of, if they are known.
        image_size: Height and width to fit all images into.
        grayscale: Whether to make colour images grey.
        seed: Of a new order of the training images; None for that of the arrays.
        name: What they are called in a warning.

    Returns:
        The training set, the test set, the names of the classes, and whether an image
        may be of any number of them.

    Raises:
        DataError: If they make no sense.
    """
    for part in ("train", "test"):
        _check_images(arrays[f"x_{part}"], f"x_{part}")
        if arrays[f"y_{part}"].shape[:1] != arrays[f"x_{part}"].shape[:1]:
            raise DataError(
                f"y_{part}: expected {len(arrays[f'x_{part}'])} labels, one for each "
                f"image, got shape {arrays[f'y_{part}'].shape}"
            )
    shapes = [arrays[f"x_{part}"].shape[1:] for part in ("train", "test")]
    if shapes[0] != shapes[1]:
        raise DataError(f"x_test: expected images of {shapes[0]}, got {shapes[1]}")
    types = [arrays[f"x_{part}"].dtype.newbyteorder("=") for part in ("train", "test")]
    if types[0] != types[1] and all(dtype.kind in "ui" for dtype in types):
        raise DataError(  # white may be another number in each
            f"x_test: expected {types[0]}, the type of x_train, got {types[1]}"
        )
    size = arrays["x_train"].size + arrays["x_test"].size
    if image_size is not None:
        n = len(arrays["x_train"]) + len(arrays["x_test"])
        channels = 3 if shapes[0][2:] == (3,) and not grayscale else 1
        size = max(size, n * math.prod(image_size) * channels)
    # Putting them into another order makes a copy for a while.
    check_memory(max(4 * size, arrays["x_train"].nbytes), "the images")
    names, y = _read_targets(arrays["y_train"], arrays["y_test"], classes)
    if seed is not None:
        order = mix(y[0].argmax(axis=1), np.random.default_rng(seed))
        arrays["x_train"], y[0] = arrays["x_train"][order], y[0][order]
    white = max(_white(arrays["x_train"]), _white(arrays["x_test"]))
    _warn_if_dark(arrays, white, name)
    x = [
        _fit(_scale(arrays[f"x_{part}"], white), image_size, grayscale)
        for part in ("train", "test")
    ]
    multi_label = any((part.sum(axis=1) != 1).any() for part in y)
    return (x[0], y[0]), (x[1], y[1]), names, multi_label


def _check_images(x: np.ndarray, name: str) -> None:
    if (
        x.ndim not in (3, 4)
        or 0 in x.shape
        or (x.ndim == 4 and x.shape[3] not in (1, 3))
    ):
        raise DataError(
            f"{name}: expected images of shape (n, height, width) or "
            f"(n, height, width, 1 or 3), got shape {x.shape}"
        )
    if x.dtype.kind not in "uif":
        raise DataError(f"{name}: expected numbers, got {x.dtype}")
    low, high = x.min(), x.max()  # a single NaN makes both NaN
    limit = 1 if x.dtype.kind == "f" else 65535
    if not (low >= 0 and high <= limit):
        raise DataError(
            f"{name}: expected whole numbers from 0, or fractions from 0 to 1, "
            f"got {x.dtype} from {low} to {high}"
        )


def _white(x: np.ndarray) -> int:
    """The number that stands for white."""
    if x.dtype.kind == "f":
        return 1
    return 65535 if x.dtype.newbyteorder("=") == np.uint16 or x.max() > 255 else 255


def _warn_if_dark(arrays: Arrays, white: int, name: str) -> None:
    dark = []
    for part in ("x_train", "x_test"):
        largest = arrays[part].max()
        limit = 1 if arrays[part].dtype.kind == "f" else white
        if largest <= DARK * limit:
            dark.append(f"{part} (largest number {largest:g}, while {limit} is white)")
    if dark:
        warn(
            f"{name}: almost black: {' and '.join(dark)}; if that is not meant, divide "
            "by what is white, since fractions from 0 to 1 are taken as they are"
        )


def _scale(x: np.ndarray, white: int) -> np.ndarray:
    x = np.divide(x, 1 if x.dtype.kind == "f" else white, dtype="float32")
    return x if x.ndim == 4 else x[..., np.newaxis]


def _fit(
    x: np.ndarray, image_size: tuple[int, int] | None, grayscale: bool
) -> np.ndarray:
    if grayscale and x.shape[-1] == 3:
        x = x @ pictures.LUMINANCE[:, np.newaxis]
    if image_size is not None and x.shape[1:3] != tuple(image_size):
        fitted = np.empty((len(x), *image_size, x.shape[-1]), "float32")
        for i, image in enumerate(x):
            fitted[i] = pictures.fit_image(image, *image_size)
        return fitted
    return x


def _read_targets(
    y_train: np.ndarray, y_test: np.ndarray, known: list[str] | None
) -> tuple[list[str], list[np.ndarray]]:
    """Names of the classes, and rows of 0 and 1 for all labels of each image.

    The classes are those `known`, numbered from 0; else the columns of rows of 0 and 1;
    else what occurs in `y_train`: of the labels 3 and 7, the class "3" is the first.
    """
    y = [a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a for a in (y_train, y_test)]
    if all(a.ndim == 2 and a.dtype.kind in "uifb" for a in y):
        _check_rows(y, known)
        names = known or [str(i) for i in range(y[0].shape[1])]
        return names, [a.astype("float32") for a in y]
    labels = _read_labels(y)
    classes = np.unique(labels[0]).tolist()
    if known is not None:
        last = len(known) - 1
        for part, found in (("y_train", classes), ("y_test", labels[1])):
            got = "names" if isinstance(found[0], str) else max(found)
            if got == "names" or got > last:
                raise DataError(f"{part}: expected labels 0 to {last}, got {got}")
        classes = list(range(len(known)))
    _check_count(len(classes))
    index = {label: i for i, label in enumerate(classes)}
    unknown = sorted(set(labels[1]) - index.keys())
    if unknown:
        raise DataError(
            f"y_test: expected the classes of y_train, got {unknown[0]!r} as well"
        )
    if len(set(labels[0])) < 2:
        raise DataError("y_train: expected at least 2 classes, got 1")
    identity = np.eye(len(classes), dtype="float32")
    names = known or [str(label) for label in classes]
    return names, [identity[[index[label] for label in part]] for part in labels]


def _check_rows(y: list[np.ndarray], known: list[str] | None) -> None:
    """Whether rows of both parts say of each class if an image is of it."""
    n = len(known) if known else y[0].shape[1]
    _check_count(n)
    for a, part in zip(y, ("y_train", "y_test")):
        if a.shape[1] != n:
            raise DataError(f"{part}: expected {n} columns, got {a.shape[1]}")
        if not ((a == 0) | (a == 1)).all():
            raise DataError(f"{part}: expected rows of 0 and 1, got other numbers")
    if len(np.unique(y[0], axis=0)) < 2:
        raise DataError("y_train: expected rows that differ, got the same for all")


def _read_labels(y: list[np.ndarray]) -> list[list[int]] | list[list[str]]:
    """The labels of both parts, one an image."""
    if all(a.ndim == 1 and a.dtype.kind in "US" for a in y):
        y = [_to_text(a, part) for a, part in zip(y, ("y_train", "y_test"))]
    elif not all(a.ndim == 1 and a.dtype.kind in "ui" for a in y):
        raise DataError(
            "y_train and y_test: expected labels that are whole numbers, names or "
            "rows of 0 and 1, got "
            + " and ".join(f"{a.dtype} of shape {a.shape}" for a in y)
        )
    elif min(a.min() for a in y) < 0:
        raise DataError("y_train and y_test: expected labels from 0 on, got negatives")
    return [a.tolist() for a in y]


def _check_count(n_class: int) -> None:
    if n_class > MAX_CLASSES:
        raise DataError(
            f"y_train: expected at most {MAX_CLASSES} classes, got {n_class}"
        )


def _to_text(y: np.ndarray, name: str) -> np.ndarray:
    longest = y.dtype.itemsize // (4 if y.dtype.kind == "U" else 1)
    if longest > MAX_NAME:
        raise DataError(
            f"{name}: expected names of at most {MAX_NAME} characters, "
            f"got room for {longest}"
        )
    try:
        y = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y
    except UnicodeDecodeError:
        raise DataError(f"{name}: expected names in UTF-8, got other bytes") from None
    # NumPy makes text of any number, which Python's functions do not expect; what
    # controls a terminal is no part of a name either.
    codes = np.frombuffer(y.tobytes(), f"{y.dtype.str[0]}u4")
    for first, last in ((1, 31), (127, 159), (0xD800, 0xDFFF), (0x110000, 2**32 - 1)):
        if ((first <= codes) & (codes <= last)).any():
            raise DataError(f"{name}: expected names of printable characters")
    return y


def mix(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of samples in which each class is spread evenly.

    The first N samples have every class, and the last N every class of two samples or
    more, if N is not less than the number of classes.

    Args:
        labels: Numbers of the classes, shape `(n,)`.
        rng: What all that chance decides is drawn from.

    Returns:
        The indices of the samples, shape `(n,)`.
    """
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        place[members] = np.linspace(0, 1, len(members))
    return np.lexsort((rng.random(len(labels)), place))  # by place, then at random
