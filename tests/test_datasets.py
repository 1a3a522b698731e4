"""datasets.py: data of your own, what is refused of it, splits."""

import tracemalloc

import keras
import numpy as np
import pytest
from PIL import Image
from test_mnist import write_idx

from capsnet import datasets, memory
from capsnet.datasets import (
    DataError,
    check_classes,
    load_dataset,
    mix,
    split,
)


def refused(path, *, file=None, **options):
    """What a `DataError` says after the name of the file or folder at fault."""
    with pytest.raises(DataError) as caught:
        load_dataset(str(path), **options)
    message, start = str(caught.value), f"{file or path}: "
    assert message.startswith(start) and "\n" not in message
    return message.removeprefix(start)


# An npz file of your own: 6 and 3 grey images, 5 x 4 pixels, of 3 classes.

LABELS = np.array([0, 2, 1, 1, 2, 0])
TEST_LABELS = np.array([2, 0, 1])


def draw(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), "uint8")


def npz(folder, **changes):
    arrays = {
        "x_train": draw(6, 5, 4),
        "y_train": LABELS,
        "x_test": draw(3, 5, 4, seed=1),
        "y_test": TEST_LABELS,
    }
    arrays |= changes
    path = folder / "own.npz"
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    return str(path)


def places(x, drawn):
    """Which of the drawn images each of the loaded ones is, whatever their order."""
    pixels = np.rint(255 * x).astype(int).reshape(len(x), 1, -1)
    same = (pixels == drawn.reshape(1, len(drawn), -1)).all(axis=2)
    assert (same.sum(axis=0) == 1).all() and (same.sum(axis=1) == 1).all()
    return same.argmax(axis=1)


def sort(x):
    """Images in an order that depends on their pixels alone."""
    return x[np.lexsort(x.reshape(len(x), -1).T)]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3)])
@pytest.mark.parametrize(
    ("dtype", "largest", "white"),
    [
        ("uint8", 255, 255),
        ("uint8", 7, 255),
        ("int64", 255, 255),
        ("int64", 256, 65535),
        ("int32", 65535, 65535),
        ("uint16", 65535, 65535),
        ("uint16", 7, 65535),
        (">u2", 7, 65535),
        ("uint64", 255, 255),
        ("float64", 1, 1),
        ("float32", 0.5, 1),
        ("float16", 1, 1),
    ],
)
def test_the_dtype_and_the_largest_number_say_what_is_white(
    tmp_path, shape, dtype, largest, white
):
    rng = np.random.default_rng(0)
    arrays = {}
    for name, n in (("x_train", 6), ("x_test", 3)):
        arrays[name] = (rng.random((n, *shape)) * largest).astype(dtype)
    arrays["x_train"].flat[5] = largest
    train, test = load_dataset(npz(tmp_path, **arrays))
    for (x, _), array in ((train, arrays["x_train"]), (test, arrays["x_test"])):
        wanted = (array.astype("float64") / white).astype("float32")
        wanted = wanted.reshape(len(array), 5, 4, -1)
        np.testing.assert_array_equal(sort(x), sort(wanted))
        assert x.dtype == np.float32


def test_white_is_the_same_in_training_and_test(tmp_path):
    x = draw(6, 5, 4).astype(int)
    (read, _), (brightest, _) = load_dataset(
        npz(tmp_path, x_train=x, x_test=257 * x[:3], y_test=LABELS[:3])
    )
    wanted = (x / 65535).astype("float32")
    np.testing.assert_array_equal(sort(read[..., 0]), sort(wanted))
    np.testing.assert_array_equal(brightest[..., 0], (x[:3] / 255).astype("float32"))


def test_fractions_beside_whole_numbers_are_not_divided(tmp_path):
    x_test = np.random.default_rng(0).random((3, 5, 4), "float32")
    (x, _), (read, _) = load_dataset(npz(tmp_path, x_test=x_test))
    np.testing.assert_array_equal(read[..., 0], x_test)
    assert x.max() > 0.9


