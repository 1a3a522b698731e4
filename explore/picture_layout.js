// Pictures in the layout that a network was trained on: capsnet/photos.py, in
// JavaScript. The functions have the names of those in Python, and their order.
//
// A picture is { height, width, channels, values }, with values in [0, 1].

import { BOX, reduce, resize, roundHalfEven } from "./resample.js";

const WORK_SIDE = 320; // pixels; enough for a frame of 28 at any place in the photo
// Pixels by which the longest side of two overlapping digits is more than that of one.
const PAIR = 4;
const MIN_STROKE = 0.1; // of the symbol's longest side; MNIST's are seldom finer
const TRACE = 0.25; // brightness that JPEG leaves nowhere beside a digit
const NEAR = 2; // pixels by which a digit may be elsewhere, or of another size

/** Makes of a picture what the network was trained on; returns its values. */
export function preparePicture(picture, model) {
  const [height, width, channels] = model.input_shape;
  let { values } = picture;
  if (isInverted(picture, model)) values = values.map((value) => 1 - value);
  const plane = { height: picture.height, width: picture.width, values };
  const fits = picture.height === height && picture.width === width;
  const oneDigit = model.digit_box && model.objects === 1;
  if (fits && (!oneDigit || isLaidOut(plane, model.digit_box))) return values;
  if (model.digit_box) {
    const box = model.digit_box + (model.objects > 1 ? PAIR : 0);
    return prepareDigit(plane, height, width, box);
  }
  return fitImage({ ...picture, values }, height, width, channels);
}

/** Whether a grey picture has a light border where training images have a dark one. */
export function isInverted(picture, model) {
  const expected = model.border_brightness;
  if (picture.channels !== 1 || (expected > 0.25 && expected < 0.75)) return false;
  const sorted = Float64Array.from(picture.values).sort();
  const [low, high] = [0.01, 0.99].map((part) => {
    const place = part * (sorted.length - 1);
    const before = Math.floor(place);
    const after = Math.min(before + 1, sorted.length - 1);
    return sorted[before] + (sorted[after] - sorted[before]) * (place - before);
  });
  const outermost = picture.values.filter((_, i) => isBorder(picture, i));
  const border = mean(outermost);
  return high > low && border - low > high - border !== expected > 0.5;
}

/** Whether a picture shows a bright digit nearly in the layout of MNIST. */
function isLaidOut({ height, width, values }, box) {
  const bright = values.map((value) => (value > TRACE ? value : 0));
  if (!bright.some((value) => value > 0)) return false;
  const ink = { height, width, values: bright };
  const inked = crop(ink);
  const [y, x] = centreOfMass(ink);
  const off = [y - Math.floor(height / 2), x - Math.floor(width / 2)].map(Math.abs);
  const side = Math.max(inked.height, inked.width);
  return Math.abs(side - box) <= NEAR && Math.max(...off) <= NEAR;
}

function fitImage(picture, height, width, channels) {
  const scale = Math.min(height / picture.height, width / picture.width);
  const h = Math.max(1, roundHalfEven(picture.height * scale));
  const w = Math.max(1, roundHalfEven(picture.width * scale));
  const top = Math.floor((height - h) / 2);
  const left = Math.floor((width - w) / 2);
  const result = new Float32Array(height * width * channels);
  for (let channel = 0; channel < channels; channel++) {
    const values = picture.values.filter((_, i) => i % channels === channel);
    const ground = median(edges({ ...picture, values }));
    for (let i = channel; i < result.length; i += channels) result[i] = ground;
    const fitted = resize({ ...picture, values }, h, w);
    for (let i = 0; i < h * w; i++) {
      const pixel = (top + Math.floor(i / w)) * width + left + (i % w);
      result[pixel * channels + channel] = fitted.values[i];
    }
  }
  return result;
}

/** The rows at the top and the bottom, and the columns at the sides. */
function edges({ height, width, values }) {
  const found = [];
  for (let column = 0; column < width; column++) {
    found.push(values[column], values[(height - 1) * width + column]);
  }
  for (let row = 0; row < height; row++) {
    found.push(values[row * width], values[row * width + width - 1]);
  }
  return found;
}

/** Brings one bright symbol on a dark ground to the layout of MNIST.
 *
 * @returns height * width values; all zeros if no ink is found.
 */
