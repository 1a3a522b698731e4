"""The cases of `mutated_inputs.py`: valid files, what is done to them, what reads them.

A kind has a module of its own, and an entry in `mutated_inputs.KINDS`.
"""

import dataclasses
import gzip
import io
import os
import random
import zipfile
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np

Content = bytes | Callable[[str], None]  # what is written, or what makes it of a path
EXACT = "exact"  # a file that is there if all numbers have to be right


class WrongLoadError(Exception):
    """Something was loaded that is not what it has to be."""


@dataclasses.dataclass
class Case:
    """Files, and the command line that reads them.

    Attributes:
        files: Their contents by name; the folder of all is the current one.
        argv: The command line.
        what: What was done, for the reader of a report.
        refused: Whether only an error is right.
        exact: Whether, if something is loaded, all numbers have to be right.
        target: Which file random damage goes to.
        inner: What is packed in `target`, if it is: half of the damage goes there.
        pack: Makes the target of it.
    """

    files: dict[str, Content]
    argv: list[str]
    what: str = "valid"
    refused: bool = False
    exact: bool = False
    target: str = ""
    inner: bytes | None = None
    pack: Callable[[bytes], bytes] | None = None

    def write(self, folder: str) -> None:
        files = self.files | ({EXACT: b""} if self.exact else {})
        for name, content in files.items():
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if callable(content):
                content(path)
            else:
                with open(path, "wb") as file:
                    file.write(content)

    def change(self, content: Content, what: str, refused: bool = False) -> "Case":
        """The case with other content in its target, of which nothing is known."""
        files = self.files | {self.target: content}
        what = f"{self.what}, {self.target}: {what}"
        return dataclasses.replace(
            self, files=files, what=what, refused=refused, exact=False
        )

    def damaged(self, rng: random.Random) -> "Case":
        """The case after random damage."""
        if self.inner is not None and rng.random() < 0.5:
            data, what = damage(rng, self.inner)
            return self.change(self.pack(data), f"in it {what}")
        return self.change(*damage(rng, self.files[self.target]))


@dataclasses.dataclass
class Kind:
    """A kind of input.

    Attributes:
        valid: Makes a case of undamaged files; random damage starts there.
        structural: Make a damaged case each.
        run: Takes the place of `capsulenet.run` in the child: reads as it does, checks
            what was read, and ends before the network computes.
    """

    valid: Callable[[random.Random], Case]
    structural: list[Callable[[random.Random], Case]]
    run: Callable


# Damage to bytes.


def damage(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """Bytes after one to four random changes, and what these were."""
    said = []
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        change = rng.choice(DAMAGES)
        data = bytes(change(rng, bytearray(data)))
        said.append(change.__name__)
    return data, ", ".join(said)


def _block(rng: random.Random, data: bytearray) -> slice:
    """Some bytes, often few, and often near the start, where headers are."""
    length = min(len(data), int(2 ** rng.uniform(0, 10)))
    most = len(data) - length
    start = rng.randint(0, most if rng.random() < 0.5 else min(most, 64))
    return slice(start, start + length)


def flip_bits(rng, data):
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if data else 0):
        block = _block(rng, data)
        data[block.start] ^= 1 << rng.randrange(8)
    return data


def overwrite(rng, data):
    block = _block(rng, data)
    n = block.stop - block.start
    data[block] = rng.choice((bytes(n), b"\xff" * n, rng.randbytes(n)))
    return data


def set_number(rng, data):
    block = _block(rng, data)
    n = rng.choice((1, 2, 4, 8))
    number = rng.choice(NUMBERS) % 256**n
    data[block.start : block.start + n] = number.to_bytes(
        n, rng.choice(("big", "little"))
    )
    return data


def cut_end(rng, data):
    return data[: rng.randint(0, len(data))]


def cut_out(rng, data):
    del data[_block(rng, data)]
    return data


def insert(rng, data):
    at = _block(rng, data).start
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 100)))
    return data