@pytest.mark.parametrize(
    ("dtype", "largest", "white"),
    [
        ("uint16", 4095, 65535),  # 12 bits
        ("uint16", 255, 65535),  # 8 bits
        ("int64", 4095, 65535),
        ("uint8", 1, 255),  # black and white as 0 and 1
        ("float32", 1 / 16, 1),
    ],
)
def test_images_that_are_almost_black_are_noticed(
    tmp_path, capsys, dtype, largest, white
):
    x = np.zeros((6, 5, 4), dtype)
    x[2, 3, 1] = largest
    path = npz(tmp_path, x_train=x, x_test=x[:3])
    load_dataset(path)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    number = f"(largest number {largest}, while {white} is white)"
    start = f"warning: {path}: almost black: x_train {number} and x_test {number}; "
    assert err.startswith(start)
    x[4] = white  # one bright image is enough
    load_dataset(npz(tmp_path, x_train=x, x_test=x[4:5], y_test=LABELS[:1]))
    assert capsys.readouterr() == ("", "")


def test_pictures_that_are_almost_black_are_noticed(tmp_path, capsys):
    twelve_bits = np.full((5, 4), 4095, "uint16")
    for path in ("ant/1.png", "ant/2.png", "bee/1.png", "bee/2.png"):
        draw_picture(tmp_path / path)
        Image.fromarray(twelve_bits).save(tmp_path / path)
    load_dataset(str(tmp_path))
    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: almost black: the brightest pixel is 0.062, "
        "while 1 is white\n"
    )


ANIMALS = np.array(["ant", "bee", "cat"])
LETTERS = np.array(["ä".encode(), "é".encode(), b"z"])


@pytest.mark.parametrize(
    ("encode", "class_names", "used"),
    [
        (lambda y: y, "012", "012"),
        (lambda y: y.astype("uint8"), "012", "012"),
        (lambda y: 2 * y, "024", "024"),
        (lambda y: 1000 * y + 1990, ["1990", "2990", "3990"], ["1990", "2990", "3990"]),
        (lambda y: y[:, np.newaxis], "012", "012"),
        (lambda y: np.eye(3, dtype=int)[y], "012", "012"),
        (lambda y: np.eye(3, dtype=bool)[y], "012", "012"),
        (lambda y: np.eye(5, dtype="float32")[y], "01234", "012"),
        (lambda y: ANIMALS[y], ANIMALS, ANIMALS),
        (lambda y: ANIMALS[y][:, np.newaxis], ANIMALS, ANIMALS),
        (lambda y: ANIMALS.astype("S")[y], ANIMALS, ANIMALS),
        (lambda y: LETTERS[y], "zäé", "äéz"),
    ],
    ids=[
        *("int64", "uint8", "even numbers only", "years", "int64 (n, 1)", "one-hot"),
        "one-hot of truth values",
        *("float one-hot with classes of no image", "names", "names (n, 1)"),
        *("ASCII bytes", "UTF-8 bytes"),
    ],
)
def test_labels_become_one_hot(tmp_path, encode, class_names, used):
    path = npz(tmp_path, y_train=encode(LABELS), y_test=encode(TEST_LABELS))
    dataset = load_dataset(path)
    assert dataset.class_names == list(class_names)
    drawn = draw(6, 5, 4), draw(3, 5, 4, seed=1)
    for (x, y), labels, images_ in zip(dataset, (LABELS, TEST_LABELS), drawn):
        assert y.dtype == np.float32 and y.shape == (len(labels), len(class_names))
        labels = labels[places(x, images_)]
        columns = [list(class_names).index(used[label]) for label in labels]
        np.testing.assert_array_equal(y, np.eye(len(class_names))[columns])


def test_data_dir_with_a_data_set_in_the_form_of_mnist(tmp_path):
    npz(tmp_path)
    (tmp_path / "own.npz").rename(tmp_path / "mnist.npz")
    digits = load_dataset(data_dir=str(tmp_path), seed=1)  # which does not mix them
    clothes = load_dataset("fashion_mnist", data_dir=str(tmp_path), seed=1)
    assert digits.class_names == list("0123456789")
    assert clothes.class_names[0] == "T-shirt/top" and len(clothes.class_names) == 10
    for dataset in (digits, clothes):
        np.testing.assert_array_equal(dataset.train[1], np.eye(10)[LABELS])
        np.testing.assert_array_equal(dataset.test[1], np.eye(10)[TEST_LABELS])


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        (5 * LABELS, "y_train: expected labels 0 to 9, got 10"),
        (np.eye(11)[LABELS], "y_train: expected 10 columns, got 11"),
        (
            np.array(["7", "8", "9"])[LABELS],
            "y_train: expected labels 0 to 9, got names",
        ),
    ],
)
def test_labels_that_data_dir_cannot_have(tmp_path, labels, complaint):
    npz(tmp_path, y_train=labels, y_test=labels[[1, 0, 2]])
    (tmp_path / "own.npz").rename(tmp_path / "mnist.npz")
    assert refused("mnist", file=tmp_path, data_dir=str(tmp_path)) == complaint


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "own.npz"])
def test_data_dir_is_for_data_of_mnists_form(tmp_path, name):
    with pytest.raises(DataError, match=f"expected mnist or .* data_dir, got {name}$"):
        load_dataset(name, data_dir=str(tmp_path))


