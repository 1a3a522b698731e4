"""What is wrong with arguments and data, in one line that a terminal can show."""

import numbers
import sys
import unicodedata

MAX_NAME = 255  # characters in the name of a class
MAX_CLASSES = 1000


class UsageError(ValueError):
    """Arguments that cannot work; the message is one line for the user."""


class DataError(ValueError):
    """Data that is missing, damaged or too little; one line, fit for the user."""


def one_line(text: str) -> str:
    """Text of any origin in one line, without what a terminal would obey."""
    text = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """What an exception says, as a part of one line."""
    text = getattr(error, "strerror", None) or str(error)
    if not text:
        text = "it ends too soon" if isinstance(error, EOFError) else repr(error)
    return one_line(" ".join(text.split()))[:300].rstrip(".")


def warn(text: str) -> None:
    """Prints a line about what may not be meant, on stderr."""
    print(f"warning: {one_line(text)}", file=sys.stderr)


def is_class_name(text: str) -> bool:
    """Whether a name is short enough, and holds nothing that a terminal would obey."""
    return len(text) <= MAX_NAME and not any(
        unicodedata.category(c) in ("Cc", "Cs") for c in text
    )


def shorten(values: list) -> str:
    """A list in one short line."""
    text = ", ".join(map(str, values[:5]))
    return f"[{text}, ...] ({len(values)})" if len(values) > 5 else f"[{text}]"


def check_labels(received, expected, what: str) -> None:
    """Makes sure that there is a number for each class: integers would be broadcast.

    Args:
        received: The shape of the labels.
        expected: Their shape if they are one-hot or multi-hot, (batch, n_class).
        what: There is one of these for each class.

    Raises:
        ValueError: If the shapes differ, as far as they are known.
    """
    received, expected = tuple(received), tuple(expected)
    if len(received) != len(expected) or any(
        m != n and None not in (m, n) for m, n in zip(received, expected)
    ):
        raise ValueError(
            f"Expected one-hot labels of the same shape as the {what}, "
            f"(batch, n_class) = {expected}; received labels of shape {received}."
        )


def check_sizes(**sizes) -> None:
    """Makes sure that sizes are positive integers, also those of NumPy.

    Raises:
        ValueError: If one is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, numbers.Integral) or size < 1:
            raise ValueError(
                f"Expected {name} to be a positive integer; received {name}={size!r}."
            )


def check_pair(name: str, value) -> tuple[int, int]:
    """One or two sizes as two.

    Raises:
        ValueError: If they are neither.
    """
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    positive = all(isinstance(n, numbers.Integral) and n > 0 for n in pair)
    if len(pair) != 2 or not positive:
        raise ValueError(
            f"Expected {name} to be one or two positive integers; "
            f"received {name}={value!r}."
        )
    return int(pair[0]), int(pair[1])
