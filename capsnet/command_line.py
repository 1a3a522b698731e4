"""From the command line to options, and what is wrong with them before it costs."""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable

from capsnet import backend, datasets
from capsnet.callbacks import DivergedError
from capsnet.errors import DataError, UsageError, one_line, shorten
from capsnet.flags import PRETRAINED, Parser
from capsnet.interrupts import Interrupted, handle_signals, raise_interrupted
from capsnet.options import TEXT, Data, Options, Training
from capsnet.recipes import RECIPES
from capsnet.run_folder import MODEL, STATE, RunFolder, check_is_writable
from capsnet.weights import ModelFileError, read_info, read_run

MAY_CHANGE = {"epochs", "stop_at", "data_dir"}  # when a run goes on
OURS = {"published", "pretrained"}  # folders in ./result that no run takes unasked
# What ends the script with one line and exit status 2.
USER_ERRORS = (UsageError, DataError, ModelFileError, OSError)
USES = ("predict", "export", "explore", "export_page")  # of a model without training
# Flags that ask for something which other modes do not do.
ONLY_IN = {
    **dict.fromkeys(("features", "digit"), {"train", "test"}),
    **dict.fromkeys(("show_batch", "debug"), {"train"}),
}
PIPE = 13  # SIGPIPE, which Windows does not have
OF_TRAINING, OF_DATA = (
    {field.name for field in dataclasses.fields(group)} for group in (Training, Data)
)
SHARED = {*OF_TRAINING, *OF_DATA, "weights", "save_dir", "debug", "show_batch"}
SHARED |= {"testing", "resume", "overwrite"}


def read_options(
    parser: Parser, argv: list[str] | None = None
) -> tuple[Options, argparse.Namespace]:
    """What the command line asks for, with all that it leaves open filled in.

    What was not given comes from the run that goes on, from what the script sets, from
    the model file or from the recipe, in this order. Nothing is written that stays.

    Args:
        parser: The script's flags.
        argv: The arguments; None for those of the process.

    Returns:
        The options, and the flags that only this script has.

    Raises:
        UsageError, ModelFileError: If something makes no sense.
    """
    own = parser.parse_args(argv)
    for name, value in vars(own).items():
        if value == "":  # as of a variable of the shell that is not set
            raise UsageError(f"--{name}: expected a value, received an empty one")
    if getattr(own, "explain", False) and not own.predict:
        raise UsageError("--explain: expected pictures to explain, --predict IMG ...")
    exported = getattr(own, "export", None) or "no --export"
    if getattr(own, "half", False) and not exported.lower().endswith(".onnx"):
        raise UsageError(f"--half: expected --export FILE.onnx, received {exported}")
    given = {name: vars(own).pop(name) for name in SHARED if name in own}
    if "image_size" in given:
        given["image_size"] = tuple(given["image_size"])
    if given.get("debug") and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--debug needs TensorBoard: pip install tensorboard")
    if given.get("resume"):
        options = _resume(parser, given)
    else:
        mode = "test" if given.get("testing") else "train"
        used = {name for name in USES if getattr(own, name, None)}
        if used:
            mode = "use"
        if used & {"explore", "export_page"}:
            given.setdefault("weights", PRETRAINED)
        options = _begin(parser, given, mode)
    for name, modes in ONLY_IN.items():
        if options.mode not in modes and (given | vars(own)).get(name):
            does = (
                "-t" if options.mode == "test" else "--predict, --export or --explore"
            )
            raise UsageError(f"--{name} has no effect with {does}")
    if options.mode != "use" or own.predict:  # other uses name a place of their own
        check_is_writable(options.folder.path)
    return options, own


def _resume(parser: Parser, given: dict) -> Options:
    """The options of the run in the folder, with those that were given."""
    path = given.get("save_dir") or parser.save_dir
    path = path or default_save_dir(given.get("dataset"))
    begun = read_begun(RunFolder(path, parser.results))
    names = {*OF_TRAINING, *OF_DATA, "weights"}
    options = go_on(begun, _part(given, names))
    return dataclasses.replace(
        options,
        debug="debug" in given,
        show_batch="show_batch" in given,
        given=frozenset(names),
    )


def read_begun(folder: RunFolder) -> Options:
    """The options with which the run in a folder was begun.

    Raises:
        UsageError: If there is none.
        ModelFileError: If its state is damaged.
    """
    state = folder.file(STATE)
    if not os.path.lexists(state):
        raise UsageError(f"--resume: there is no run to go on with, no {state}")
    run = read_run(state)
    folder.finished = len(run["rows"])
    options = options_from_json(run["arguments"], folder, state)
    return dataclasses.replace(options, begun=run, info=read_info(state))


