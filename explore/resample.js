// Pictures in other sizes, to the last digit as Pillow makes them.
//
// A plane is one channel: { height, width, values }, by rows.

export const BOX = { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) };
export const BILINEAR = { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) };

/** A plane in another size, antialiased, and cut to [0, 1]. */
export function resize(plane, height, width, filter = BILINEAR) {
  let { values } = plane;
  if (width !== plane.width) {
    values = resizeRows(values, plane.height, plane.width, width, filter);
  }
  if (height !== plane.height) {
    values = transpose(values, plane.height, width);
    values = resizeRows(values, width, plane.height, height, filter);
    values = transpose(values, width, height);
  }
  return { height, width, values: values.map((x) => Math.min(Math.max(x, 0), 1)) };
}

/** Averages over pixels until the longest side is as asked; never enlarges. */
export function reduce(plane, longest) {
  const scale = Math.min(1, longest / Math.max(plane.height, plane.width));
  const [height, width] = [plane.height, plane.width].map((side) =>
    Math.max(1, roundHalfEven(side * scale)),
  );
  return resize(plane, height, width);
}

/** As Python rounds: a half to the even neighbour. */
export function roundHalfEven(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

function resizeRows(values, rows, width, newWidth, filter) {
  const scale = width / newWidth;
  const stretch = Math.max(scale, 1);
  const support = filter.support * stretch;
  const result = new Float32Array(rows * newWidth);
  for (let x = 0; x < newWidth; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(width, Math.trunc(centre + support + 0.5));
    const weights = new Float64Array(end - first);
    let total = 0;
    for (let i = first; i < end; i++) {
      weights[i - first] = filter.weight((i - centre + 0.5) / stretch);
      total += weights[i - first];
    }
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let i = first; i < end; i++) {
        sum += (weights[i - first] / total) * values[row * width + i];
      }
      result[row * newWidth + x] = sum;
    }
  }
  return result;
}

function transpose(values, rows, columns) {
  const result = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      result[column * rows + row] = values[row * columns + column];
    }
  }
  return result;
}
