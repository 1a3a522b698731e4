"""explain.py: which parts of an image voted for a class."""

import dataclasses

import keras
import numpy as np
import pytest
from test_capsulelayers import routing_and_couplings, squash_oracle

import capsulenet
from capsnet.architecture import ARCHITECTURES
from capsnet.explain import spread, votes
from capsnet.fields import convolution_layers, fields
from capsnet.options import ONE_DEVICE
from capsnet.predict import predict


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    sizes = {"convolutions": ((8, 9, 1),), "primary_types": 3, "primary_dim": 4}
    sizes |= {"class_dim": 5, "decoder": None}
    return capsulenet.CapsNet((21, 25, 1), 3, **sizes)[1]


@pytest.fixture
def images(model):
    return np.random.default_rng(0).random((2, *model.input_shape[1:]), "float32")


def test_votes_sum_to_what_makes_the_capsule_long(model, images):
    found = votes(model, images, 2, ONE_DEVICE)
    assert found.shape == (2, 3, 3, 5)
    primary, routing = (model.get_layer(n) for n in ("primarycaps", "digitcaps"))
    u = keras.Model(model.input, primary.output).predict(images, verbose=0)
    u, W = u.astype("float64"), routing.get_weights()[0].astype("float64")
    _, c = routing_and_couplings(u, W, 3)
    s = np.einsum("nji,jied,nid->nje", c, W, u)
    v = squash_oracle(s)
    expected = np.linalg.norm(s, axis=-1) * np.linalg.norm(v, axis=-1)
    np.testing.assert_allclose(found.sum(axis=(2, 3)), expected, rtol=1e-4, atol=1e-7)


def test_a_vote_is_that_of_the_capsules_at_its_position(model, images):
    # Only the last column of positions sees the last pixels of a row.
    changed = images.copy()
    changed[:, :, -1] = 1 - changed[:, :, -1]
    primary = keras.Model(model.input, model.get_layer("primarycaps").output)
    u, other = (primary.predict(x, verbose=0) for x in (images, changed))
    moved = np.abs(u - other).max(axis=(0, 2)).reshape(3, 5, 3).max(axis=(0, 2)) > 1e-6
    assert moved.tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_place_sees_the_pixels_of_its_field(name):
    sizes = dataclasses.replace(ARCHITECTURES[name], primary_types=1, decoder=None)
    height, width = shape = (20, 27)
    model = capsulenet.CapsNet((*shape, 1), 2, architecture=sizes)[1]
    primary = model.get_layer("primarycaps")
    for layer in convolution_layers(model):  # what sees only black is zero
        layer.kernel.assign(np.abs(layer.kernel))
        layer.bias.assign(np.zeros(layer.bias.shape))
    images = np.eye(height * width, dtype="float32").reshape(-1, *shape, 1)
    (u,) = predict(keras.Model(model.input, primary.output), [images])
    # (rows, columns, height, width): whether a place sees a pixel
    down, across = fields(model)
    seen = u.any(axis=-1).reshape(height, width, down.places, across.places)
    seen = seen.transpose(2, 3, 0, 1)
    expected = np.zeros_like(seen)
    for row, column in np.ndindex(seen.shape[:2]):
        top = down.start + row * down.strides
        left = across.start + column * across.strides
        rows = slice(max(0, top), top + down.size)
        columns = slice(max(0, left), left + across.size)
        expected[row, column, rows, columns] = True
    np.testing.assert_array_equal(seen, expected)


def test_votes_lie_where_their_capsules_look(model):
    values = np.zeros((3, 5))
    values[1, 3] = 2.0
    spread_out = spread(values, model)
    assert spread_out.shape == (21, 25)
    np.testing.assert_allclose(spread_out.sum(), 2, rtol=1e-6)
    # steps of 2 pixels; 17 x 17 pixels are seen, the middle one is the ninth
    middle = 2 * 1 + 8, 2 * 3 + 8
    assert np.unravel_index(spread_out.argmax(), (21, 25)) == middle
    near = spread_out[middle[0] - 4 : middle[0] + 5, middle[1] - 4 : middle[1] + 5]
    assert near.sum() > 0.85 * spread_out.sum()
