// A capsule network that was trained in Python, computed in plain JavaScript.
//
// Weights are read as float16 and kept as float32. Everything that costs time is a sum
// of rows of weights, each times a number: rows whose number is zero, most of those
// behind a ReLU, are left out, and a row lies in one piece in memory.

const EPSILON = 1e-7; // of Keras, in norms

/** A network: pictures to class capsules, the votes of each round, and back. */
export class Network {
  /**
   * @param {object} manifest - model.json, which says how large everything is.
   * @param {ArrayBuffer} buffer - weights.bin, float16 numbers, little endian.
   */
  constructor(manifest, buffer) {
    const numbers = floatsOfHalves(new Uint16Array(buffer));
    const weights = {};
    for (const { name, shape, offset } of manifest.weights) {
      const size = shape.reduce((product, side) => product * side, 1);
      weights[name] = { shape, values: numbers.subarray(offset, offset + size) };
    }
    this.manifest = manifest;
    this.weights = weights;
    [this.height, this.width, this.channels] = manifest.input_shape;
    this.routings = manifest.routings;
    let size = [this.height, this.width];
    const layers = manifest.convolutions.map((sizes) => {
      const { name } = sizes;
      const layer = makeConvolution(
        size, sizes, weights[`${name}/kernel`], weights[`${name}/bias`]);
      size = [layer.rows, layer.columns];
      return layer;
    });
    this.primary = layers.pop();
    this.convolutions = layers; // those before the primary capsules
    // transformations: (input capsules, classes, elements of a class capsule, inputs)
    [this.inputs, this.classes, this.dim, this.inputDim] =
      weights["digitcaps/W"].shape;
    this.places = this.primary.rows * this.primary.columns;
    this.types = this.inputs / this.places;
  }

  /** From a picture, numbers in [0, 1] by row, column and channel, to all capsules.
   *
   * @returns The class capsules, `classes * dim` numbers; their lengths; and of each
   *     round of the routing the lengths, the votes, (classes, places), and the mean
   *     coupling with each class of the capsules that agree with it.
   */
  see(picture) {
    let features = this.normalized(picture);
    for (const layer of this.convolutions) {
      features = convolve(layer, features);
      for (let i = 0; i < features.length; i++) {
        if (features[i] < 0) features[i] = 0;
      }
    }
    const primary = convolve(this.primary, features);
    for (let i = 0; i < primary.length; i += this.inputDim) {
      squash(primary, i, this.inputDim);
    }
    return this.route(primary);
  }

  normalized(picture) {
    const { normalization } = this.manifest;
    if (!normalization) return picture;
    return picture.map((value, i) => {
      const channel = i % this.channels;
      const deviation = Math.sqrt(normalization.variance[channel]);
      return (value - normalization.mean[channel]) / deviation;
    });
  }

  /** Routing by agreement (Procedure 1 of the paper), each round of it remembered. */
  route(primary) {
    const { inputs, classes, dim, places, types } = this;
    const predictions = this.predict(primary); // (inputs, classes, dim)
    const logits = new Float32Array(inputs * classes);
    const couplings = new Float32Array(inputs * classes);
    const rounds = [];
    let capsules;
    for (let round = 0; round < this.routings; round++) {
      softmaxRows(logits, couplings, classes);
      capsules = this.combine(couplings, predictions);
      const votes = new Float32Array(classes * places);
      const agreements = new Float32Array(classes); // those above zero
      const agreed = new Float32Array(classes); // the same, times coupling
      for (let i = 0; i < inputs; i++) {
        const place = Math.floor(i / types);
        for (let j = 0; j < classes; j++) {
          const pair = i * classes + j;
          let agreement = 0;
          for (let e = 0; e < dim; e++) {
            agreement += predictions[pair * dim + e] * capsules[j * dim + e];
          }
          logits[pair] += agreement;
          votes[j * places + place] += couplings[pair] * agreement;
          if (agreement > 0) {
            agreements[j] += agreement;
            agreed[j] += couplings[pair] * agreement;
          }
        }
      }
      const couplingsOfAgreeing = agreed.map((sum, j) => sum / (agreements[j] || 1));
      const lengths = this.lengths(capsules);
      rounds.push({ lengths, votes, couplings: couplingsOfAgreeing });
    }
    return { capsules, lengths: rounds.at(-1).lengths, rounds };
  }

