// Numbers to pixels: pictures, in grey or colour, tinted or with votes over them.

/** Paints a picture of the model, each of its pixels a square.
 *
 * @param {HTMLCanvasElement} canvas - Its style says how large it is.
 * @param {number[]} shape - Height, width and channels.
 * @param {Float32Array} values - In [0, 1].
 */
export function paint(canvas, shape, values) {
  const channels = shape[2];
  paintPixels(canvas, shape, (i) =>
    [0, 1, 2].map((channel) => values[i * channels + (channels === 3 ? channel : 0)]),
  );
}

/** Paints grey pictures over each other, each in a colour of its own. */
export function paintTinted(canvas, shape, pictures, colours) {
  paintPixels(canvas, shape, (i) =>
    [0, 1, 2].map((channel) =>
      pictures.reduce((sum, values, n) => sum + values[i] * colours[n][channel], 0),
    ),
  );
}

/** Paints a pixel at a time; `colourAt` returns red, green and blue in [0, 1]. */
export function paintPixels(canvas, [height, width], colourAt) {
  if (canvas.width !== width || canvas.height !== height) {
    [canvas.width, canvas.height] = [width, height];
  }
  const context = canvas.getContext("2d");
  const data = context.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    data.data.set(colourAt(i).map((part) => 255 * part), 4 * i);
    data.data[4 * i + 3] = 255;
  }
  context.putImageData(data, 0, 0);
}

/** The brightness of each pixel. */
export function brightness([height, width, channels], values) {
  return Float32Array.from({ length: height * width }, (_, i) => {
    let sum = 0;
    for (let c = 0; c < channels; c++) sum += values[i * channels + c];
    return sum / channels;
  });
}
