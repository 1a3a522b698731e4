"""Resident memory of a training run on all of MNIST, epoch by epoch.

    python -m tests.long.memory --record                 # 5 epochs
    python -m tests.long.memory --epochs 3 --train_size 6000 --save_dir result

Other flags go to `capsulenet.py`, which runs as a process of its own. Twice a second
Linux is asked what is resident now (VmRSS) and what was at most (VmHWM, which is set
back when an epoch begins, so that each has a peak of its own). Nothing is asserted.
"""

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.long import results

SCRIPT = Path(__file__).parents[2] / "capsulenet.py"
PERIOD = 0.5  # seconds


def read_memory(pid: int) -> tuple[float, float] | None:
    """Resident memory now and at most, in MB; nothing if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
        return tuple(
            int(re.search(rf"{name}:\s*(\d+) kB", text)[1]) * 1024 / 1e6
            for name in ("VmRSS", "VmHWM")
        )
    except (OSError, TypeError):  # gone, or a zombie without memory
        return None


def forget_peak(pid: int) -> None:
    """Sets the process's VmHWM back to its VmRSS."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def watch(process: subprocess.Popen, output: Path) -> dict[str, dict[str, float]]:
    """Samples until the process ends: the last and the highest of each part, in MB."""
    parts, part = {}, "start-up"
    while process.poll() is None:
        memory = read_memory(process.pid)
        if memory:
            seen = parts.setdefault(part, {"last": 0.0, "peak": 0.0})
            seen.update(last=memory[0], peak=max(seen["peak"], memory[1]))
        text = output.read_text(errors="replace")
        begun = re.findall(r"^(?:Epoch (\d+)/|Wrote .*trained_model)", text, re.M)
        now = f"epoch {begun[-1]}" if begun and begun[-1] else part
        now = "test and pictures" if begun and not begun[-1] else now
        if now != part:
            part = now
            forget_peak(process.pid)
        time.sleep(PERIOD)
    return parts


def main(argv: list[str] | None = None) -> int:
    """Runs a training and reports; returns 1 if it failed."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], allow_abbrev=False
    )
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--save_dir", help="default: a temporary folder")
    parser.add_argument(
        "--record", action="store_true", help=f"into {results.PATH.name}"
    )
    args, flags = parser.parse_known_args(argv)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(tempfile.TemporaryDirectory(prefix="capsnet-"))
        save_dir = args.save_dir or f"{temporary}/run"
        arguments = ["--epochs", str(args.epochs), "--save_dir", save_dir, *flags]
        output = Path(temporary, "output.txt")
        with open(output, "wb") as file:
            process = subprocess.Popen(
                [sys.executable, SCRIPT, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        try:
            parts = watch(process, output)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            print(output.read_text(errors="replace"), end="", file=sys.stderr)
            return 1
    print(f"{'':18} {'at the end, MB':>15} {'peak, MB':>10}")
    for part, memory in parts.items():
        print(f"{part:18} {memory['last']:15.0f} {memory['peak']:10.0f}")
    if args.record:
        peaks = [(part, "peak resident MB", m["peak"]) for part, m in parts.items()]
        rows = [(part, outcome, round(peak)) for part, outcome, peak in peaks]
        given = arguments if args.save_dir else ["--epochs", str(args.epochs), *flags]
        said = " ".join(["python -m tests.long.memory", *given, "--record"])
        results.record("memory", rows, said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
