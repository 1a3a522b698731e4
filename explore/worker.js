// Computes beside the page, so that drawing never waits.
//
// Each message is { id, call, argument }, each answer { id, result } or { id, error }.

import { Network } from "./engine.js";
import { centreOfMass, prepareDigit, preparePicture } from "./picture_layout.js";

const LARGEST_SHIFT = 4; // pixels, of each of two digits, as in training

let network;

const calls = {
  /** Loads the network whose files' names begin so; returns what its file says. */
  async load(beginning) {
    const [manifest, weights] = await Promise.all([
      fetchFile(`${beginning}model.json`).then((response) => response.json()),
      fetchFile(`${beginning}weights.bin`).then((response) => response.arrayBuffer()),
    ]);
    network = new Network(manifest, weights);
    return manifest;
  },

  /** What the network sees in a picture, and draws of it.
   *
   * @param picture - As of `preparePicture`.
   * @param shown - Classes to draw; null for those that are named.
   */
  see({ picture, shown }) {
    const image = preparePicture(picture, network.manifest);
    return answer(image, shown);
  },

  /** Two drawn digits over each other, each where it was drawn, but in MNIST's size. */
  seeLayers({ layers }) {
    const [first, second] = layers.map(place);
    const image = first.map((value, i) => Math.min(1, value + second[i]));
    return { ...answer(image, null), parts: [first, second] };
  },

  decode: ({ capsules, shown }) => network.decode(capsules, shown),

  /** What one element of a capsule changes: a picture for each value that it takes. */
  film({ capsules, shown, element, values }) {
    const changed = capsules.slice();
    return values.map((value) => {
      changed[shown * network.dim + element] = value;
      return network.decode(changed, [shown]);
    });
  },
};

function answer(image, shown) {
  const start = performance.now();
  const seen = network.see(image);
  const named = namedClasses(seen.lengths);
  // The decoder has learnt to draw all capsules at once only for labels of any number.
  const own = network.manifest.multi_label ? named : named.slice(0, 1);
  const drawn = shown === null ? own : [shown];
  const reconstruction = network.decode(seen.capsules, drawn);
  const milliseconds = performance.now() - start;
  const alone = network.manifest.objects > 1
    ? named.map((j) => network.decode(seen.capsules, [j]))
    : [];
  return { ...seen, image, named, drawn, reconstruction, alone, milliseconds };
}

/** Which classes the network names: all that are long enough, or the longest ones. */
function namedClasses(lengths) {
  const order = [...lengths.keys()].sort((i, j) => lengths[j] - lengths[i]);
  const { multi_label: anyNumber, objects } = network.manifest;
  return anyNumber ? order.filter((j) => lengths[j] > 0.5) : order.slice(0, objects);
}

function place(layer) {
  const { height, width } = network;
  const [y, x] = centreOfMass(layer);
  const digit = prepareDigit(layer, height, width, network.manifest.digit_box);
  const down = shiftOf(y / layer.height, height);
  const right = shiftOf(x / layer.width, width);
  return digit.map((_, i) => {
    const row = Math.floor(i / width) - down;
    const column = (i % width) - right;
    const isInside = row >= 0 && row < height && column >= 0 && column < width;
    return isInside ? digit[row * width + column] : 0;
  });
}

function shiftOf(part, side) {
  const shift = Math.round((part - 0.5) * side);
  return Math.min(Math.max(shift, -LARGEST_SHIFT), LARGEST_SHIFT);
}

async function fetchFile(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
}

onmessage = async ({ data: { id, call, argument } }) => {
  try {
    postMessage({ id, result: await calls[call](argument) });
  } catch (error) {
    postMessage({ id, error: String(error.message) });
  }
};
