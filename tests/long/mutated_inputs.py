"""Damaged and forged files, each read by the command line in a process of its own.

    python -m tests.long.mutated_inputs                    # 500 of each kind; records
    python -m tests.long.mutated_inputs --kinds idx --seed 3 --only 17

Half of the cases of a kind are structural (headers, sizes, types, folders, bombs), the
other half random damage to valid files. Each has to end in a correct load, or in one
line and status 2; in 60 seconds and 4 GB of memory, and with nothing executed that the
file asks for. What a library crashes on is counted apart. Case i of a kind depends on
the seed, the kind and i alone.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.load()

import argparse
import collections
import contextlib
import dataclasses
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import capsulenet
from capsnet import command_line, memory
from tests.long import results
from tests.long.cases import Case, WrongLoadError
from tests.long.kind_idx import IDX
from tests.long.kind_image import IMAGE
from tests.long.kind_npz import NPZ
from tests.long.kind_run_state import RUN_STATE
from tests.long.kind_weights import WEIGHTS

KINDS = {"idx": IDX, "npz": NPZ, "image": IMAGE}
KINDS |= {"weights": WEIGHTS, "run_state": RUN_STATE}
SECONDS = 60
MEMORY = 4_000_000_000  # bytes in memory at any time
GUARD = 3_000_000_000  # bytes that a child may map on top of TensorFlow
CANARY = "stolen"  # what forged files try to create, in the current folder
WRONG_LOAD = 70  # an exit status

HALVES = ("structural", "random")
# What is no failure; the last one is that of a library, and is reported.
FINE = ("clear error", "loaded", "library crash")


@dataclasses.dataclass
class Outcome:
    """What became of a case: one of `FINE` or what went wrong, and what was said."""

    name: str
    said: str
    seconds: float
    peak: int


def make_case(kind: str, seed: int, index: int) -> tuple[str, Case]:
    """`structural` or `random`, and the case."""
    rng = random.Random(f"{seed} {kind} {index}")
    makers = KINDS[kind].structural
    if index % 2 == 0:  # each in turn, so that a few cases have had most of them
        return "structural", makers[index // 2 % len(makers)](rng)
    return "random", KINDS[kind].valid(rng).damaged(rng)


def run_case(case: Case, run: Callable, seconds: float = SECONDS) -> Outcome:
    """Runs a case in a child process that has its files as the current folder."""
    folder = tempfile.mkdtemp(prefix="capsnet-")
    try:
        files = os.path.join(folder, "files")
        os.mkdir(files)
        case.write(files)
        return _run_child(case, run, folder, seconds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_child(case: Case, run: Callable, folder: str, seconds: float) -> Outcome:
    output = os.path.join(folder, "output")
    ended, ends_with_child = os.pipe()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _be_child(case, run, folder, output)
    os.close(ends_with_child)
    in_time = bool(select.select([ended], [], [], seconds)[0])
    os.close(ended)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    took = time.perf_counter() - start
    with open(output, "rb") as file:
        said = file.read(10_000).decode(errors="backslashreplace")
    peak = 1024 * usage.ru_maxrss
    stolen = os.path.lexists(os.path.join(folder, "files", CANARY))
    name = _classify(status, said, in_time, peak, stolen)
    if name == "loaded" and case.refused:
        name, said = "wrong load", "this should have been refused"
    return Outcome(name, said, took, peak)


def _be_child(case: Case, run: Callable, folder: str, output: str) -> None:
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sink = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        # Whatever they were, also under a test runner.
        sys.stdout = os.fdopen(1, "w", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
        os.chdir(os.path.join(folder, "files"))
        # What really was in memory is measured; this guards the machine, and the
        # program is told that it is all that there is.
        limit = _mapped() + GUARD
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        memory.available_memory = lambda: limit - _mapped()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        command_line.runs_on_cpu = lambda: True  # a look at the devices is not for here
        status = command_line.main(case.argv, capsulenet.build_parser, run)
    except WrongLoadError as error:
        print(error, file=sys.stderr)
        status = WRONG_LOAD
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(status)


def _mapped() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _classify(status: int, said: str, in_time: bool, peak: int, stolen: bool) -> str:
    if stolen:
        return "code run"
    if not in_time:
        return "hang"
    if peak > MEMORY:
        return "over 4 GB"
    if os.WIFSIGNALED(status):
        return "library crash"
    code = os.WEXITSTATUS(status)
    # What `errors.warn` says is no noise, and stands before the one line of an error;
    # nor is what was chosen for pictures of several sizes.
    said = re.sub(r"^(warning|Pictures of [\w ]+): .*\n", "", said, flags=re.M)
    if code == WRONG_LOAD:
        return "wrong load"
    if code == 0:
        return "loaded" if not said else "loaded, with noise"
    line = said.removesuffix("\n")
    if code == 2 and ": error: " in line and line.isprintable():
        # An allocation failed half-way. Where NumPy is "unable to allocate" an array
        # that a header promises, it says so before it reads.
        late = ("MemoryError", "Cannot allocate memory", "out of memory")
        return "late error" if any(word in line for word in late) else "clear error"
    return "traceback" if "Traceback" in said else "unclear error"


def run_kind(kind: str, seed: int, indices, verbose: bool) -> tuple[dict, list[str]]:
    """Counts by case and outcome, and what is to be reported."""
    counts, reports = collections.Counter(), []
    start = time.perf_counter()
    slowest = largest = 0
    for index in indices:
        half, case = make_case(kind, seed, index)
        outcome = run_case(case, KINDS[kind].run)
        counts[half, outcome.name] += 1
        slowest = max(slowest, outcome.seconds)
        largest = max(largest, outcome.peak)
        if verbose:
            print(f"{index} {case.what}: {outcome.name}\n    {outcome.said.strip()}")
        if outcome.name not in ("clear error", "loaded"):
            reports.append(
                f"{outcome.name}: {case.what}\n    --kinds {kind} --seed {seed} "
                f"--only {index}\n    {outcome.said.strip()[-1000:]}"
            )
    names = sorted({name for _, name in counts})
    totals = {name: sum(counts[half, name] for half in HALVES) for name in names}
    said = ", ".join(f"{count} {name}" for name, count in totals.items())
    print(
        f"{kind}: {counts.total()} cases, {said} "
        f"({time.perf_counter() - start:.0f} s, slowest {slowest:.1f} s, "
        f"at most {largest / 1e9:.2f} GB)",
        flush=True,
    )
    return counts, reports


def main(argv: list[str] | None = None) -> int:
    """Runs the cases; returns 1 if one failed."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], allow_abbrev=False
    )
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--cases", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="INDEX", help="a single case")
    parser.add_argument("--verbose", action="store_true", help="print each case")
    parser.add_argument(
        "--record", action="store_true", help=f"into {results.PATH.name}"
    )
    args = parser.parse_args(argv)
    indices = range(args.cases) if args.only is None else [args.only]
    verbose = args.verbose or args.only is not None
    failed = False
    for kind in args.kinds:
        counts, reports = run_kind(kind, args.seed, indices, verbose)
        for report in reports:
            print(report, flush=True)
        failed = failed or any(name not in FINE for _, name in counts)
        if args.record:
            results.record(
                f"mutated inputs, {kind}",
                [(f"{kind}, {key[0]}", key[1], counts[key]) for key in sorted(counts)],
                f"python -m tests.long.mutated_inputs --kinds {kind} "
                f"--cases {args.cases} --seed {args.seed} --record",
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