# The order of the training images.


def write_sorted(folder, form):
    """60 training images, sorted by class, in a form of the user's own; and its arrays.

    The first pixel of an image is its number.
    """
    y = np.repeat([0, 1, 2], [30, 20, 10])
    x = draw(60, 5, 4)
    x[:, 0, 0] = np.arange(60)
    arrays = {"x_train": x, "y_train": y, "x_test": x[::-1], "y_test": y[::-1]}
    arrays |= {part: arrays[part].astype("uint8") for part in ("y_train", "y_test")}
    path = npz(folder, **arrays) if form == "npz" else write_idx(folder, arrays)
    return str(path), arrays


def first_pixels(x):
    return np.rint(255 * x[:, 0, 0, 0]).astype(int)


@pytest.mark.parametrize("form", ["npz", "idx"])
def test_the_order_is_a_function_of_the_seed_and_its_parts_have_all_classes(
    tmp_path, form
):
    path, arrays = write_sorted(tmp_path, form)
    one, again, other = (load_dataset(path, seed=seed) for seed in (1, 1, 2))
    assert one.digest() == again.digest()
    assert not np.array_equal(first_pixels(one.train[0]), first_pixels(other.train[0]))
    for dataset in (one, other):
        x, y = dataset.train
        found = first_pixels(x)
        assert sorted(found) == list(range(60))
        np.testing.assert_array_equal(y.argmax(axis=1), arrays["y_train"][found])
        for _, part in split(x, y, train_size=12, validation_size=12):
            assert np.abs(part.sum(axis=0) - [6, 4, 2]).max() <= 1  # as of all 60
        # tests stay as they are
        assert first_pixels(dataset.test[0]).tolist() == list(range(60))[::-1]


