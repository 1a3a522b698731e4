"""Draws the letters A to J in the fonts of a folder: pictures to train on.

    python examples/draw_letters.py /usr/share/fonts letters
    python capsulenet.py --dataset letters

Each font that has them, 500 at most, in a random order that is the same each time,
gives a picture of 28 x 28 a letter: black on white, at most 24 pixels wide and high.
"""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJ"
FONTS = 500
SIDE, BOX, SIZE = 28, 24, 24
# Grey levels, the mean over the pixels, by which any two letters of a font differ:
# fonts without Latin letters draw the same box for all.
LEAST_DIFFERENCE = 4


def draw(letter: str, font: ImageFont.FreeTypeFont) -> Image.Image | None:
    """A letter in the middle of a picture; None if there is nothing to see."""
    left, top, right, bottom = font.getbbox(letter)
    width, height = right - left, bottom - top
    if width < 2 or height < 4:
        return None
    drawn = Image.new("L", (width, height), 255)
    ImageDraw.Draw(drawn).text((-left, -top), letter, font=font, fill=0)
    scale = min(BOX / width, BOX / height, 1)
    sides = max(1, int(width * scale)), max(1, int(height * scale))
    drawn = drawn.resize(sides, Image.Resampling.LANCZOS)
    picture = Image.new("L", (SIDE, SIDE), 255)
    picture.paste(drawn, ((SIDE - drawn.width) // 2, (SIDE - drawn.height) // 2))
    return picture


def draw_all(path: Path) -> list[Image.Image] | None:
    """All letters of a font; None if it lacks them or cannot be read."""
    try:
        font = ImageFont.truetype(path, SIZE)
        pictures = [draw(letter, font) for letter in LETTERS]
    except OSError:
        return None
    if None in pictures:
        return None
    pixels = [np.asarray(picture, "float32") for picture in pictures]
    pairs = itertools.combinations(pixels, 2)
    alike = min(np.abs(a - b).mean() for a, b in pairs) < LEAST_DIFFERENCE
    return None if alike else pictures


def refuse(message: str) -> None:
    print(message, file=sys.stderr)
    sys.exit(2)


def main(fonts: str, folder: str) -> None:
    found = Path(fonts).rglob("*")
    paths = sorted(path for path in found if path.suffix.lower() in (".ttf", ".otf"))
    random.Random(0).shuffle(paths)
    drawn = filter(None, map(draw_all, paths))
    n = 0
    for n, pictures in enumerate(itertools.islice(drawn, FONTS), start=1):
        for letter, picture in zip(LETTERS, pictures):
            path = Path(folder, letter, f"{n:03}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    if not n:
        refuse(f"expected a folder with fonts that have A to J, received {fonts}")
    print(f"Wrote {len(LETTERS)} letters of {n} fonts to {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        received = " ".join(sys.argv[1:]) or "nothing"
        refuse(f"expected two folders, FONTS and where to write, received {received}")
    main(*sys.argv[1:])
