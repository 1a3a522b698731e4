"""backend.py: devices, precision, memory, and an optimizer that is Keras's own."""

import json
import sys
import zipfile
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from conftest import run
from keras import ops

from capsnet import backend

BACKEND = keras.backend.backend()

# Devices


@pytest.fixture
def devices(monkeypatch):
    """A function that makes the backend say that these are the machine's devices."""

    def pretend(*kinds):
        if BACKEND == "tensorflow":
            found = [
                SimpleNamespace(device_type=k, name=f"/device:{k}:0") for k in kinds
            ]
            name = "tensorflow.config.list_logical_devices"
            monkeypatch.setattr(name, lambda device_type=None: found)
        elif BACKEND == "jax":
            found = [SimpleNamespace(platform=kinds[-1].lower(), id=0)]
            monkeypatch.setattr("jax.devices", lambda backend=None: found)
        else:
            name = "keras.src.backend.torch.core.DEFAULT_DEVICE"
            monkeypatch.setattr(name, f"{kinds[-1].lower()}:0")

    return pretend


@pytest.mark.parametrize("kind", ["GPU", "TPU", "XPU", "MPS"])
def test_only_a_cpu_is_a_cpu(devices, kind):
    devices("CPU")
    assert backend.device_kind() == "cpu" and backend.runs_on_cpu()
    devices("CPU", kind)
    assert backend.device_kind() == kind.lower() and not backend.runs_on_cpu()


if BACKEND == "torch":

    def test_the_device_that_the_environment_names(monkeypatch):
        monkeypatch.setenv("KERAS_TORCH_DEVICE", "meta")  # which every machine has
        code = "from capsnet import backend; print(backend.device_kind())"
        done = run(program=("-c", code))
        assert done.stdout == "meta\n", done.stderr


PACKAGES = {"tensorflow": "tensorflow[and-cuda]", "jax": "jax[cuda12]", "torch": None}


def test_the_package_that_a_gpu_lacks(devices, monkeypatch):
    def missing(driver="/usr/bin/nvidia-smi", system="linux", visible="0"):
        monkeypatch.setattr("shutil.which", {"nvidia-smi": driver}.get)
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return backend.missing_gpu_package()

    devices("CPU")
    assert missing() == PACKAGES[BACKEND]
    assert missing(driver=None) is None
    assert missing(system="win32") is None  # where there is no such package
    assert missing(visible="-1") is None  # hidden on purpose
    devices("CPU", "GPU")
    assert missing() is None


# Precision; what JAX makes of it is in test_fft_conv.py


if BACKEND == "tensorflow":

    @pytest.mark.parametrize("on_cpu", [True, False])
    def test_full_precision_turns_tf32_off_on_a_gpu(monkeypatch, on_cpu):
        from tensorflow.config import experimental as switch

        monkeypatch.setattr(backend, "runs_on_cpu", lambda: on_cpu)
        assert switch.tensor_float_32_execution_enabled()
        try:
            with backend.full_precision():
                pass
            # Graphs that were traced within it run later.
            assert switch.tensor_float_32_execution_enabled() == on_cpu
        finally:
            switch.enable_tensor_float_32_execution(True)

elif BACKEND == "torch":

    def test_pytorch_computes_in_full_precision_unless_it_is_told_otherwise():
        import torch

        assert torch.get_float32_matmul_precision() == "highest"
        torch.set_float32_matmul_precision("medium")
        try:
            with backend.full_precision():
                pass
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")


# Memory


def use_too_much():
    if BACKEND == "tensorflow":  # which would try for ten seconds
        from tensorflow.errors import ResourceExhaustedError

        raise ResourceExhaustedError(None, None, "OOM when allocating tensor")
    ops.zeros((2**22, 2**22, 16))  # a petabyte


def test_running_out_of_memory_is_told_from_other_errors():
    with pytest.raises(Exception) as caught:  # noqa: PT011, of a class of the backend
        use_too_much()
    assert backend.is_out_of_memory(caught.value)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        ops.matmul(np.ones((2, 3)), np.ones((2, 3)))
    assert not backend.is_out_of_memory(caught.value)


# The optimizer


def test_adam_is_keras_adam():
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (5,), ()]
    start = [rng.normal(size=shape) for shape in shapes]
    steps = [[rng.normal(size=shape) for shape in shapes] for _ in range(6)]

    def train(optimizer):
        variables = [keras.Variable(value, dtype="float32") for value in start]
        for step, values in enumerate(steps):
            optimizer.learning_rate = 0.01 * 0.9**step
            tensors = [ops.convert_to_tensor(v, "float32") for v in values]
            optimizer.apply_gradients(zip(tensors, variables))
        return [ops.convert_to_numpy(v) for v in variables + optimizer.variables]

    ours = train(backend.adam(0.01))
    for one, other in zip(ours, train(keras.optimizers.Adam(0.01)), strict=True):
        # the bias correction beta ** step is rounded in another order
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


X = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")


def fitted(optimizer):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.set_weights([np.ones((3, 2)), np.zeros(2)])
    model.compile(optimizer, "mse")
    model.fit(X, X[:, :2], batch_size=2, shuffle=False, verbose=0)
    return model


def test_a_model_file_holds_keras_adam(tmp_path):
    model = fitted(backend.adam(0.1))
    path = tmp_path / "model.keras"
    model.save(path)
    expected = keras.saving.serialize_keras_object(keras.optimizers.Adam(0.1))
    with zipfile.ZipFile(path) as file:
        config = json.loads(file.read("config.json"))["compile_config"]["optimizer"]
    assert {**config, "config": None} == {**expected, "config": None}

    loaded = keras.models.load_model(path)
    for one in (model, loaded):
        one.fit(X, X[:, :2], batch_size=2, shuffle=False, verbose=0)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
