"""Data sets as arrays: load, check and split them."""

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np

from capsnet import array_files, mnist, pictures
from capsnet.batches import Pair
from capsnet.errors import MAX_NAME, DataError, warn
from capsnet.memory import check_memory

# What `load_dataset` knows by name, and the names of the classes.
NAMED = {
    "mnist": [str(i) for i in range(10)],
    "fashion_mnist": [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ],
    "cifar10": [
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ],
    "cifar100": [str(i) for i in range(100)],
}
IN_FOLDERS = ("mnist", "fashion_mnist")  # those that `data_dir` may hold
MAX_CLASSES = 1000
DARK = 1 / 16  # of white; no image is brighter where 12 bits are stored in 16


@dataclasses.dataclass
class Dataset:
    """Images and labels; unpacks to `train, test`.

    Attributes:
        train: Images, float32 in [0, 1] of shape `(n, height, width, channels)`, and
            labels, one-hot float32 of shape `(n, n_class)`.
        test: The same.
        class_names: A name for each class.
        name: What it was loaded by.
        split: For a folder that was split here: seed, fraction, `digest` of the list of
            files and `contents`, a digest of what is in them; else `None`.
        more_tests: Further sets to evaluate, by name.
    """

    train: Pair
    test: Pair
    class_names: list[str]
    name: str
    split: dict | None = None
    more_tests: dict[str, Pair] = dataclasses.field(default_factory=dict)

    def __iter__(self):
        return iter((self.train, self.test))

    def digest(self) -> str:
        """A SHA-256 sum of all images and labels."""
        sha = hashlib.sha256()
        for pair in (self.train, self.test, *self.more_tests.values()):
            for array in pair:
                sha.update(np.ascontiguousarray(array))
        return sha.hexdigest()