  /** What each primary capsule predicts of each class: u_hat_ij = W_ij u_i. */
  predict(primary) {
    const { inputs, classes, dim, inputDim } = this;
    const transformations = this.weights["digitcaps/W"].values;
    const predictions = new Float32Array(inputs * classes * dim);
    const u = new Float64Array(inputDim);
    for (let i = 0, next = 0; i < inputs; i++) {
      for (let d = 0; d < inputDim; d++) u[d] = primary[i * inputDim + d];
      for (let k = 0; k < classes * dim; k++, next++) {
        let sum = 0;
        for (let d = 0; d < inputDim; d++) {
          sum += transformations[next * inputDim + d] * u[d];
        }
        predictions[next] = sum;
      }
    }
    return predictions;
  }

  /** Class capsules: squashed sums of the predictions, by their couplings. */
  combine(couplings, predictions) {
    const { inputs, classes, dim } = this;
    const sums = new Float64Array(classes * dim);
    for (let pair = 0, next = 0; pair < inputs * classes; pair++) {
      const start = (pair % classes) * dim;
      const coupling = couplings[pair];
      for (let e = 0; e < dim; e++, next++) {
        sums[start + e] += coupling * predictions[next];
      }
    }
    for (let j = 0; j < classes; j++) squash(sums, j * dim, dim);
    return Float32Array.from(sums);
  }

  lengths(capsules) {
    const lengths = new Float32Array(this.classes);
    for (let j = 0; j < this.classes; j++) {
      let squares = EPSILON;
      for (let e = 0; e < this.dim; e++) squares += capsules[j * this.dim + e] ** 2;
      lengths[j] = Math.sqrt(squares);
    }
    return lengths;
  }

  /** What the decoder draws of class capsules, all but some of which are zero.
   *
   * @param {Float32Array} capsules - As of `see`.
   * @param {number[]} shown - Indices of the classes that are drawn.
   */
  decode(capsules, shown) {
    const code = new Float32Array(capsules.length);
    for (const j of shown) {
      const start = j * this.dim;
      code.set(capsules.subarray(start, start + this.dim), start);
    }
    let layer = code;
    for (const name of this.manifest.decoder) {
      layer = this.dense(layer, name);
      const isLast = name === this.manifest.decoder.at(-1);
      for (let i = 0; i < layer.length; i++) {
        layer[i] = isLast ? 1 / (1 + Math.exp(-layer[i])) : Math.max(0, layer[i]);
      }
    }
    return layer;
  }

  dense(input, name) {
    const { shape, values: kernel } = this.weights[`${name}/kernel`];
    const [size, units] = shape;
    const values = new Float32Array(size);
    const count = gather(input, 0, size, values);
    const starts = found.slice(0, count).map((index) => index * units);
    const sums = Float32Array.from(this.weights[`${name}/bias`].values);
    addRows(sums, 0, kernel, starts, values, count, units);
    return sums;
  }
}

/** What `convolve` needs; the kernel is (height, width, channels, filters). */
function makeConvolution(size, { strides, margins }, kernel, bias) {
  const padded = size.map((side, i) => side + margins[i][0] + margins[i][1]);
  const [rows, columns] = padded.map(
    (side, i) => Math.floor((side - kernel.shape[i]) / strides) + 1);
  return { size, padded, margins, rows, columns, strides, kernel, bias };
}

/** The input with zeros around it. */
function pad({ size, padded, margins }, input) {
  const [[top, bottom], [left, right]] = margins;
  if (!(top + bottom + left + right)) return input;
  const channels = input.length / (size[0] * size[1]);
  const length = size[1] * channels;
  const result = new Float32Array(padded[0] * padded[1] * channels);
  for (let row = 0; row < size[0]; row++) {
    const line = input.subarray(row * length, (row + 1) * length);
    result.set(line, ((row + top) * padded[1] + left) * channels);
  }
  return result;
}