def go_on(begun: Options, given: dict) -> Options:
    """A run that was begun, with what may change in it.

    Args:
        begun: Of `read_begun`.
        given: Fields of its training and data, and its weights, by name.

    Raises:
        UsageError: If they contradict the run.
    """
    folder, epochs = begun.folder, begun.training.epochs
    earlier = {**vars(begun.training), **vars(begun.data), "weights": begun.weights}
    for name in sorted(given.keys() - MAY_CHANGE):
        both = {given[name], earlier[name]}
        # Files may have another path by now: their contents are compared.
        is_moved = name == "dataset" and both.isdisjoint(datasets.NAMED)
        if len(both) > 1 and not is_moved:
            raise UsageError(
                f"--{name}: expected {earlier[name]}, with which the run in "
                f"{folder.path} was begun, received {given[name]}"
            )
    training = dataclasses.replace(begun.training, **_part(given, OF_TRAINING))
    if training.lr_decay is None and training.epochs != epochs:
        raise UsageError(
            f"--epochs: expected {epochs}, at the end of which the learning rate of "
            f"this run is zero, received {training.epochs}"
        )
    if training.epochs < folder.finished:
        raise UsageError(
            f"--epochs: expected at least {folder.finished}, as many are finished, "
            f"received {training.epochs}"
        )
    data = dataclasses.replace(begun.data, **_part(given, OF_DATA))
    return dataclasses.replace(begun, training=training, data=data)


def continued(options: Options) -> Options:
    """The run that was begun in the folder with these options, or they, if none was.

    Raises:
        UsageError: If it was begun with others.
        ModelFileError: If its state is damaged.
    """
    if not os.path.exists(options.folder.file(STATE)):
        return options
    values = {**vars(options.training), **vars(options.data)}
    if values["lam_recon"] is None:  # what the run has settled by its images
        del values["lam_recon"]
    given = {**_part(values, OF_TRAINING | OF_DATA), "weights": options.weights}
    return go_on(read_begun(options.folder), given)


def options_from_json(values: dict, folder: RunFolder, path: str) -> Options:
    """What `Options.to_json` made, of a file from anywhere.

    Args:
        values: An object of JSON.
        folder: Of the options.
        path: The file that it is of.

    Raises:
        ModelFileError: If no command line could have made them.
    """
    groups = {"training": OF_TRAINING, "data": OF_DATA}
    differing = values.keys() ^ {*groups, "weights"}
    for name, expected in groups.items():
        found = values.get(name)
        differing |= (found.keys() if isinstance(found, dict) else set()) ^ expected
    if differing:
        raise ModelFileError(
            f"{path}: expected a run of this version, found one of another: they "
            f"differ in {shorten([name[:100] for name in sorted(differing)])}"
        )
    data, weights = dict(values["data"]), values["weights"]
    if isinstance(data["image_size"], list):
        data["image_size"] = tuple(data["image_size"])
    try:
        if weights is not None and not TEXT.accepts(weights):
            raise UsageError(f"--weights: expected {TEXT.expected}")
        training = Training(**values["training"])
        return Options(folder, "train", training, Data(**data), weights=weights)
    except UsageError as error:
        raise ModelFileError(f"{path}: damaged run state: {error}") from error


def _begin(parser: Parser, given: dict, mode: str) -> Options:
    """The options of a new run, of a test or of the use of a model.

    What no flag says is, in this order, as the model file has it (what its network
    needs), as the script has it, or as the recipe has it: that of the model file or, if
    there is none, `seed` for MNIST and `pictures` for other data.
    """
    save_dir = given.get("save_dir") or parser.save_dir
    weights = given.get("weights")
    if mode != "train" and weights is None:
        save_dir = save_dir or default_save_dir(given.get("dataset"))
        weights = os.path.join(save_dir, MODEL)
        if not os.path.exists(weights):
            raise UsageError(
                f"there is no {weights}; train a model first, or name one with -w"
            )
    info = {} if weights is None else read_info(weights)
    dataset = given.get("dataset") or info.get("dataset")
    folder = RunFolder(
        save_dir or default_save_dir(dataset),
        parser.results,
        given.get("overwrite", False),
    )
    if mode == "train":
        folder.check_is_free()
    known = "seed" if dataset in (None, "mnist") else "pictures"
    # A training on other images is another one, with the network of the file.
    if mode != "train" or dataset == info.get("dataset", "mnist"):
        known = info.get("recipe", known)
    recipe = RECIPES[given.get("recipe", known)]
    numbers = {"routings": info.get("routings", 3), **parser.training}
    if weights is not None:
        # Files of earlier versions do not say it.
        numbers["architecture"] = info.get("architecture", "paper")
        numbers["normalize"] = bool(info.get("normalization"))
        if given.get("normalize", numbers["normalize"]) != numbers["normalize"]:
            no = "" if numbers["normalize"] else "no-"
            raise UsageError(
                f"expected --{no}normalize, as {weights} was trained, received its "
                "opposite"
            )
    training = dataclasses.replace(recipe, **numbers | _part(given, OF_TRAINING))
    if training.freeze and (weights is None or mode != "train"):
        raise UsageError("--freeze: expected a training that starts from -w FILE")
    data = Data()
    if mode == "use":
        for name in sorted(_part(given, OF_DATA)):
            raise UsageError(
                f"--{name} has no effect with --predict, --export or --explore, as "
                "the model file says what is needed"
            )
    else:
        data = _settle_data(given, info, weights, mode == "test", training.seed)
    return Options(
        folder,
        mode,
        training,
        data,
        weights=weights,
        info=info,
        debug=given.get("debug", False),
        show_batch=given.get("show_batch", False),
        given=frozenset(given),
    )