@pytest.mark.parametrize("counts", [[1, 50, 3], [2, 2], [40, 30, 20, 10], [5, 1, 1]])
@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_in_all_parts_that_have_room(counts, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    order = mix(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    labels = labels[order]
    several = {label for label, count in enumerate(counts) if count > 1}
    for n in range(len(counts), len(labels)):
        assert set(labels[:n]) == set(range(len(counts)))
        assert set(labels[-n:]) >= several


def test_a_part_without_a_class_is_refused(tmp_path):
    dataset = load_dataset(write_sorted(tmp_path, "npz")[0])
    for sizes, complaint in (
        ((2, 0), "expected images of every class to train on, got 2 without any of "),
        ((None, 58), "expected images of every class to train on, got 2 without any"),
        ((None, 2), "expected images of every class to validate with, got 2 without"),
    ):
        with pytest.raises(DataError) as caught:
            check_classes(dataset, *split(*dataset.train, *sizes))
        assert str(caught.value).startswith(complaint)
        assert str(caught.value).endswith("change --train_size or --validation_size")
    for sizes in ((3, 3), (None, 0), (57, 3), (3, 57)):
        check_classes(dataset, *split(*dataset.train, *sizes))


def test_a_class_of_one_image_is_for_the_training(tmp_path):
    labels = np.array([0, 0, 0, 1, 1, 2])
    path = npz(tmp_path, y_train=labels, y_test=labels[[0, 3, 5]])
    for seed in range(5):
        dataset = load_dataset(path, seed=seed)
        check_classes(dataset, *split(*dataset.train, 3, 2))


def test_small_parts_of_the_built_in_sets_are_a_first_look(tmp_path):
    write_sorted(tmp_path, "idx")
    dataset = load_dataset(data_dir=str(tmp_path))
    check_classes(dataset, *split(*dataset.train, 2, 2))


# What is refused of arrays.


def with_pixel(value, dtype="float64"):
    x = np.zeros((6, 5, 4), dtype)
    x[3, 2, 1] = value
    return x


SHAPES = "x_train: expected images of shape (n, height, width) or (n, height, width, "
NUMBERS = "x_train: expected whole numbers from 0, or fractions from 0 to 1, got "
FORMS = "y_train and y_test: expected labels that are whole numbers, names or rows"
ROWS, TEST_ROWS = np.eye(3)[LABELS], np.eye(3)[TEST_LABELS]
FAULTY_ARRAYS = {
    "NaN": ({"x_train": with_pixel(np.nan)}, NUMBERS + "float64 from nan to nan"),
    "up to 255": ({"x_train": with_pixel(255)}, NUMBERS + "float64 from 0.0 to 25"),
    "negative": ({"x_train": with_pixel(-1, int)}, NUMBERS + "int64 from -1 to 0"),
    "large": ({"x_train": with_pixel(65536, int)}, NUMBERS + "int64 from 0 to 65536"),
    "text": ({"x_train": with_pixel("a", "U1")}, "x_train: expected numbers, got <U1"),
    "flat images": ({"x_train": draw(6, 20)}, SHAPES + "1 or 3), got shape (6, 20)"),
    "4 channels": ({"x_train": draw(6, 5, 4, 4)}, SHAPES),
    "no images": ({"x_train": draw(0, 5, 4), "y_train": LABELS[:0]}, SHAPES),
    "a label too few": (
        {"y_train": LABELS[:5]},
        "y_train: expected 6 labels, one for each image, got shape (5,)",
    ),
    "a number as labels": (
        {"y_test": 7},
        "y_test: expected 3 labels, one for each image, got shape ()",
    ),
    "other whole numbers in the test": (
        {"x_test": draw(3, 5, 4).astype("uint16")},
        "x_test: expected uint8, the type of x_train, got uint16",
    ),
    "other size in the test": (
        {"x_test": draw(3, 5, 5)},
        "x_test: expected images of (5, 4), got (5, 5)",
    ),
    "negative label": (
        {"y_train": LABELS - 1},
        "y_train and y_test: expected labels from 0 on, got negatives",
    ),
    "test label between": (
        {"y_train": 2 * LABELS},
        "y_test: expected the classes of y_train, got 1 as well",
    ),
    "1001 labels": (
        {
            "x_train": draw(1001, 1, 1),
            "x_test": draw(3, 1, 1),
            "y_train": np.arange(1001),
        },
        "y_train: expected at most 1000 classes, got 1001",
    ),
    "unknown name in the test": (
        {"y_train": ANIMALS[LABELS], "y_test": np.array(["ant", "dog", "bee"])},
        "y_test: expected the classes of y_train, got 'dog' as well",
    ),
    "names that are no text": (
        {"y_train": np.array([b"\xe4", b"b"])[LABELS % 2], "y_test": LETTERS},
        "y_train: ",
    ),
    "one class": (
        {"y_train": 0 * LABELS, "y_test": 0 * TEST_LABELS},
        "y_train: expected at least 2 classes, got 1",
    ),
    "float labels": ({"y_train": LABELS / 1, "y_test": TEST_LABELS / 1}, FORMS),
    "numbers and names": (
        {"y_test": ANIMALS[TEST_LABELS]},
        FORMS + " of 0 and 1, got int64 of shape (6,) and <U3 of shape (3,)",
    ),
    "numbers and one-hot": ({"y_test": TEST_ROWS}, FORMS),
    "the same row for all": (
        {"y_train": np.ones((6, 3)), "y_test": TEST_ROWS},
        "y_train: expected rows that differ, got the same for all",
    ),
    "probabilities": (
        {"y_train": ROWS, "y_test": np.full((3, 3), 1 / 3)},
        "y_test: expected rows of 0 and 1, got other numbers",
    ),
    "other columns in the test": (
        {"y_train": ROWS, "y_test": np.eye(4)[TEST_LABELS]},
        "y_test: expected 3 columns, got 4",
    ),
}


@pytest.mark.parametrize("fault", FAULTY_ARRAYS)
def test_arrays_that_make_no_sense(tmp_path, fault):
    changes, complaint = FAULTY_ARRAYS[fault]
    assert refused(npz(tmp_path, **changes)).startswith(complaint)


def test_a_path_to_nothing(tmp_path):
    path = tmp_path / "not there"
    with pytest.raises(DataError) as caught:
        load_dataset(str(path))
    assert str(caught.value).endswith(f" a folder, got {path}, which does not exist")


# Pictures of your own, one folder a class. Their brightness is their number.


def draw_picture(path, number=0, size=(4, 5), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = number if mode == "L" else (number,) * 3
    Image.new(mode, size, colour).save(path)


def pictures(folder, classes, first=0):
    """Draws so many pictures of each class, 5 x 4 pixels, numbered from `first` on."""
    for name, n in classes.items():
        for number in range(first, first + n):
            draw_picture(folder / name / f"{number}.png", number)
        first += n
    return str(folder)


def numbers(x):
    assert (x == x[:, :1, :1, :1]).all()
    return np.rint(255 * x[:, 0, 0, 0]).astype(int).tolist()


def test_train_and_test_folders(tmp_path, capsys):
    pictures(tmp_path / "train", {"bee": 3, "ant": 4, "cat": 2})
    pictures(tmp_path / "test", {"cat": 1, "bee": 2}, first=100)
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ["ant", "bee", "cat"]
    assert dataset.name == str(tmp_path) and dataset.split is None
    wanted = (
        {0: 1, 1: 1, 2: 1, 3: 0, 4: 0, 5: 0, 6: 0, 7: 2, 8: 2},
        {100: 2, 101: 1, 102: 1},
    )
    for (x, y), classes in zip(dataset, wanted):
        assert x.shape == (len(classes), 5, 4, 1) and y.shape == (len(classes), 3)
        assert x.dtype == y.dtype == np.float32
        assert dict(zip(numbers(x), y.argmax(axis=1).tolist())) == classes
        np.testing.assert_array_equal(y.sum(axis=1), 1)
    assert capsys.readouterr().err == ""
    (tmp_path / "val").mkdir()
    load_dataset(str(tmp_path))
    expected = "only train/ and test/ are read, of [test, train, val]"
    assert capsys.readouterr().err == f"warning: {tmp_path}: {expected}\n"


def test_a_folder_with_the_name_of_a_built_in_data_set(
    tmp_path, capsys, monkeypatch, mnist
):
    pictures(tmp_path / "mnist", {"bee": 3, "ant": 4})
    monkeypatch.chdir(tmp_path)
    assert load_dataset("./mnist").class_names == ["ant", "bee"]
    assert "built-in" not in capsys.readouterr().err
    assert load_dataset("mnist").class_names == mnist.class_names
    message = "warning: mnist is the built-in data set; the folder is ./mnist\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("fraction", "n_test"), [(0.2, [2, 5]), (0.5, [5, 12]), (0.01, [1, 1])]
)
def test_a_split_has_each_picture_once_and_each_class_in_both_parts(
    tmp_path, fraction, n_test
):
    path = pictures(tmp_path, {"ant": 10, "bee": 25})
    (x, y), (x_test, y_test) = load_dataset(path, test_fraction=fraction)
    assert sorted(numbers(x) + numbers(x_test)) == list(range(35))
    assert y_test.sum(axis=0).tolist() == n_test
    for pixels, labels in ((x, y), (x_test, y_test)):
        assert [n >= 10 for n in numbers(pixels)] == labels.argmax(axis=1).tolist()


def test_a_split_is_a_function_of_the_seed(tmp_path):
    path = pictures(tmp_path, {"ant": 10, "bee": 10})
    one, again, other = (
        load_dataset(path, test_fraction=0.3, seed=seed) for seed in (3, 3, 4)
    )
    for part in ("train", "test"):
        for array, array_again in zip(getattr(one, part), getattr(again, part)):
            np.testing.assert_array_equal(array, array_again)
    assert set(numbers(one.test[0])) != set(numbers(other.test[0]))
    assert one.split == again.split
    assert one.split.keys() == {"seed", "fraction", "digest", "contents"}
    assert (one.split["seed"], one.split["fraction"]) == (3, 0.3)
    assert other.split == one.split | {"seed": 4}


def test_the_digests_of_a_split_are_of_the_names_and_of_the_contents(tmp_path):
    def digests(folder):
        split = load_dataset(str(folder)).split
        return split["digest"], split["contents"]

    one, two = tmp_path / "one", tmp_path / "two"
    pictures(one, {"ant": 3, "bee": 3})
    pictures(two, {"ant": 3, "bee": 3})
    names, contents = digests(one)
    assert digests(two) == (names, contents)
    draw_picture(two / "ant" / "2.png", 200)  # of the same size
    assert digests(two)[0] == names and digests(two)[1] != contents
    draw_picture(two / "ant" / "2.png", 2)
    assert digests(two) == (names, contents)
    others = []
    (two / "ant" / "2.png").rename(two / "bee" / "2.png")
    others.append(digests(two)[0])
    (two / "bee" / "2.png").rename(two / "bee" / "new.png")
    others.append(digests(two)[0])
    draw_picture(two / "bee" / "more.png")
    others.append(digests(two)[0])
    assert len({names, *others}) == 4


@pytest.mark.parametrize("split_here", [True, False])
def test_training_pictures_are_shuffled(tmp_path, split_here):
    classes = {"ant": 20, "bee": 20}
    if split_here:
        pictures(tmp_path, classes)
    else:
        pictures(tmp_path / "train", classes)
        pictures(tmp_path / "test", classes)
    (_, y), _ = load_dataset(str(tmp_path))
    for half in np.array_split(y, 2):
        assert half.sum(axis=0).min() >= 3


def test_names_that_are_no_utf_8(tmp_path):
    path = pictures(tmp_path, {"ant": 2, "bee": 2})
    (tmp_path / "ant" / "0.png").rename(tmp_path / "ant" / "\udce4.png")
    (x, _), (x_test, _) = load_dataset(path)
    assert sorted(numbers(x) + numbers(x_test)) == [0, 1, 2, 3]


def test_grey_pictures_among_colours_get_three_channels(tmp_path):
    pictures(tmp_path, {"ant": 3, "bee": 3})
    Image.new("RGB", (4, 5), (255, 51, 0)).save(tmp_path / "bee" / "5.png")
    x = np.concatenate([x for x, _ in load_dataset(str(tmp_path))])
    assert x.shape == (6, 5, 4, 3)
    colours = [(n / 255,) * 3 for n in range(5)] + [(1, 0.2, 0)]
    np.testing.assert_allclose(sorted(x[:, 2, 2].tolist()), sorted(colours), atol=1e-6)


# Both: size and colour.


def of_images(folder, form, *arrays):
    """A data set of which each class is one image, thrice; npz or pictures."""
    if form == "npz":
        y = np.arange(len(arrays))
        x = np.stack(arrays)
        changes = {"x_train": x, "y_train": y, "x_test": x, "y_test": y}
        return npz(folder, **changes)
    for i, array in enumerate(arrays):
        for path in (f"train/{i}/1.png", f"test/{i}/1.png"):
            draw_picture(folder / path)
            Image.fromarray(array).save(folder / path)
    return str(folder)


@pytest.mark.parametrize("form", ["npz", "pictures"])
@pytest.mark.parametrize("channels", [1, 3])
def test_image_size_fits_images(tmp_path, form, channels):
    # of one colour, so that what is padded has it, too
    white = np.full((2, 4, channels), 255, "uint8").squeeze()
    path = of_images(tmp_path, form, white, white // 5)
    for height, width in ((8, 8), (2, 10), (3, 2), (2, 4)):
        for x, y in load_dataset(path, image_size=(height, width)):
            assert x.shape == (2, height, width, channels) and x.dtype == np.float32
            for image, label in zip(x, y.argmax(axis=1)):
                brightness = (1, 0.2)[label]
                np.testing.assert_allclose(image, brightness, atol=1e-6)


@pytest.mark.parametrize("form", ["npz", "pictures"])
def test_grayscale_is_the_luminance(tmp_path, form):
    colours = np.uint8([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]])
    path = of_images(tmp_path, form, colours, colours // 5)
    for x, y in load_dataset(path, grayscale=True):
        assert x.shape == (2, 1, 4, 1) and x.dtype == np.float32 and x.max() <= 1
        for image, label in zip(x[:, 0, :, 0], y.argmax(axis=1)):
            wanted = np.multiply((1, 0.2)[label], [0.299, 0.587, 0.114, 1])
            np.testing.assert_allclose(image, wanted, atol=1e-6)


def test_grey_images_stay_as_they_are_with_grayscale(tmp_path):
    path = of_images(tmp_path, "npz", draw(5, 4), draw(5, 4, seed=1))
    grey, plain = load_dataset(path, grayscale=True), load_dataset(path)
    np.testing.assert_array_equal(grey.train[0], plain.train[0])
    assert plain.train[0].shape == (2, 5, 4, 1)


@pytest.mark.parametrize(
    ("sizes", "expected", "found"),
    [
        ([(4, 5), (7, 6)], (32, 32), "several sizes"),
        ([(65, 20)], (32, 32), "20 x 65 pixels"),
        ([(64, 20)], (20, 64), None),
    ],
)
def test_pictures_of_several_sizes_and_large_ones_are_made_small(
    tmp_path, capsys, sizes, expected, found
):
    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for i in range(4):
            draw_picture(tmp_path / name / f"{i}.png", i, size=sizes[i % len(sizes)])
    for x, _ in load_dataset(str(tmp_path)):
        assert x.shape[1:] == (*expected, 1)
    line = f"Pictures of {found}: fitted into 32 x 32; --image_size H W takes another"
    assert capsys.readouterr().out == (f"{line} size\n" if found else "")
    for x, _ in load_dataset(str(tmp_path), image_size=(6, 6)):
        assert x.shape[1:] == (6, 6, 1)
    assert capsys.readouterr().out == ""


# What is refused of folders; test_pictures.py has more.


@pytest.mark.parametrize("part", ["train", "test"])
def test_train_and_test_are_both_checked(tmp_path, part):
    for folder in ("train", "test"):
        pictures(
            tmp_path / folder, {"ant": 1} if folder == part else {"ant": 1, "bee": 1}
        )
    complaint = refused(tmp_path, file=tmp_path / part)
    assert complaint == "expected 2 to 1000 class folders, got 1"


def test_more_classes_than_a_model_file_may_hold(tmp_path):
    for i in range(1001):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "a.png").touch()
    complaint = refused(tmp_path, file=tmp_path)
    assert complaint == "expected 2 to 1000 class folders, got 1001"


def test_a_class_to_test_that_is_not_trained(tmp_path):
    pictures(tmp_path / "train", {"ant": 2, "bee": 2})
    pictures(tmp_path / "test", {"ant": 2, "cat": 2})
    assert refused(tmp_path).startswith("expected the classes of train/ in test/")


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.2), (3, 0.9), (3, 1)])
def test_a_class_too_small_to_split(tmp_path, n, fraction):
    path = pictures(tmp_path, {"ant": n, "bee": 20})
    complaint = refused(path, file=tmp_path / "ant", test_fraction=fraction)
    assert complaint.endswith(f"with --test_fraction {fraction}, got {n}")