def load_dataset(
    name: str = "mnist",
    data_dir: str | None = None,
    image_size: tuple[int, int] | None = None,
    grayscale: bool = False,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """Loads a data set by its name, or from the user's own files.

    Training images of the user's own come in a random order in which each class is
    spread evenly, so that the first or the last of them are a fair part of all, also
    where the files are sorted by class. The built-in sets keep their order, also those
    that are read from `data_dir`. So do all test images.

    Args:
        name: One of `NAMED`, or a path: an npz file with the arrays x_train, y_train,
            x_test and y_test; a folder of IDX files; a folder with one sub-folder of
            pictures a class, or with `train/` and `test/` that hold these.
        data_dir: For MNIST and Fashion-MNIST, a folder with their files: `mnist.npz`
            as Keras stores it, or the four IDX files, plain or `.gz`.
        image_size: Height and width to fit all images into, with their aspect kept.
        grayscale: Whether to make colour images grey.
        test_fraction: Part of each class to test with, where a folder has no `test/`.
        seed: Of the choice of that part, and of the order.

    Raises:
        DataError: If the data is missing, damaged or makes no sense.
    """
    if data_dir is not None and name not in IN_FOLDERS:
        raise DataError(f"expected {' or '.join(IN_FOLDERS)} with data_dir, got {name}")
    source = Path(data_dir or name)
    if name not in NAMED and source.is_dir() and not array_files.is_in_folder(source):
        return _load_pictures(name, image_size, grayscale, test_fraction, seed)
    if name not in NAMED and not source.exists():
        raise DataError(
            f"expected {', '.join(NAMED)}, an npz file or a folder, got {name}, "
            "which does not exist"
        )
    if data_dir is None and name == "mnist":
        arrays = mnist.load_mnist()
    elif data_dir is None and name in NAMED:
        arrays = mnist.load_with_keras(name)
    elif source.is_file():
        arrays = array_files.read_npz(source)
    else:
        arrays = array_files.read_folder(source)
    try:
        return _from_arrays(arrays, name, image_size, grayscale, seed)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None


# Arrays as users have them, to images and one-hot labels.


def _from_arrays(
    arrays: array_files.Arrays,
    name: str,
    image_size: tuple[int, int] | None,
    grayscale: bool,
    seed: int,
) -> Dataset:
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
    names, y = _one_hot(arrays["y_train"], arrays["y_test"], NAMED.get(name))
    if name not in NAMED:
        order = mix(y[0].argmax(axis=1), np.random.default_rng(seed))
        arrays["x_train"], y[0] = arrays["x_train"][order], y[0][order]
    white = max(_white(arrays["x_train"]), _white(arrays["x_test"]))
    _warn_if_dark(arrays, white, name)
    x = [
        _fit(_scale(arrays[f"x_{part}"], white), image_size, grayscale)
        for part in ("train", "test")
    ]
    return Dataset((x[0], y[0]), (x[1], y[1]), names, name)


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


def _warn_if_dark(arrays: array_files.Arrays, white: int, name: str) -> None:
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


def _one_hot(
    y_train: np.ndarray, y_test: np.ndarray, known: list[str] | None
) -> tuple[list[str], list[np.ndarray]]:
    """Names of the classes, and one-hot labels.

    The classes are those `known`, numbered from 0; else the columns of one-hot labels;
    else what occurs in `y_train`: of the labels 3 and 7, the class "3" is the first.
    """
    labels, classes = _read_labels(y_train, y_test)
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


def _read_labels(
    y_train: np.ndarray, y_test: np.ndarray
) -> tuple[list[list], list[int] | list[str]]:
    """The labels of both parts, numbers or names, and the classes in their order."""
    parts = ("y_train", "y_test")
    y = [a[:, 0] if a.ndim == 2 and a.shape[1] == 1 else a for a in (y_train, y_test)]
    if all(a.ndim == 2 and a.dtype.kind in "uifb" for a in y):
        n = y[0].shape[1]
        _check_count(n)
        for a, part in zip(y, parts):
            if not (((a == 0) | (a == 1)).all() and (a.sum(axis=1) == 1).all()):
                raise DataError(f"{part}: expected one-hot rows, got other numbers")
        if y[1].shape[1] != n:
            raise DataError(f"y_test: expected {n} columns, got {y[1].shape[1]}")
        return [a.argmax(axis=1).tolist() for a in y], list(range(n))
    if all(a.ndim == 1 and a.dtype.kind in "US" for a in y):
        y = [_to_text(a, part) for a, part in zip(y, parts)]
    elif not all(a.ndim == 1 and a.dtype.kind in "ui" for a in y):
        raise DataError(
            "y_train and y_test: expected labels that are whole numbers, names or "
            f"one-hot rows, got {y_train.dtype} of shape {y_train.shape} and "
            f"{y_test.dtype} of shape {y_test.shape}"
        )
    elif min(a.min() for a in y) < 0:
        raise DataError("y_train and y_test: expected labels from 0 on, got negatives")
    return [a.tolist() for a in y], np.unique(y[0]).tolist()


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


# Folders of pictures.


def _load_pictures(
    name: str,
    image_size: tuple[int, int] | None,
    grayscale: bool,
    test_fraction: float,
    seed: int,
) -> Dataset:
    folder = Path(name)
    rng = np.random.default_rng(seed)
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        train = pictures.list_classes(folder / "train")
        test = pictures.list_classes(folder / "test")
        for unknown in sorted(test.keys() - train.keys()):
            raise DataError(
                f"{folder}: expected the classes of train/ in test/, "
                f"got {unknown} as well"
            )
        split = None
    else:
        files = pictures.list_classes(folder)
        train, test = _split_files(files, test_fraction, rng)
        split = {"seed": seed, "fraction": test_fraction}
    names = list(train)
    labelled = [[(p, names.index(c)) for c in d for p in d[c]] for d in (train, test)]
    order = mix(np.array([label for _, label in labelled[0]]), rng)
    labelled[0] = [labelled[0][i] for i in order]
    height, width, channels = _common_shape(
        [p for part in labelled for p, _ in part], image_size, grayscale
    )
    n = sum(map(len, labelled))
    check_memory(4 * n * height * width * channels, f"{n} images")
    if split is not None:  # now that they are known to be pictures
        split |= _digests(folder, [path for paths in files.values() for path in paths])
    train, test = (
        _read_pictures(part, len(names), (height, width, channels)) for part in labelled
    )
    brightest = max(train[0].max(), test[0].max())
    if brightest <= DARK:
        warn(
            f"{name}: almost black: the brightest pixel is {brightest:.2g}, "
            "while 1 is white"
        )
    return Dataset(train, test, names, name, split)


def _digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    """SHA-256 sums: of the list of files, and of what is in them."""
    names = [path.relative_to(folder).as_posix() for path in paths]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    listed = "\n".join(names).encode(errors="surrogatepass")
    return {
        "digest": hashlib.sha256(listed).hexdigest(),
        "contents": hashlib.sha256("".join(sums).encode()).hexdigest(),
    }


def _split_files(files: dict, fraction: float, rng: np.random.Generator):
    """Each class's files in two parts, the second one for the test."""
    train, test = {}, {}
    for name, paths in files.items():
        n_test = max(1, round(fraction * len(paths)))
        if n_test >= len(paths):
            raise DataError(
                f"{paths[0].parent}: expected enough pictures to train and to test "
                f"with --test_fraction {fraction:g}, got {len(paths)}"
            )
        order = rng.permutation(len(paths))
        test[name] = [paths[i] for i in sorted(order[:n_test])]
        train[name] = [paths[i] for i in sorted(order[n_test:])]
    return train, test


def _common_shape(
    paths: list[Path], image_size: tuple[int, int] | None, grayscale: bool
) -> tuple[int, int, int]:
    """Height, width and channels of the images to make of pictures."""
    shapes = [pictures.image_shape(path) for path in paths]
    channels = 1 if grayscale else max(shape[2] for shape in shapes)
    if image_size is not None:
        return (*image_size, channels)
    for path, shape in zip(paths, shapes):
        if shape[:2] != shapes[0][:2]:
            raise DataError(
                "expected pictures of one size, or --image_size H W, got "
                f"{paths[0]} of {shapes[0][0]} x {shapes[0][1]} and "
                f"{path} of {shape[0]} x {shape[1]}"
            )
    return (*shapes[0][:2], channels)


def _read_pictures(
    labelled: list[tuple[Path, int]], n_class: int, shape: tuple[int, int, int]
) -> Pair:
    height, width, channels = shape
    x = np.empty((len(labelled), *shape), "float32")
    for i, (path, _) in enumerate(labelled):
        x[i] = pictures.fit_image(pictures.read_image(path, channels), height, width)
    labels = [label for _, label in labelled]
    return x, np.eye(n_class, dtype="float32")[labels]


# Arrays to arrays.


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


def split(
    x: np.ndarray,
    y: np.ndarray,
    train_size: int | None = None,
    validation_size: int = 0,
) -> tuple[Pair, Pair | None]:
    """Cuts a training set into training and validation samples.

    The validation samples are cut first, from the end of the full set, so that they are
    the same ones whatever `train_size` is. Which classes the parts have depends on the
    order: see `load_dataset`, and `check_classes`.

    Args:
        x: Images.
        y: Their labels.
        train_size: Number of samples to train on, the first ones; `None` for all that
            the validation samples leave.
        validation_size: Number of samples to hold out.

    Returns:
        `((x_train, y_train), (x_validation, y_validation))`, views of the arguments;
        `None` in place of the second pair if `validation_size` is 0.

    Raises:
        DataError: If there are fewer samples than asked for, or none left to train on.
    """
    rest = len(x) - validation_size
    if validation_size < 0 or rest < 1:
        raise DataError(
            f"validation_size: expected 0 to {len(x) - 1}, as there are {len(x)} "
            f"training images, got {validation_size}"
        )
    if train_size is None:
        train_size = rest
    if not 1 <= train_size <= rest:
        raise DataError(
            f"train_size: expected 1 to {rest}, as there are {len(x)} training images "
            f"and {validation_size} of them are held out, got {train_size}"
        )
    validation = (x[rest:], y[rest:]) if validation_size else None
    return (x[:train_size], y[:train_size]), validation


def check_classes(data: Dataset, train: Pair, validation: Pair | None) -> None:
    """Makes sure that parts of the user's own data have all of its classes.

    The training part needs an image of every class; so do the validation images, but
    for classes of one image. The built-in sets are in a random order, and small parts
    of them are taken for a first look, so that nothing is refused of these.

    Args:
        data: Where the parts are from.
        train: Images and labels to train on.
        validation: Those that are held out, if any are.

    Raises:
        DataError: If a part has no image of a class.
    """
    if data.name in NAMED:
        return
    counts = data.train[1].sum(axis=0)
    parts = [("train on", train, 1)]
    parts += [("validate with", validation, 2)] if validation else []
    for purpose, (_, y), least in parts:
        missing = np.flatnonzero((counts >= least) & ~y.any(axis=0))
        if len(missing):
            raise DataError(
                f"expected images of every class to {purpose}, got {len(y)} without "
                f"any of {data.class_names[missing[0]]}: change --train_size or "
                "--validation_size"
            )
