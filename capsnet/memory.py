"""Untrusted data: the error that it ends in, and how much memory it may take."""

import unicodedata
from collections.abc import Iterator
from pathlib import Path

MAX_NAME = 255  # characters in the name of a class
ROOT = Path("/")  # of the files in which Linux says what there is


class DataError(ValueError):
    """Data that is missing, damaged or too little; one line, fit for the user."""


def one_line(text: str) -> str:
    """Text of any origin in one line, without what a terminal would obey."""
    text = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def is_class_name(text: str) -> bool:
    """Whether a name is short enough, and holds nothing that a terminal would obey."""
    return len(text) <= MAX_NAME and not any(
        unicodedata.category(c) in ("Cc", "Cs") for c in text
    )


def check_memory(needed: int, what: str) -> None:
    """Stops before memory runs out, where the system says how much there is.

    Args:
        needed: Bytes.
        what: Who needs them, in the plural.

    Raises:
        DataError: If more bytes are needed than are available.
    """
    available = available_memory()
    if available is not None and needed > available:
        raise DataError(
            f"{what} need about {needed / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are available; try a smaller --image_size, "
            "--grayscale, fewer images or a smaller --batch_size"
        )


def available_memory() -> int | None:
    """Bytes that can still be allocated; None where the system does not say.

    The least of what the machine, the limit of the process (`ulimit -v`) and those of
    its container (Linux's control groups) leave.
    """
    left = [*_of_machine(), *_of_process(), *_of_groups()]
    return max(0, min(left)) if left else None


def _of_machine() -> Iterator[int]:
    available = _fields(ROOT / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        yield 1024 * available


def _of_process() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _fields(ROOT / "proc/self/status").get("VmSize:")
    if limit != resource.RLIM_INFINITY and used is not None:
        yield limit - 1024 * used


def _of_groups() -> Iterator[int]:
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        top = ROOT / "sys/fs/cgroup"
        if not controllers:
            prefix, limit, used = "", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):  # version 1
            top /= "memory"
            prefix, limit, used = (
                "total_",
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        # Each group is bound by those that it is in; in a container, the path may be
        # the host's, and what can be seen is the container's group, at the top.
        group = top / path.strip().lstrip("/")
        while group != top.parent:
            sizes = [*_lines(group / limit), *_lines(group / used)]
            if len(sizes) == 2 and sizes[0].strip().isdecimal():  # else "max"
                stat = _fields(group / "memory.stat")
                # Cached files give way when memory is asked for.
                cache = (stat.get(f"{prefix}{s}active_file", 0) for s in ("", "in"))
                yield int(sizes[0]) - int(sizes[1]) + sum(cache)
            group = group.parent


def _fields(path: Path) -> dict[str, int]:
    """The whole numbers of a file of lines that start with a name and a number."""
    words = [line.split() for line in _lines(path)]
    return {w[0]: int(w[1]) for w in words if len(w) > 1 and w[1].isdecimal()}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