/** A convolution, (rows, columns, filters). */
function convolve(layer, input) {
  const { rows, columns, strides, kernel, bias } = layer;
  const width = layer.padded[1];
  const padded = pad(layer, input);
  const [kernelHeight, kernelWidth, channels, filters] = kernel.shape;
  const sums = new Float32Array(rows * columns * filters);
  // A row of the kernel lies in one piece, and so does what it covers of the input.
  const length = kernelWidth * channels;
  const values = new Float32Array(length);
  const starts = new Int32Array(length);
  // The kernel's rows are the outer loop, so that its weights, which are many, pass
  // through the processor's cache once.
  for (let ky = 0; ky < kernelHeight; ky++) {
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < columns; column++) {
        const pixel = (row * strides + ky) * width + column * strides;
        const count = gather(padded, pixel * channels, length, values);
        for (let n = 0; n < count; n++) {
          starts[n] = (ky * length + found[n]) * filters;
        }
        const sum = (row * columns + column) * filters;
        addRows(sums, sum, kernel.values, starts, values, count, filters);
      }
    }
  }
  for (let i = 0; i < sums.length; i++) {
    sums[i] += bias.values[i % filters];
  }
  return sums;
}

let found = new Int32Array(1); // of the last `gather`

/** Finds what is not zero from `start` on: indices to `found`, numbers to `values`. */
function gather(array, start, length, values) {
  if (found.length < length) found = new Int32Array(length);
  let count = 0;
  for (let i = 0; i < length; i++) {
    const value = array[start + i];
    if (value !== 0) {
      found[count] = i;
      values[count++] = value;
    }
  }
  return count;
}

/** Adds rows of weights, each times a number: four at a time, to load a sum once.
 *
 * `Math.fround` keeps the processor in float32, which spares it conversions.
 */
function addRows(sums, sum, weights, starts, values, count, length) {
  const f = Math.fround;
  let n = 0;
  for (; n + 3 < count; n += 4) {
    const a = values[n], b = values[n + 1], c = values[n + 2], d = values[n + 3];
    const i = starts[n], j = starts[n + 1], k = starts[n + 2], l = starts[n + 3];
    for (let x = 0; x < length; x++) {
      const first = f(f(a * weights[i + x]) + f(b * weights[j + x]));
      const second = f(f(c * weights[k + x]) + f(d * weights[l + x]));
      sums[sum + x] = f(sums[sum + x] + f(first + second));
    }
  }
  for (; n < count; n++) {
    const a = values[n], i = starts[n];
    for (let x = 0; x < length; x++) {
      sums[sum + x] = f(sums[sum + x] + f(a * weights[i + x]));
    }
  }
}

/** Equation 1 of the paper, in place. */
function squash(vectors, start, length) {
  let squares = 0;
  for (let i = start; i < start + length; i++) squares += vectors[i] ** 2;
  const scale = squares / (1 + squares) / Math.sqrt(squares + EPSILON);
  for (let i = start; i < start + length; i++) vectors[i] *= scale;
}

/** Equation 3 of the paper: each input shares itself out among the classes. */
function softmaxRows(logits, shares, length) {
  for (let start = 0; start < logits.length; start += length) {
    let largest = -Infinity;
    for (let i = start; i < start + length; i++) {
      if (logits[i] > largest) largest = logits[i];
    }
    let sum = 0;
    for (let i = start; i < start + length; i++) {
      shares[i] = Math.exp(logits[i] - largest);
      sum += shares[i];
    }
    for (let i = start; i < start + length; i++) shares[i] /= sum;
  }
}

/** Numbers of 16 bits as those of 32: by a table, as there are only 65536. */
function floatsOfHalves(halves) {
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    table[bits] =
      sign *
      (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : fraction * 2 ** -24);
  }
  const floats = new Float32Array(halves.length);
  for (let i = 0; i < halves.length; i++) floats[i] = table[halves[i]];
  return floats;
}
