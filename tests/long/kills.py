"""Runs that are killed again and again, and have to end as if nothing had happened.

    python -m tests.long.kills --record              # 300 kills, 40 signals
    python -m tests.long.kills --kills 20 --signals 0 --seed 3
    python -m tests.long.kills --seed 3 --only 7     # round 7 again

A round is one run of four epochs on a few dozen digits in a folder of its own. It is
killed (SIGKILL), goes on with `--resume` (or starts anew where no epoch is finished),
is killed again, and at last is let finish. In every third round the folder holds an
earlier run, and `--overwrite` starts. After each kill all files must be whole. At the
end the log must be that of a run that was never interrupted (but for the two columns
of time), and weights and pictures the same to the last bit. A round that fails loses
all its kills. Rounds of signals are the same with SIGINT and SIGTERM: a run ends with
status 130 or 143 and says what is finished.

A kill comes from outside at a random moment, or from within at an exact point of the
writing of a file (`processes.STEPS`). It is counted where the run really was, which
`processes` says, not where it was meant:

    start-up        before the first epoch of this process
    first epoch     in epoch 1, until its state is written
    between         later, and not in the writing of a file; also testing at the end
    while writing   from before a file is opened until its rename is safe, and from the
                    run state through log.csv to log.png

A round depends on the seed and its number; the moments from outside depend on the
machine, too. SIGKILL leaves what was written to the system: whether `fsync` is called
where a power cut asks for it is for `tests/test_resume.py`.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.load()

import argparse
import collections
import csv
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from PIL import Image

from capsnet import datasets, report
from capsnet.weights import read_info, read_run
from tests.conftest import read_weights, write_digits
from tests.long import results
from tests.long.processes import (
    BETWEEN,
    FIRST_EPOCH,
    REMOVING,
    START_UP,
    STEPS,
    WRITING,
    Forked,
    Point,
)

EPOCHS = 4
OPTIONS = ["--epochs", EPOCHS, "--batch_size", 20]
# Rounds take turns: the best weights are kept, or a moving average of them, with a
# learning rate that falls from step to step.
VARIANTS = (["--validation_size", 20], ["--recipe", "modern"])
STATE, LOG, MODEL = "run_state.h5", "log.csv", "trained_model.h5"
PICTURES = ("log.png", *report.FILES[1:], "manipulate-5.png")
FILES = (STATE, LOG, MODEL, "test.csv", *PICTURES)
TIMES = ("seconds", "images_per_second")
# Phases that are aimed at, in parts of the kills: as long as no epoch is finished, and
# when one is.
AIMS = (
    {START_UP: 0.12, FIRST_EPOCH: 0.4, BETWEEN: 0.08, WRITING: 0.4},
    {START_UP: 0.1, BETWEEN: 0.3, WRITING: 0.6},
)


class LostError(AssertionError):
    """A run did not survive."""


def ensure(condition, message: str) -> None:
    if not condition:
        raise LostError(message)


@dataclasses.dataclass
class Reference:
    """The run that was never interrupted, and an earlier one to overwrite.

    Args:
        variant: Its further flags.
        folder: Of the run.
        data: Its --data_dir.
        earlier: Folder of a run with another seed.
        seconds: How long each part takes, by the event that begins it.
    """

    variant: list
    folder: Path
    data: Path
    earlier: Path
    seconds: dict[str, float]

    def __post_init__(self):
        self.rows = read_log(self.folder / LOG)
        self.weights = read_weights(self.folder / MODEL)
        self.pictures = {name: (self.folder / name).read_bytes() for name in PICTURES}
        self.earlier_files = {
            name: (self.earlier / name).read_bytes() for name in FILES
        }

    def arguments(self, save_dir: Path) -> list[str]:
        return arguments(self.variant, self.data, save_dir)


def arguments(variant: list, data: Path, save_dir: Path, seed: int = 0) -> list[str]:
    flags = [*OPTIONS, *variant, "--seed", seed, "--data_dir", data]
    return [*map(str, flags), "--save_dir", str(save_dir)]


def read_log(path: Path) -> list[dict]:
    """The rows of a log, without their times."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    whole = all(None not in row and None not in row.values() for row in rows)
    ensure(rows and whole, f"{path.name}: cut")
    return [{k: float(v) for k, v in row.items() if k not in TIMES} for row in rows]