def _part(given: dict, names: set[str]) -> dict:
    return {name: value for name, value in given.items() if name in names}


def _settle_data(
    given: dict, info: dict, weights: str | None, testing: bool, seed: int
) -> Data:
    """Settles which data is meant, and which part of a folder is the test."""
    if "dataset" not in given and info.get("dataset", "mnist") not in datasets.NAMED:
        raise UsageError(
            f"{weights} was trained on {info['dataset']}: "
            "say where that is now with --dataset"
        )
    # A test stays a test: the model file's split is not for the arguments to change.
    split = (info.get("split") if testing else None) or {}
    fraction = given.get("test_fraction", split.get("fraction", 0.2))
    if fraction != split.get("fraction", fraction):
        raise UsageError(
            f"--test_fraction: expected {split['fraction']}, with which the model was "
            f"trained, received {fraction}"
        )
    image_size = info.get("image_size")
    if given.get("dataset", "mnist") not in datasets.NAMED and image_size is None:
        # of arrays, or of an earlier version
        image_size = info.get("input_shape", [])[:2] or None
    known = {
        "dataset": info.get("dataset", "mnist"),
        "image_size": image_size and tuple(image_size),
        "grayscale": info.get("grayscale", False),
        "test_fraction": fraction,
        "split_seed": split.get("seed", seed),
    }
    return Data(**known | _part(given, OF_DATA))


def default_save_dir(dataset: str | None) -> str:
    """Where a run writes if nothing is said.

    That is `./result` for MNIST, as in the older scripts, and a folder in it for each
    other data set, so that no model is taken for another one.

    Args:
        dataset: A name or a path; None for MNIST.
    """
    if dataset in (None, "mnist"):
        return "./result"
    name = os.path.basename(os.path.abspath(dataset))
    name = re.sub(r"[^\w.-]", "_", re.sub(r"(?i)\.npz$", "", name)).strip(".")
    if not name or name.lower() in OURS:
        name += "_data"
    return f"./result/{name}"


def main(
    argv: list[str] | None,
    build_parser: Callable[[], Parser],
    run: Callable[[Options, argparse.Namespace], None],
) -> int:
    """Runs a script; returns the exit status.

    Args:
        argv: The arguments; None for those of the process.
        build_parser: Returns the script's parser.
        run: Does what the options and the flags of the script alone say.
    """
    parser = build_parser()

    def parse_and_run() -> None:
        options, own = read_options(parser, argv)
        with explained(options):
            run(options, own)

    return guard(parser.prog, parse_and_run)


@contextlib.contextmanager
def explained(options: Options):
    """Where a run within it is interrupted, adds what is finished of it."""
    try:
        yield
    except Interrupted as interrupt:
        if options.mode == "train":
            interrupt.explain(options.folder)
        raise
    except BrokenPipeError:
        if not options.folder.finished:
            raise
        interrupt = Interrupted(PIPE)
        interrupt.explain(options.folder)
        raise interrupt from None


def guard(program: str, function) -> int:
    """Calls a function, and makes one line and an exit status of what goes wrong.

    Where the reader of the output goes away, as `head` does, the function ends at its
    next line, without a word, with the status of a process that SIGPIPE ends.

    Args:
        program: The name before the line.
        function: May return an exit status; 0 if it returns None.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The names of files and classes may hold what the terminal has no sign for.
        sys.stdout.reconfigure(errors="backslashreplace")
    message = ""
    try:
        with handle_signals(raise_interrupted):
            status = function() or 0
        print(end="", flush=True)
    except BrokenPipeError:
        status = 128 + PIPE
    except Interrupted as interrupt:
        status, message = interrupt.status, str(interrupt)
    except Exception as error:
        known = explain(error)
        if known is None:
            raise
        status, message = known[0], f"error: {known[1]}"
    finally:
        if message:
            with contextlib.suppress(OSError):  # it may have had the same reader
                print(f"{program}: {message}", file=sys.stderr)
        drop_unwritten()
    return status


def explain(error: Exception) -> tuple[int, str] | None:
    """The exit status and the line that an error ends in; None for what is a bug."""
    if isinstance(error, MemoryError) or backend.is_out_of_memory(error):
        return 2, (
            "out of memory; try a smaller --batch_size, a smaller --image_size or "
            "fewer images"
        )
    # The names of files and classes may hold anything.
    if isinstance(error, USER_ERRORS):
        return 2, one_line(str(error))
    if isinstance(error, DivergedError):
        return 1, one_line(str(error))
    return None


def drop_unwritten() -> None:
    """Makes sure that Python's own flush at its end does not fail once more."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())
