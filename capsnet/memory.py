"""How much memory there is, and who needs more."""

import re
from pathlib import Path

from capsnet.errors import DataError

ROOT = Path("/")  # of the files in which Linux says what there is


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

    The least of what the machine and the limit of its container leave.
    """
    left = [n for n in (_of_machine(), _of_container()) if n is not None]
    return max(0, min(left)) if left else None


def _of_machine() -> int | None:
    found = re.search(r"^MemAvailable: *(\d+) kB", _read("proc/meminfo"), re.M)
    return 1024 * int(found[1]) if found else None


def _of_container() -> int | None:
    """What control groups (version 2) leave; a container's own is at the top."""
    limit = _read("sys/fs/cgroup/memory.max").strip()
    used = _read("sys/fs/cgroup/memory.current").strip()
    if not (limit.isdecimal() and used.isdecimal()):  # no container, or one without
        return None
    # Cached files give way when memory is asked for.
    stat = _read("sys/fs/cgroup/memory.stat")
    cached = re.findall(r"^(?:in)?active_file (\d+)$", stat, re.M)
    return int(limit) - int(used) + sum(map(int, cached))


def _read(path: str) -> str:
    try:
        return (ROOT / path).read_text(errors="replace")
    except OSError:
        return ""