def prepare(folder: Path) -> list[Reference]:
    """Makes the data, runs that are never interrupted, and one to overwrite."""
    data = write_digits(folder / "data", datasets.load_dataset(), 60, 20)
    earlier = folder / "earlier"
    run_forked(arguments(VARIANTS[0], data, earlier, seed=1), earlier)
    references = []
    for number, variant in enumerate(VARIANTS):
        save_dir = folder / f"reference{number}"
        seconds = run_forked(arguments(variant, data, save_dir), save_dir)
        references.append(Reference(variant, save_dir, data, earlier, seconds))
    return references


def run_forked(arguments: list[str], save_dir: Path) -> dict[str, float]:
    """A whole run; returns how long each part takes, at most, by what begins it."""
    run = Forked(arguments, f"{save_dir}.txt")
    ensure(run.wait() == 0, f"{save_dir}.txt: the run failed")
    seconds = collections.defaultdict(float)
    for (name, start), (_, end) in zip(run.events, run.events[1:]):
        seconds[name] = max(seconds[name], end - start)
    return seconds


# What is checked.


def finished_epochs(folder: Path) -> int:
    """Epochs of the run under test that are finished, 0 for an earlier run."""
    if not (folder / STATE).exists():
        return 0
    run = read_run(str(folder / STATE))
    return len(run["rows"]) if run["arguments"]["training"]["seed"] == 0 else 0


def check_files(folder: Path, reference: Reference, replaces: bool) -> None:
    """Makes sure that all files are whole, and fit each other."""
    names = {name for name in os.listdir(folder) if not name.startswith(".")}
    ensure(names <= set(FILES), f"unknown files: {names - set(FILES)}")
    n = finished_epochs(folder)
    if replaces and n == 0:
        for name in FILES:
            ensure(
                name in names
                and (folder / name).read_bytes() == reference.earlier_files[name],
                f"{name} of the earlier run was touched before an epoch was finished",
            )
        return
    if replaces and n == 1:  # it goes when the first state is safe
        names = {
            name
            for name in names
            if (folder / name).read_bytes() != reference.earlier_files[name]
        }
    if STATE in names:
        rows = read_run(str(folder / STATE))["rows"]
        rows = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        ensure(rows == reference.rows[:n], f"{STATE}: other rows")
        read_weights(folder / STATE)
    else:
        ensure(not names, f"no {STATE}, but {names}")
    if LOG in names:
        rows = read_log(folder / LOG)
        ensure(len(rows) in (n, n - 1), f"{LOG}: {len(rows)} epochs, state: {n}")
        ensure(rows == reference.rows[: len(rows)], f"{LOG}: other rows")
    else:
        ensure(n <= 1, f"no {LOG} after epoch {n}")
    if MODEL in names:
        check_model(folder, reference)
    for name in names & set(PICTURES):
        with Image.open(folder / name) as picture:
            picture.load()


def check_model(folder: Path, reference: Reference) -> None:
    read_info(str(folder / MODEL))
    weights = read_weights(folder / MODEL)
    ensure(list(weights) == list(reference.weights), f"{MODEL}: other arrays")
    for name, weight in weights.items():
        same = weight.tobytes() == reference.weights[name].tobytes()
        ensure(same, f"{MODEL}: {name} differs")


def check_end(folder: Path, reference: Reference) -> None:
    """Makes sure that a finished run is the one that was never interrupted."""
    check_files(folder, reference, replaces=False)
    ensure(read_log(folder / LOG) == reference.rows, f"{LOG} differs")
    check_model(folder, reference)
    for name, content in reference.pictures.items():
        ensure((folder / name).read_bytes() == content, f"{name} differs")
    left = {name for name in os.listdir(folder) if name[0] == "."} - {".lock"}
    ensure(not left, f"left behind: {left}")


