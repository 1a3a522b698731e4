"""Changes test images by the gradient of their pixels until a trained model is wrong.

    python -m experiments.adversarial --source 3 --target 8
    python -m experiments.adversarial
    python -m experiments.adversarial --attack fgsm --baseline baseline.h5
    python -m experiments.adversarial --attack iterative --baseline baseline.h5

`--attack walk`, the default, starts from the first test image of the source class that
the model recognises, and follows the gradient g of the target capsule's length,
`x <- clip(x + step_size * g / ||g||, 0, 1)`, until the target capsule is the longest.
In g, pixels that are at 0 or 1 and would leave [0, 1] count as zero.
`--source` and `--target` give one pair, without them it is each class to each other.
Writes walk-A-B.png and walk-A-B.csv, or walk.png and walk.csv, with the columns
    - source, target: names of the classes,
    - image: index of the test image that the walk starts from,
    - steps: how many were made,
    - summed_change: sum of the absolute changes of all pixels,
    - l2, linf: Euclidean norm and largest absolute value of the change,
    - reached: 1 if the model says target, 0 if it did not within `--max_steps`.

`--attack fgsm` is the fast gradient sign method (Goodfellow et al.,
https://arxiv.org/abs/1412.6572), `x + epsilon * sign(g)` with g the gradient of a
loss, and `--attack iterative` the basic iterative method (Kurakin et al.,
https://arxiv.org/abs/1607.02533), several steps of `2.5 * epsilon / steps`, each
clipped to at most epsilon from the image. Both stay in [0, 1]; neither aims at a
class. Writes fgsm.png and fgsm.csv, or iterative.png and iterative.csv, with
    - network: CapsNet or baseline CNN, attacked with its own gradients,
    - loss: whose gradient is followed. The margin loss is flat, its gradient zero,
      where the right capsule is longer than 0.9 and the others are shorter than 0.1;
      such images stay as they are, which is no merit. So CapsNet is attacked with the
      gap, too: the length of the longest wrong capsule less that of the right one. The
      baseline's cross-entropy is computed as its log-odds: the signs of the gradient
      are the same, but it is not rounded to zero before all wrong probabilities are.
    - epsilon: largest change of a pixel, where black is 0 and white is 1,
    - steps: 1 for FGSM,
    - images: how many were attacked, the first ones of the test set,
    - flat: share of them at which the loss has a gradient of zero in all pixels,
    - accuracy: share that is classified right after the attack,
    - fingerprint: of the network's weights and the images.
The CSV grows with each epsilon. A curve that was interrupted goes on with the same
command: rows with the same fingerprint, loss, epsilon and steps are not measured again.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import hashlib
import os
import sys

import keras
import numpy as np

import capsulenet
from capsnet import command_line, datasets, flags, run_folder, session
from capsnet.backend import input_gradient
from capsnet.errors import UsageError
from capsnet.flags import Parser
from capsnet.options import Integer, Number, Options, Training
from capsnet.predict import predict
from capsnet.weights import load_weights
from capsulenet import margin_loss
from experiments.attack_figures import plot_curves, plot_grid, plot_pair
from experiments.attacks import gap, log_odds, sign_attack, target_length, walk
from experiments.baseline import Baseline

EPSILONS = (0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)
FOLDER = os.path.join("result", "adversarial")
# For each attack, the flags that it has, and their defaults.
FLAGS = {
    "walk": {"source": None, "target": None, "step_size": 0.2, "max_steps": 300},
    "fgsm": {"epsilons": EPSILONS, "count": 10000, "baseline": None},
    "iterative": {"epsilons": EPSILONS, "count": 1000, "baseline": None, "steps": 10},
}
MAX_CLASSES = 20  # of a grid of all pairs


def choose_starts(
    network: keras.Model, data: datasets.Dataset, sources: list[int]
) -> dict[int, int]:
    """The first test image of each class that the network recognises, by its index.

    Raises:
        UsageError: If there is no test image of a class.
    """
    (x, y), names = data.test, data.class_names
    starts = {}
    for source in sources:
        of_class = np.flatnonzero(y.argmax(1) == source)
        if not len(of_class):
            raise UsageError(f"there is no test image of class {names[source]}")
        (lengths,) = predict(network, [x[of_class]])
        right = lengths.argmax(1) == source
        if not right.any():
            print(
                f"Class {names[source]}: no test image is recognised; taking the first"
            )
        starts[source] = of_class[right.argmax()]  # the first one, if there is none
    return starts


def run_walk(
    network: keras.Model,
    data: datasets.Dataset,
    pair: tuple[int, int] | None,
    own: argparse.Namespace,
    options: Options,
) -> None:
    """Walks from one class to another, or from each to each; draws what came out.

    Args:
        network: Images -> lengths of the class capsules.
        data: Of which the test images are taken.
        pair: Indices of the two classes; None for all pairs.
        own: The flags of the attack.
        options: Batch size, and where to write.
    """
    x, names = data.test[0], data.class_names
    classes = range(len(names))
    pairs = [pair] if pair else [(a, b) for a in classes for b in classes if a != b]
    start = choose_starts(network, data, sorted({a for a, _ in pairs}))
    indices = [start[a] for a, _ in pairs]
    labels = np.eye(len(names), dtype="float32")[[b for _, b in pairs]]
    gradient = input_gradient(network, target_length, options.training.batch_size)
    results = walk(gradient, x[indices], labels, own.step_size, own.max_steps)
    rows = []
    for (a, b), i, image, steps, lengths in zip(pairs, indices, *results):
        change = np.abs(image.astype("float64") - x[i])
        row = {
            "source": names[a],
            "target": names[b],
            "image": i,
            "steps": steps,
            "summed_change": round(change.sum(), 4),
            "l2": round(np.sqrt(np.square(change).sum()), 5),
            "linf": round(change.max(), 5),
            "reached": int(lengths.argmax() == b),
        }
        rows.append(row)
        outcome = "reached in" if row["reached"] else "not reached in"
        print(
            f"{names[a]} to {names[b]}: {outcome} {steps} steps, summed change "
            f"{row['summed_change']:.1f}, largest {row['linf']:.2f}"
        )
    name = f"walk-{pair[0]}-{pair[1]}" if pair else "walk"
    path = options.folder.file(f"{name}.png")
    with run_folder.replace_file(path) as temporary:
        if pair:
            (changed, _, lengths), (row,) = results, rows
            plot_pair(x[indices[0]], changed[0], lengths[0], row, names, temporary)
        else:
            firsts = x[[start[source] for source in classes]]
            plot_grid(firsts, results[0], rows, names, temporary)
    print("Wrote", path)
    path = options.folder.file(f"{name}.csv")
    run_folder.write_csv(path, rows)
    print("Wrote", path)


def run_signs(
    network: keras.Model,
    data: datasets.Dataset,
    baseline: keras.Model | None,
    own: argparse.Namespace,
    options: Options,
) -> None:
    """Attacks the networks at all epsilons; draws the accuracy over epsilon.

    Args:
        network: Images -> lengths of the class capsules.
        data: Of which the test images are taken.
        baseline: Images -> probabilities of the classes; or None.
        own: The flags of the attack.
        options: Batch size, and where to write.
    """
    batch_size = options.training.batch_size
    x, y = (a[: own.count] for a in data.test)
    path = options.folder.file(f"{own.attack}.csv")
    earlier = run_folder.read_csv(path)
    attacks = [
        ("CapsNet", "margin loss", network, margin_loss),
        ("CapsNet", "gap", network, gap),
        ("baseline CNN", "cross-entropy", baseline, log_odds),
    ]
    if baseline is None:
        print("Without --baseline: CapsNet alone")
    rows = []
    for name, loss_name, model, loss in attacks[: 3 if baseline is not None else 2]:
        what = {
            "network": name,
            "loss": loss_name,
            "steps": own.steps,
            "images": len(x),
            "fingerprint": fingerprint([*model.get_weights(), x, y]),
        }
        gradient, first = input_gradient(model, loss, batch_size), None
        for epsilon in sorted({*own.epsilons}):
            asked = {**what, "epsilon": epsilon}
            row = find_row(earlier, asked)
            if row is None:
                if first is None:
                    _, first = gradient(x, y)
                    flat = round(float(np.mean(~first.any(axis=(1, 2, 3)))), 4)
                changed = sign_attack(gradient, x, y, epsilon, own.steps, first)
                (outputs,) = predict(model, [changed], batch_size)
                accuracy = float(np.mean(outputs.argmax(1) == y.argmax(1)))
                row = {**asked, "flat": flat, "accuracy": round(accuracy, 4)}
            rows.append(row)
            run_folder.write_csv(path, rows)
            print(
                f"{name}, {loss_name}: epsilon {epsilon:g}, accuracy "
                f"{row['accuracy']:.4f}"
            )
        print(f"{name}, {loss_name}: flat at {100 * row['flat']:.1f} % of the images")
    title = "Fast gradient sign method"
    if own.attack == "iterative":
        title = f"Basic iterative method, {own.steps} steps"
    picture = options.folder.file(f"{own.attack}.png")
    with run_folder.replace_file(picture) as temporary:
        plot_curves(rows, f"{title}, {len(x)} test images", temporary)
    print("Wrote", picture)
    print("Wrote", path)


def find_row(earlier: list[dict], asked: dict) -> dict | None:
    """What an earlier run of the same attack measured, if it came to that.

    Args:
        earlier: Rows of its CSV, as text.
        asked: What the row begins with.
    """
    as_text = {name: str(value) for name, value in asked.items()}
    for row in earlier:
        if as_text.items() <= row.items():
            return {**asked, **{k: float(row[k]) for k in ("flat", "accuracy")}}
    return None


def fingerprint(arrays: list[np.ndarray]) -> str:
    """The first half of the SHA-256 of all numbers in some arrays."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(np.ascontiguousarray(array))
    return sha.hexdigest()[:32]