export function prepareDigit(plane, height, width, box) {
  const result = new Float32Array(height * width);
  let ink = findInk(reduce(plane, WORK_SIDE));
  if (!ink.values.some((value) => value > 0)) return result;
  ink = thicken(crop(ink), MIN_STROKE);
  const scale = Math.min(box, height, width) / Math.max(ink.height, ink.width);
  const h = Math.max(1, roundHalfEven(ink.height * scale));
  const w = Math.max(1, roundHalfEven(ink.width * scale));
  const digit = resize(ink, h, w, BOX);
  // The centre of mass goes to pixel 14 of 28, as MNIST's did.
  const [y, x] = centreOfMass(digit);
  const corner = (side, length, centre) => {
    const start = Math.floor(Math.floor(side / 2) - centre + 0.5);
    return Math.min(Math.max(start, 0), side - length);
  };
  const top = corner(height, h, y);
  const left = corner(width, w, x);
  for (let row = 0; row < h; row++) {
    const values = digit.values.subarray(row * w, (row + 1) * w);
    result.set(values, (top + row) * width + left);
  }
  return result;
}

/** Row and column of the middle of all ink; the plane's own middle if there is none. */
export function centreOfMass({ height, width, values }) {
  let mass = 0;
  let y = 0;
  let x = 0;
  values.forEach((value, i) => {
    mass += value;
    y += value * Math.floor(i / width);
    x += value * (i % width);
  });
  return mass ? [y / mass, x / mass] : [height / 2, width / 2];
}

function crop({ height, width, values }) {
  let [top, bottom, left, right] = [height, 0, width, 0];
  values.forEach((value, i) => {
    if (!value) return;
    const row = Math.floor(i / width);
    const column = i % width;
    [top, bottom] = [Math.min(top, row), Math.max(bottom, row)];
    [left, right] = [Math.min(left, column), Math.max(right, column)];
  });
  const size = { height: bottom - top + 1, width: right - left + 1 };
  return build(size, (row, column) => values[(top + row) * width + left + column]);
}

/** Widens strokes that are thinner than a part of the symbol's longest side. */
function thicken(ink, part) {
  const { height, width, values } = pad(ink, 2);
  const at = (row, column) => values[row * width + column];
  const slope = (low, high, i, size) => {
    if (i === 0) return high(1) - high(0);
    if (i === size - 1) return low(0) - low(1);
    return (high(1) - low(1)) / 2;
  };
  let outline = 0;
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const dy = slope(
        (d) => at(row - d, column), (d) => at(row + d, column), row, height);
      const dx = slope(
        (d) => at(row, column - d), (d) => at(row, column + d), column, width);
      outline += Math.hypot(dy, dx);
    }
  }
  const strokeWidth = (2 * sum(ink.values)) / outline; // the area over half the outline
  const longest = Math.max(ink.height, ink.width);
  const missing = Math.max(0, roundHalfEven((part * longest - strokeWidth) / 2));
  let result = pad(ink, missing);
  for (let i = 0; i < missing; i++) result = spread(result);
  return result;
}

/** How much ink there is at each pixel, 0 to 1, without ground, noise and specks. */
function findInk(plane) {
  const ground = findGround(plane);
  let ink = {
    ...plane,
    values: Float64Array.from(
      plane.values,
      (value, i) => (value - ground[i]) / Math.max(1 - ground[i], 0.2),
    ),
  };
  const side = Math.max(plane.height, plane.width);
  if (side >= 100) ink = median3(ink);
  const threshold = otsu(ink.values);
  const isStroke = ink.values.map((value) => (value > threshold ? 1 : 0));
  const paper = ink.values.filter((_, i) => !isStroke[i]);
  const inked = ink.values.filter((_, i) => isStroke[i]);
  const middle = mean(paper);
  const deviation = Math.sqrt(mean(paper.map((value) => (value - middle) ** 2)));
  const contrast = inked.length ? mean(inked) - middle : 0;
  if (contrast < Math.max(0.15, 5 * deviation)) {
    return { ...plane, values: new Float32Array(plane.values.length) };
  }
  let strokes = largestComponents({ ...plane, values: isStroke });
  const full = median(ink.values.filter((_, i) => strokes.values[i]));
  // The soft edge of the strokes is ink as well.
  for (let i = 0; i < Math.ceil(side / 100); i++) strokes = spread(strokes);
  return {
    ...plane,
    values: Float32Array.from(ink.values, (value, i) => {
      const part = value / full;
      return strokes.values[i] && part > 0.1 ? Math.min(part, 1) : 0;
    }),
  };
}