# Memory.


def test_too_little_memory_is_found_out_before_the_pixels_are_made(
    tmp_path, monkeypatch
):
    def make(*_):
        raise AssertionError("too late")

    path = of_images(tmp_path, "npz", draw(5, 4, 3), draw(5, 4, 3, seed=1))
    monkeypatch.setattr("capsnet.pictures.read_image", make)
    monkeypatch.setattr("capsnet.pictures.fit_image", make)
    monkeypatch.setattr(memory, "available_memory", lambda: 4_700_000_000)
    with pytest.raises(DataError) as caught:  # 4 images, 3 channels, 4 bytes
        load_dataset(path, image_size=(10_000, 10_000))
    message = str(caught.value)
    assert "need about 4.8 GB of memory, 4.7 GB are available" in message
    assert "--image_size" in message and "\n" not in message
    with pytest.raises(AssertionError, match="too late"):
        load_dataset(path, image_size=(10_000, 10_000), grayscale=True)


def test_arrays_as_they_are_need_memory_too(tmp_path, monkeypatch):
    # 9 images of 2000 pixels
    path = npz(tmp_path, x_train=draw(6, 50, 40), x_test=draw(3, 50, 40))
    monkeypatch.setattr(memory, "available_memory", lambda: 9 * 2000 * 4 - 1)
    assert refused(path).startswith("the images need about 0.0 GB of memory")
    monkeypatch.setattr(memory, "available_memory", lambda: 9 * 2000 * 4)
    assert load_dataset(path).train[0].shape == (6, 50, 40, 1)