def settle_flags(own: argparse.Namespace) -> argparse.Namespace:
    """The flags of the attack, with its defaults for those that were not given.

    Raises:
        UsageError: If there are flags of another attack, or one class without another.
    """
    given, defaults = vars(own), FLAGS[own.attack]
    for name in sorted(given.keys() - defaults.keys() - {"attack"}):
        raise UsageError(f"--{name} has no effect with --attack {own.attack}")
    if ("source" in given) != ("target" in given):
        raise UsageError("expected --source and --target, or neither of them")
    steps = {"steps": 1} if own.attack == "fgsm" else {}
    return argparse.Namespace(**steps | defaults | given)


def find_pair(
    names: list[str], source: str | None, target: str | None
) -> tuple[int, int] | None:
    """Indices of the classes of a walk; None for all pairs.

    Args:
        names: A name for each class.
        source: Name or index of the class to start from, or None.
        target: That of the class to arrive at.

    Raises:
        UsageError: If there is no such class, or there are too many for a grid.
    """
    if source is None:
        if len(names) > MAX_CLASSES:
            raise UsageError(
                f"expected --source and --target, as all pairs of {len(names)} classes "
                f"are too many for a picture (more than {MAX_CLASSES} classes)"
            )
        return None
    a = session.find_class(source, names, "--source")
    b = session.find_class(target, names, "--target")
    if a == b:
        raise UsageError(
            f"--target: expected another class than --source, received {target}"
        )
    return a, b