/** A cubic surface through the ground, which is all that is not brighter ink. */
function findGround(plane) {
  const small = reduce(plane, 64);
  const values = Float64Array.from(small.values); // of one type, which is fast
  const powers = powersOf(small);
  let surface = new Float64Array(values.length);
  const weights = new Float64Array(values.length);
  for (let i = 0, changed = true; i < 20 && changed; i++) {
    changed = false; // the same weights would give the same surface
    for (let k = 0; k < values.length; k++) {
      const weight = values[k] > surface[k] ? 0.02 : 1;
      changed ||= weight !== weights[k];
      weights[k] = weight;
    }
    surface = surfaceOf(powers, fit(powers, values, weights));
  }
  const rest = Float64Array.from(values, (value, i) => value - surface[i]);
  const threshold = otsu(rest);
  const isGround = rest.map((value) => (value <= threshold ? 1 : 0));
  return surfaceOf(powersOf(plane), fit(powers, values, isGround));
}

function surfaceOf(powers, coefficients) {
  const surface = new Float64Array(powers[0].length);
  powers.forEach((power, i) => {
    const coefficient = coefficients[i];
    for (let k = 0; k < surface.length; k++) surface[k] += coefficient * power[k];
  });
  return surface;
}

/** Coefficients of the weighted least squares, the smallest where many would do. */
function fit(powers, values, weights) {
  const n = powers.length;
  const matrix = powers.map(() => new Float64Array(n));
  const right = new Float64Array(n);
  const weighted = new Float64Array(values.length);
  for (let i = 0; i < n; i++) {
    const power = powers[i];
    for (let k = 0; k < values.length; k++) weighted[k] = power[k] * weights[k];
    right[i] = dot(weighted, values);
    for (let j = 0; j <= i; j++) {
      matrix[i][j] = matrix[j][i] = dot(weighted, powers[j]);
    }
  }
  const { eigenvalues, eigenvectors } = diagonalize(matrix);
  const least = 1e-10 * Math.max(...eigenvalues.map(Math.abs));
  const result = new Float64Array(n);
  eigenvectors.forEach((vector, i) => {
    if (Math.abs(eigenvalues[i]) <= least) return;
    const amount = dot(vector, right) / eigenvalues[i];
    for (let j = 0; j < n; j++) result[j] += amount * vector[j];
  });
  return result;
}

/** Eigenvalues and eigenvectors of a small symmetric matrix, by Jacobi's rotations. */
function diagonalize(matrix) {
  const n = matrix.length;
  const a = matrix.map((row) => Float64Array.from(row));
  const vectors = a.map((_, i) => Float64Array.from(a, (_, j) => (i === j ? 1 : 0)));
  const size = Math.max(...a.map((row, i) => Math.abs(row[i])));
  for (let turned = true; turned; ) {
    turned = false;
    for (let p = 0; p < n; p++) {
      for (let q = p + 1; q < n; q++) {
        if (Math.abs(a[p][q]) <= 1e-16 * size) continue;
        turned = true;
        const angle = Math.atan2(2 * a[p][q], a[q][q] - a[p][p]) / 2;
        const c = Math.cos(angle);
        const s = Math.sin(angle);
        for (const row of a) rotate(row, p, row, q, c, s);
        for (let k = 0; k < n; k++) {
          rotate(a[p], k, a[q], k, c, s);
          rotate(vectors[p], k, vectors[q], k, c, s);
        }
      }
    }
  }
  return { eigenvalues: a.map((row, i) => row[i]), eigenvectors: vectors };
}

function rotate(first, i, second, j, c, s) {
  const [x, y] = [first[i], second[j]];
  first[i] = c * x - s * y;
  second[j] = s * x + c * y;
}

const powersBySize = new Map(); // of the last few sizes: drawings are all of one

/** The cubic surfaces of which a ground is made, for each pixel of a plane. */
function powersOf({ height, width }, degree = 3) {
  const size = `${height} x ${width}`;
  if (powersBySize.has(size)) return powersBySize.get(size);
  const powers = [];
  const along = (length) =>
    Float64Array.from({ length }, (_, i) => ((i + 0.5) / length) * 2 - 1);
  const [y, x] = [along(height), along(width)];
  for (let i = 0; i <= degree; i++) {
    for (let j = 0; j <= degree - i; j++) {
      const power = new Float64Array(height * width);
      for (let pixel = 0; pixel < power.length; pixel++) {
        power[pixel] = y[Math.floor(pixel / width)] ** i * x[pixel % width] ** j;
      }
      powers.push(power);
    }
  }
  if (powersBySize.size > 3) powersBySize.clear();
  powersBySize.set(size, powers);
  return powers;
}