# When it is ended.


@dataclasses.dataclass
class Ending:
    """How a run is ended.

    Args:
        signal: SIGKILL, SIGINT or SIGTERM.
        point: Where it kills itself, or
        event: what it has to tell before it is ended from outside,
        part: and how much of what it does then is done, 0 to 1.
    """

    signal: int
    point: Point | None = None
    event: str | None = None
    part: float = 0.0

    def how(self) -> str:
        return "exact point" if self.point else "random moment"


def choose_ending(rng: random.Random, done: int, number: int, replaces: bool) -> Ending:
    """Chooses how a run is ended that goes on after `done` epochs."""
    part = rng.random()
    if number != signal.SIGKILL:
        return Ending(number, event=_choose_event(rng, done), part=part)
    aims = AIMS[done > 0]
    (phase,) = rng.choices(list(aims), list(aims.values()))
    if phase == WRITING:
        point = _choose_point(rng, done, replaces)
        if rng.random() < 0.7 or point.epoch == 0:
            return Ending(number, point)
        return Ending(number, event=f"writing {point.file}", part=part)
    event = "start"
    if phase != START_UP:
        event = _choose_event(rng, done if phase == FIRST_EPOCH else max(done, 1))
    return Ending(number, event=event, part=part)


def _choose_event(rng, done):
    """An epoch soon to come, or the test at the end."""
    if done == 0:
        return "epoch 1"
    if done == EPOCHS:
        return f"written {MODEL}"
    return f"epoch {rng.randint(done + 1, min(done + 2, EPOCHS))}"


def _choose_point(rng, done, replaces):
    names = [MODEL, *PICTURES[1:]]
    epoch = EPOCHS if done < EPOCHS else 0
    if done < EPOCHS and rng.random() < 0.8:
        names = [STATE, STATE, LOG, PICTURES[0]]
        epoch = rng.randint(done + 1, min(done + 2, EPOCHS))
    if done > 0 and rng.random() < 0.15:
        names, epoch = [LOG, PICTURES[0]], 0
    name = rng.choice(names)
    if replaces and done == 0 and rng.random() < 0.4:
        return Point("", REMOVING, 1, rng.randint(1, len(FILES) - 1))
    step = rng.choice(STEPS)
    writes = {STATE: 1, MODEL: 1, LOG: 2}.get(name, 6)
    number = rng.randint(1, writes) if step == STEPS[1] else 1
    return Point(name, step, epoch, number)


def end(run: Forked, ending: Ending, reference: Reference) -> bool:
    """Waits for the moment and sends the signal; returns False if it ended before."""
    if ending.point or not run.wait_for(ending.event):
        return False
    seconds = reference.seconds[ending.event]
    first = next((name for name, _ in run.events if "epoch" in name), None)
    if ending.event == first:  # it builds its graph first
        seconds = reference.seconds["epoch 1"]
    if not run.is_at_work_after(ending.part * seconds):
        return False
    os.kill(run.pid, ending.signal)
    return True


# Rounds.


def run_round(
    number: int, seed: int, folder: Path, reference: Reference, signals: bool
) -> tuple[list[tuple[str, str]], str | None]:
    """A run that is ended several times, and then let finish.

    Returns:
        (phase or signal, how) for each time that it was ended; what was wrong, if
        anything was.
    """
    kind = "signals" if signals else "kills"
    rng = random.Random(f"{seed} {kind} {number}")
    replaces = number % 3 == 2
    if replaces:
        shutil.copytree(reference.earlier, folder)
    output, endings = f"{folder}.txt", []
    try:
        for _ in range(rng.randint(4, 9)):
            if not _end_once(
                rng, folder, output, reference, replaces, signals, endings
            ):
                break
        else:
            flags = _arguments(folder, reference, replaces)
            ensure(Forked(flags, output).wait() == 0, "it did not finish")
        check_end(folder, reference)
    except Exception as error:  # whatever it is, it is not to end the other rounds
        return endings, f"{type(error).__name__}: {error}"
    return endings, None


