"""errors.py: what of a text goes into one line."""

import pytest

from capsnet.errors import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("straße, 猫: a b", "straße, 猫: a b"),
        ("two\nlines\r\nor three", "two lines or three"),
        ("\x1b[2J\x9b\0\udc80", "\\x1b[2J\\x9b\\x00\\udc80"),
    ],
)
def test_one_line_holds_nothing_that_a_terminal_obeys(text, line):
    assert one_line(text) == line