/** The threshold that parts values into the two most compact classes. */
function otsu(values) {
  const bins = 256;
  const counts = new Float64Array(bins);
  for (const value of values) {
    if (value >= 0 && value <= 1) {
      counts[Math.min(Math.floor(value * bins), bins - 1)]++;
    }
  }
  const centre = (bin) => (bin + 0.5) / bins;
  const n = sum(counts);
  const total = counts.reduce((all, count, bin) => all + count * centre(bin), 0);
  let [below, sums, most, best] = [0, 0, -1, 0];
  for (let bin = 0; bin < bins; bin++) {
    below += counts[bin];
    sums += counts[bin] * centre(bin);
    const between = (total * below - sums * n) ** 2 / Math.max(below * (n - below), 1);
    if (between > most) [most, best] = [between, bin];
  }
  return (best + 1) / bins;
}

/** A mask without the connected parts that are small next to the largest one. */
function largestComponents(mask) {
  const { labels, sizes, atBorder } = components(mask);
  // A shadow or the edge of the table enters from outside, the symbol does not.
  const inside = sizes.map((size, label) => (atBorder[label] ? 0 : size));
  const enough = Math.max(...inside) >= 0.002 * labels.length;
  const kept = enough ? inside : sizes;
  const least = Math.max(1, 0.05 * Math.max(...kept));
  return { ...mask, values: labels.map((label) => (kept[label] >= least ? 1 : 0)) };
}

function components(mask) {
  const { height, width, values } = mask;
  const labels = new Int32Array(values.length);
  const sizes = [0];
  const atBorder = [true]; // what is outside of all
  for (let start = 0; start < values.length; start++) {
    if (!values[start] || labels[start]) continue;
    const label = sizes.length;
    sizes.push(0);
    atBorder.push(false);
    const open = [start];
    labels[start] = label;
    while (open.length) {
      const pixel = open.pop();
      sizes[label]++;
      if (isBorder(mask, pixel)) atBorder[label] = true;
      const [row, column] = [Math.floor(pixel / width), pixel % width];
      const [bottom, right] = [Math.min(height, row + 2), Math.min(width, column + 2)];
      for (let r = Math.max(0, row - 1); r < bottom; r++) {
        for (let c = Math.max(0, column - 1); c < right; c++) {
          const next = r * width + c;
          if (values[next] && !labels[next]) {
            labels[next] = label;
            open.push(next);
          }
        }
      }
    }
  }
  return { labels, sizes, atBorder };
}

/** The largest of each pixel and its eight neighbours. */
function spread(plane) {
  const { height, width } = plane;
  const line = (values, step, isFirst, isLast) =>
    values.map((value, i) =>
      Math.max(
        value, isFirst(i) ? 0 : values[i - step], isLast(i) ? 0 : values[i + step]),
    );
  const rows = line(
    plane.values, width, (i) => i < width, (i) => i >= (height - 1) * width);
  return {
    ...plane,
    values: line(rows, 1, (i) => i % width === 0, (i) => i % width === width - 1),
  };
}

/** The median of each pixel and its eight neighbours, those at the edge repeated. */
function median3({ height, width, values }) {
  const around = new Float32Array(9);
  return build({ height, width }, (row, column) => {
    let n = 0;
    for (let dy = -1; dy <= 1; dy++) {
      const r = Math.min(Math.max(row + dy, 0), height - 1);
      for (let dx = -1; dx <= 1; dx++) {
        const value = values[r * width + Math.min(Math.max(column + dx, 0), width - 1)];
        let place = n++; // insertion sort
        for (; place > 0 && around[place - 1] > value; place--) {
          around[place] = around[place - 1];
        }
        around[place] = value;
      }
    }
    return around[4];
  });
}

function pad(plane, margin) {
  const { height, width, values } = plane;
  const size = { height: height + 2 * margin, width: width + 2 * margin };
  return build(size, (row, column) => {
    const [r, c] = [row - margin, column - margin];
    return r >= 0 && r < height && c >= 0 && c < width ? values[r * width + c] : 0;
  });
}

function build({ height, width }, valueAt) {
  const values = new Float32Array(height * width);
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++) values[i++] = valueAt(row, column);
  }
  return { height, width, values };
}

/** Whether a pixel is one of the outermost; of several channels, a value. */
function isBorder({ height, width, channels = 1 }, i) {
  const pixel = Math.floor(i / channels);
  const [row, column] = [Math.floor(pixel / width), pixel % width];
  return row === 0 || row === height - 1 || column === 0 || column === width - 1;
}

function dot(first, second) {
  let [a, b] = [0, 0]; // two sums, since each has to wait for the one before
  let i = 0;
  for (; i + 1 < first.length; i += 2) {
    a += first[i] * second[i];
    b += first[i + 1] * second[i + 1];
  }
  return i < first.length ? a + b + first[i] * second[i] : a + b;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
const mean = (values) => sum(values) / values.length;

function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = (sorted.length - 1) / 2;
  return (sorted[Math.floor(middle)] + sorted[Math.ceil(middle)]) / 2;
}