# Keras's loaders.


def test_keras_loaders_give_names_to_the_classes(monkeypatch):
    x, x_test = draw(6, 32, 32, 3), draw(3, 32, 32, 3, seed=1)
    arrays = (x, LABELS[:, np.newaxis]), (x_test, TEST_LABELS[:, np.newaxis])
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: arrays)
    dataset = load_dataset("cifar10")
    assert dataset.name == "cifar10" and dataset.split is None
    assert dataset.class_names == datasets.NAMED["cifar10"]
    for (pixels, y), (wanted, labels) in zip(dataset, arrays):
        np.testing.assert_array_equal(pixels, wanted / np.float32(255))
        np.testing.assert_array_equal(y, np.eye(10)[labels[:, 0]])


def test_keras_gives_channels_first_if_keras_json_says_so(monkeypatch, channels_first):
    wanted = draw(6, 32, 32, 3), draw(3, 32, 32, 3, seed=1)
    x, x_test = (pixels.transpose(0, 3, 1, 2) for pixels in wanted)
    arrays = (x, LABELS), (x_test, TEST_LABELS)
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: arrays)
    for (found, _), pixels in zip(load_dataset("cifar10"), wanted):
        np.testing.assert_array_equal(found, pixels / np.float32(255))


# split


def samples(n):
    return np.arange(n), np.arange(n) % 10