DAMAGES = (flip_bits, overwrite, set_number, cut_end, cut_out, insert)
NUMBERS = (
    *(0, 1, 2, 3, 7, 16, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536),
    *(10**6, 10**8, 10**9, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63),
    2**64 - 1,
)


# What is no file, or no usual one.


def no_file(valid: Callable[[random.Random], Case], rng: random.Random) -> Case:
    """A case with something other than a file, or an empty one, as its target."""
    case, what = valid(rng), rng.choice([*SPECIALS])
    return case.change(SPECIALS[what], what, refused=True)


def _sparse(path: str) -> None:
    with open(path, "wb") as file:
        file.truncate(20 * 10**9)


SPECIALS: dict[str, Content] = {
    "empty": b"",
    "a folder": os.mkdir,
    "a pipe": os.mkfifo,
    "a link to itself": lambda path: os.symlink(os.path.basename(path), path),
    "a link to nothing": lambda path: os.symlink("nothing", path),
    "/dev/zero": lambda path: os.symlink("/dev/zero", path),
    "/dev/null": lambda path: os.symlink("/dev/null", path),
    "20 GB of zeros": _sparse,
}


# Compressed bytes.


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


@cache
def gzipped_zeros(megabytes: int) -> bytes:
    """Zeros as a gzip file of many members."""
    return gzipped(bytes(10**6)) * megabytes


def deflated_zeros(start: bytes, megabytes: int) -> bytes:
    """Bytes and many zeros as a raw deflate stream, made of copies of a piece."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(10**6)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed + piece * megabytes + packer.flush()


def zipped(
    members: dict[str, bytes],
    method: int = zipfile.ZIP_STORED,
    lies: dict[str, dict] | None = None,
) -> bytes:
    """A zip file.

    Args:
        members: Contents by name.
        method: How they are packed.
        lies: For the names of members, what the directory says of them instead: fields
            of `zipfile.ZipInfo`.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        for name, fields in (lies or {}).items():
            for field, value in fields.items():
                setattr(archive.getinfo(name), field, value)
    return file.getvalue()


def zip_bomb(members: dict, name: str, start: bytes, megabytes: int, size: int):
    """A zip file of which a member unpacks to many zeros.

    Args:
        members: The other members, and this one.
        name: Of the member.
        start: What it begins with.
        megabytes: Of the zeros behind that.
        size: What the directory says that it unpacks to, in bytes.
    """
    payload = deflated_zeros(start, megabytes)
    lies = {"compress_type": zipfile.ZIP_DEFLATED, "file_size": size, "CRC": 0}
    return zipped({**members, name: payload}, lies={name: lies})


# What is right.


def check_images(x, n_channels=(1, 3)) -> None:
    """Raises `WrongLoadError` unless these are images as the network takes them."""
    if x.dtype != np.float32 or x.ndim != 4 or 0 in x.shape:
        raise WrongLoadError(f"images: {x.dtype} {x.shape}")
    if x.shape[3] not in n_channels or not (x.min() >= 0 and x.max() <= 1):  # nor NaN
        raise WrongLoadError(f"images: {x.shape}, from {x.min()} to {x.max()}")


def check_dataset(data) -> None:
    """Raises `WrongLoadError` unless a data set is as `datasets.Dataset` says."""
    for x, y in data:
        check_images(x)
        if y.dtype != np.float32 or y.shape != (len(x), len(data.class_names)):
            raise WrongLoadError(f"labels: {y.dtype} {y.shape}")
        one_each = data.multi_label or (y.sum(axis=1) == 1).all()
        if not (((y == 0) | (y == 1)).all() and one_each):
            raise WrongLoadError("labels: not one-hot")
    if data.train[0].shape[1:] != data.test[0].shape[1:]:
        raise WrongLoadError("images of two shapes")
    if len(set(data.class_names)) != len(data.class_names):
        raise WrongLoadError(f"class names: {data.class_names[:5]}")
    for name in data.class_names:
        name.encode()


def load_dataset(options, own) -> None:
    """Reads a data set as `capsulenet.train_or_test` does."""
    from capsnet import session

    data, _ = session.load_data(options)
    check_dataset(data)
