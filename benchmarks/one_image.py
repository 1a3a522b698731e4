"""Times one image through the published model, in each form that it can be exported to.

    python -m benchmarks.one_image

The forms take turns, image by image. Keras's own time for a call, in the first row, is
that of a model that does nothing with the image; "above" is what a network adds to it.
ONNX Runtime and TensorFlow Lite have a thread for each core. Writes
one_image_BACKEND_DEVICE.csv. Needs TensorFlow, onnx and onnxruntime.
"""

if __name__ == "__main__":
    from capsnet import startup

    startup.begin()

import argparse
import os
import tempfile
from collections.abc import Callable
from statistics import median

import keras
import numpy as np

import capsulenet
from benchmarks import report
from benchmarks.timing import time_in_turn
from capsnet import datasets
from capsnet.export import export_model
from capsnet.flags import PRETRAINED
from capsnet.startup import quiet_start
from capsnet.weights import load_weights

# Each form: the name of the exported file, and whether its weights have 16 bits.
FORMS = {
    "ONNX": ("model.onnx", False),
    "ONNX, weights of 16 bits": ("half.onnx", True),
    "TensorFlow Lite": ("model.tflite", False),
}


def load_model() -> keras.Model:
    """The published model, for classes and reconstructions."""
    train_model, eval_model, _ = capsulenet.CapsNet((28, 28, 1), 10)
    load_weights(train_model, os.path.join(report.ROOT, PRETRAINED))
    return eval_model


def make_idle(shape: tuple[int, ...]) -> keras.Model:
    """A model that gives its image back."""
    image = keras.Input(shape)
    return keras.Model(image, keras.layers.Identity()(image))


def open_form(path: str) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images to lengths, of an exported file."""
    if path.endswith(".onnx"):
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["lengths"], {"images": images})[0]
    import tensorflow as tf

    with quiet_start():
        interpreter = tf.lite.Interpreter(path, num_threads=os.cpu_count())
        run = interpreter.get_signature_runner("serving_default")
    return lambda images: run(images=images)["lengths"]


def measure(model: keras.Model, image: np.ndarray, rounds: int, repeats: int):
    """Median seconds of one image, and bytes of the file, by form.

    Raises:
        AssertionError: If a form names other lengths than Keras.
    """
    idle = make_idle(image.shape[1:])
    functions = {
        "Keras, a model that does nothing": lambda: idle.predict_on_batch(image),
        "Keras": lambda: model.predict_on_batch(image)[0],
    }
    sizes = dict.fromkeys(functions, "")
    with tempfile.TemporaryDirectory() as folder:
        for form, (name, half) in FORMS.items():
            path = os.path.join(folder, name)
            export_model(model, path, half)
            sizes[form] = os.path.getsize(path)
            run = open_form(path)
            functions[form] = lambda run=run: run(image)
            np.testing.assert_allclose(
                functions[form](), functions["Keras"](), atol=1e-3
            )
        times = time_in_turn(functions, rounds, repeats)
    return {form: median(seconds) for form, seconds in times.items()}, sizes


def build_parser() -> argparse.ArgumentParser:
    parser = report.new_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each")
    parser.add_argument("--repeats", type=int, default=20, help="images in a block")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    commit, device = report.find_commit(), report.find_device()
    _, (x, _) = datasets.load_dataset()
    times, sizes = measure(load_model(), x[:1], args.rounds, args.repeats)
    idle = next(iter(times.values()))
    rows = [
        {
            "form": form,
            "ms": round(1e3 * seconds, 2),
            "ms_above_keras": round(1e3 * (seconds - idle), 2),
            "file_mb": round(sizes[form] / 1e6, 1) if sizes[form] else "",
        }
        for form, seconds in times.items()
    ]
    for row in rows:
        report.print_row(row)
    report.write(rows, args.save_dir, "one_image", device, commit)


if __name__ == "__main__":
    main()