def test_validation_samples_come_from_the_end_whatever_the_train_size():
    x, y = samples(100)
    for train_size, kept in ((None, 80), (30, 30), (80, 80)):
        (x_train, y_train), (x_val, y_val) = split(x, y, train_size, validation_size=20)
        np.testing.assert_array_equal(x_train, np.arange(kept))
        np.testing.assert_array_equal(x_val, np.arange(80, 100))
        np.testing.assert_array_equal(y_train, x_train % 10)
        np.testing.assert_array_equal(y_val, x_val % 10)


@pytest.mark.parametrize(
    ("train_size", "validation_size", "numbers"),
    [
        (101, 0, ("101", "100")),
        (90, 20, ("90", "80")),
        (0, 0, ("got 0", "1 to 100")),
        (-1, 0, ("got -1",)),
        (None, 100, ("0 to 99", "got 100")),
        (None, 70000, ("0 to 99", "got 70000")),
        (None, -1, ("got -1",)),
    ],
)
def test_more_than_there_is(train_size, validation_size, numbers):
    with pytest.raises(DataError) as caught:
        split(*samples(100), train_size, validation_size)
    assert all(number in str(caught.value) for number in numbers)


# Files that are made to do harm.


@pytest.mark.parametrize("code", [0x1B, 0x0A, 0x7F, 0x9B, 0xD800, 0x110000, 2**32 - 1])
@pytest.mark.parametrize("order", "<>")
def test_names_of_characters_that_are_none(tmp_path, code, order):
    codes = np.array([[97, 98], [99, code]], f"{order}u4")
    names = codes.view(f"{order}U2")[:, 0]
    path = npz(tmp_path, y_train=names[LABELS % 2], y_test=names[TEST_LABELS % 2])
    assert refused(path) == "y_train: expected names of printable characters"


@pytest.mark.parametrize("dtype", ["<U256", "|S256"])
def test_long_names(tmp_path, dtype):
    names = np.array(["a", "b"], dtype)
    path = npz(tmp_path, y_train=names[LABELS % 2], y_test=names[TEST_LABELS % 2])
    assert "names of at most 255 characters, got room for 256" in refused(path)
    names = names.astype(dtype.replace("256", "255"))
    path = npz(tmp_path, y_train=names[LABELS % 2], y_test=names[TEST_LABELS % 2])
    assert load_dataset(path).class_names == ["a", "b"]


def test_millions_of_classes_are_not_named(tmp_path):
    path = npz(
        tmp_path,
        y_train=np.zeros((6, 10**6), "uint8"),
        y_test=np.zeros((3, 10**6), "uint8"),
    )
    tracemalloc.start()
    message = refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert message == "y_train: expected at most 1000 classes, got 1000000"
    assert peak < 20e6