def _arguments(folder, reference, replaces):
    done = finished_epochs(folder)
    mode = ["--resume"] if done else ["--overwrite"] if replaces else []
    return [*mode, *reference.arguments(folder)]


def _end_once(rng, folder, output, reference, replaces, signals, endings) -> bool:
    """Runs until the end that is chosen; returns False if the run finished before."""
    done = finished_epochs(folder)
    flags = _arguments(folder, reference, replaces)
    number = signal.SIGKILL
    if signals:
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
    ending = choose_ending(rng, done, number, replaces)
    with open(output, "ab") as file:  # to read when it is lost
        file.write(f"[{ending}]\n".encode())
    before = os.path.getsize(output)
    run = Forked(flags, output, ending.point)
    sent = end(run, ending, reference)
    status = run.wait()
    if status == 0:
        late = not sent or run.has_told("late")
        ensure(not signals or late, f"{number!r} was swallowed")
        return False
    printed = Path(output).read_bytes()[before:].decode()
    expected = -number if number == signal.SIGKILL else 128 + number
    ensure(status == expected, f"{ending}: status {status}")
    case = run.phase() if number == signal.SIGKILL else signal.Signals(number).name
    endings.append((case, ending.how()))
    if folder.exists():
        check_files(folder, reference, replaces)
    if signals:
        _check_goodbye(folder, printed)
    return True


def _check_goodbye(folder, printed):
    """A run that a signal ended says what is finished, and leaves nothing behind."""
    ensure("Traceback" not in printed, "a traceback")
    n = 0
    if folder.exists():
        n = finished_epochs(folder)
        left = {name for name in os.listdir(folder) if name[0] == "."} - {".lock"}
        ensure(not left, f"left behind: {left}")
    if "CapsNet" in printed:  # else it did not get as far as its first line
        expected = "no epoch was finished"
        if n:
            expected = f"epoch {n} is the last one finished, --resume --save_dir "
        line = printed.splitlines()[-1]
        ensure(f"interrupted; {expected}" in line, f"epoch {n}, but it says: {line}")


def study(args, references: list[Reference], wanted: int, signals: bool) -> int:
    """Runs rounds until enough ends are counted; returns how many are lost."""
    counts = collections.Counter()
    rounds = range(10**6) if args.only is None else [args.only]
    for number in rounds:
        if counts.total() >= wanted:
            break
        reference = references[number % len(references)]
        folder = reference.folder.parent / f"{'s' if signals else 'k'}{number}"
        endings, lost = run_round(number, args.seed, folder, reference, signals)
        outcome = "lost" if lost else "survived"
        if lost:
            kind = "--kills 0" if signals else "--signals 0"
            print(f"lost: round {number} (--seed {args.seed} {kind} --only {number})")
            print(f"    {lost}\n    " + Path(f"{folder}.txt").read_text()[-3000:])
            endings = endings or [("none", "none")]  # it counts nevertheless
        counts.update((*ending, outcome) for ending in endings)
        print(f"round {number}: {counts.total()} of {wanted}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.txt").unlink(missing_ok=True)
    rows = [
        (f"{case}, {how}", outcome, n) for (case, how, outcome), n in counts.items()
    ]
    for case, outcome, n in sorted(rows):
        print(f"{case:30} {outcome:9} {n:4}")
    if args.record:
        flags = f"--kills {args.kills} --signals {args.signals} --seed {args.seed}"
        command = f"python -m tests.long.kills {flags} --record"
        results.record("signals" if signals else "kills", sorted(rows), command)
    return sum(n for _, outcome, n in rows if outcome == "lost")


def main(argv: list[str] | None = None) -> int:
    """Runs the rounds; returns 1 if a run was lost."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--signals", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="ROUND", help="a single round")
    parser.add_argument(
        "--record", action="store_true", help=f"into {results.PATH.name}"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="capsnet-") as folder:
        references = prepare(Path(folder))
        lost = 0
        for wanted, signals in ((args.kills, False), (args.signals, True)):
            if wanted:
                lost += study(args, references, wanted, signals)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