def run(options: Options, own: argparse.Namespace) -> None:
    """Does what the command line says."""
    own = settle_flags(own)
    session.prepare_backend(options.training)
    data, options = session.load_data(options)
    if data.multi_label:
        raise UsageError(
            f"{data.name}: expected one class an image, which an attack changes, "
            "received images of several"
        )
    if own.attack == "walk":
        pair = find_pair(data.class_names, own.source, own.target)
    train_model, eval_model, _ = capsulenet.load_models(data, options)
    network = keras.Model(eval_model.input, eval_model.outputs[0])  # no decoder
    name = session.network_name(options.training)
    if own.attack == "walk":
        with session.begin(name, train_model, data, options):
            run_walk(network, data, pair, own, options)
        return
    baseline = None
    if own.baseline:
        x, y = data.test
        baseline = Baseline(x.shape[1:], y.shape[1])
        load_weights(baseline, own.baseline)
    with session.begin(name, train_model, data, options):
        run_signs(network, data, baseline, own, options)


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, FOLDER)
    parser.set_defaults(testing=True)
    parser.add_argument(
        "-w",
        "--weights",
        default=flags.PRETRAINED,
        metavar="FILE",
        help="a trained model",
    )
    parser.add_argument(
        "--batch_size",
        type=Training.kind_of("batch_size"),
        metavar="N",
        help="images that are computed at a time (default: 100)",
    )
    flags.add_data_flags(parser)
    parser.add_argument(
        "--attack",
        choices=tuple(FLAGS),
        default="walk",
        help="walk: to a target class, one pair or all; fgsm, iterative: accuracy over "
        "the largest change of a pixel. On 2 CPU cores, all pairs take two or three "
        "minutes, fgsm about 5 and iterative about 10; each several times as long with "
        "a baseline, whose gradients cost nearly ten times as much",
    )
    group = parser.add_argument_group("--attack walk")
    group.add_argument(
        "--source", metavar="CLASS", help="name or index of the class to start from"
    )
    group.add_argument(
        "--target", metavar="CLASS", help="that of the class to arrive at"
    )
    group.add_argument(
        "--step_size",
        type=Number(0.0001),
        metavar="X",
        help=f"Euclidean norm of a step (default: {FLAGS['walk']['step_size']})",
    )
    group.add_argument(
        "--max_steps",
        type=Integer(1),
        metavar="N",
        help=f"where a walk is given up (default: {FLAGS['walk']['max_steps']})",
    )
    group = parser.add_argument_group("--attack fgsm, --attack iterative")
    group.add_argument(
        "--epsilons",
        type=Number(0, 1),
        nargs="+",
        metavar="X",
        help=f"largest changes of a pixel (default: {' '.join(map(str, EPSILONS))})",
    )
    group.add_argument(
        "--count",
        type=Integer(1),
        metavar="N",
        help="attack the first N test images (default: 10000 with fgsm, 1000 with "
        "iterative)",
    )
    group.add_argument(
        "--steps",
        type=Integer(1),
        metavar="N",
        help="steps of iterative (default: 10)",
    )
    group.add_argument(
        "--baseline",
        metavar="FILE",
        help="weights of the baseline CNN, to compare with (default: CapsNet alone)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(command_line.main(None, build_parser, run))
