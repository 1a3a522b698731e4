"""Data sets as arrays: load, check and split them."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from capsnet import array_files, decoded, mnist, photos, pictures
from capsnet.arrays import DARK, convert, mix
from capsnet.batches import Pair
from capsnet.errors import DataError, shorten, warn

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
# Pictures of several sizes, or with a longer side, are fitted into one.
LARGEST, FITTED = 64, (32, 32)
IN_FOLDERS = ("mnist", "fashion_mnist")  # those that `data_dir` may hold


@dataclasses.dataclass
class Dataset:
    """Images and labels; unpacks to `train, test`.

    Attributes:
        train: Images in [0, 1] of shape `(n, height, width, channels)`, float32 or, of
            a folder that memory is too small for, float16 in a file; and
            labels, one-hot float32 of shape `(n, n_class)`, or multi-hot ones.
        test: The same.
        class_names: A name for each class.
        name: What it was loaded by.
        split: For a folder that was split here: seed, fraction, `digest` of the list of
            files and `contents`, a digest of what is in them; else `None`.
        multi_label: Whether an image may have any number of labels.
        paths: Of the files of the training and the test images, in the folder that they
            are from; None for arrays.
        more_tests: Further sets to evaluate, by name.
    """

    train: Pair
    test: Pair
    class_names: list[str]
    name: str
    split: dict | None = None
    multi_label: bool = False
    paths: tuple[list[str], list[str]] | None = None
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
        image_size: Height and width to fit all images into, with their aspect kept. If
            none is given, pictures are fitted into `FITTED` if they are of several
            sizes or have a side longer than `LARGEST`.
        grayscale: Whether to make colour images grey.
        test_fraction: Part of each class to test with, where a folder has no `test/`.
        seed: Of the choice of that part, and of the order.

    Raises:
        DataError: If the data is missing, damaged or makes no sense.
    """
    if data_dir is not None and name not in IN_FOLDERS:
        raise DataError(f"expected {' or '.join(IN_FOLDERS)} with data_dir, got {name}")
    source = Path(data_dir or name)
    if name in NAMED and Path(name).is_dir():
        warn(f"{name} is the built-in data set; the folder is ./{name}")
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
        # The built-in sets keep their order.
        order = None if name in NAMED else seed
        train, test, names, multi_label = convert(
            arrays, NAMED.get(name), image_size, grayscale, order, name
        )
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return Dataset(train, test, names, name, multi_label=multi_label)


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
        others = [p.name for p in pictures.visible(folder) if p.is_dir()]
        if len(others) > 2:
            warn(f"{folder}: only train/ and test/ are read, of {shorten(others)}")
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
    shape, fitted = _common_shape(
        [p for part in labelled for p, _ in part], image_size, grayscale
    )
    if split is not None:  # now that they are known to be pictures
        split |= _digests(folder, [path for paths in files.values() for path in paths])
    listed, labels = zip(*[pair for part in labelled for pair in part])
    x = decoded.read_pictures(listed, shape)
    y = np.eye(len(names), dtype="float32")[list(labels)]
    n = len(labelled[0])
    train, test = (x[:n], y[:n]), (x[n:], y[n:])
    brightest = max(part[: photos.SAMPLE].max() for part, _ in (train, test))
    if brightest <= DARK:
        warn(
            f"{name}: almost black: the brightest pixel is {brightest:.2g}, "
            "while 1 is white"
        )
    if fitted is not None:
        print(
            f"Pictures of {fitted}: fitted into {shape[0]} x {shape[1]}; "
            "--image_size H W takes another size"
        )
    paths = tuple([_name(path, folder) for path, _ in part] for part in labelled)
    return Dataset(train, test, names, name, split, paths=paths)


def _name(path: Path, folder: Path) -> str:
    """A file's path in the folder; a name that is no Unicode is shown as it can be."""
    name = path.relative_to(folder).as_posix()
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


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
) -> tuple[tuple[int, int, int], str | None]:
    """Height, width and channels of the images to make of pictures.

    Also what they are like, if nobody said that they are to be fitted.
    """
    shapes = [pictures.image_shape(path) for path in paths]
    channels = 1 if grayscale else max(shape[2] for shape in shapes)
    if image_size is not None:
        return (*image_size, channels), None
    sizes = {shape[:2] for shape in shapes}
    if len(sizes) > 1:
        return (*FITTED, channels), "several sizes"
    height, width = sizes.pop()
    if max(height, width) > LARGEST:
        return (*FITTED, channels), f"{height} x {width} pixels"
    return (height, width, channels), None


# Arrays to arrays.


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
