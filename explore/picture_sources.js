// Pictures from files, from the clipboard and dropped ones; and digits of the test set.

import { byId, create } from "./elements.js";
import { paint } from "./painting.js";

const LONGEST_SIDE = 1280; // pixels; more would say nothing more

/** A picture file, of a size that can be worked with, on a canvas. */
async function readFile(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = create("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // transparent pixels lie over white
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas;
}

/** The pixels of a canvas, grey ones by their luminance, as worker.js takes them. */
function pixelsOf(canvas, channels) {
  const { width, height } = canvas;
  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
  const values = new Float32Array(height * width * channels);
  for (let i = 0; i < height * width; i++) {
    const [red, green, blue] = data.subarray(4 * i, 4 * i + 3);
    if (channels === 3) values.set([red / 255, green / 255, blue / 255], 3 * i);
    else values[i] = (0.299 * red + 0.587 * green + 0.114 * blue) / 255;
  }
  return { height, width, channels, values };
}

/** Lets pictures in: by the button, by pasting and by dropping them on the page.
 *
 * @param {number} channels - 1 or 3.
 * @param {(canvas, picture) => void} onPicture
 * @param {(message: string) => void} onFailure
 */
export function takePictures(channels, onPicture, onFailure) {
  const take = async (files) => {
    const file = [...(files ?? [])].find(({ type }) => type.startsWith("image/"));
    if (!file) return;
    try {
      const canvas = await readFile(file);
      onPicture(canvas, pixelsOf(canvas, channels));
    } catch {
      onFailure("This file is not a picture that the browser can read.");
    }
  };
  const input = byId("picture-file");
  byId("load").addEventListener("click", () => input.click());
  input.addEventListener("change", async () => {
    await take(input.files);
    input.value = ""; // so that the same file can be taken again
  });
  addEventListener("paste", (event) => take(event.clipboardData?.files));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    take(event.dataTransfer?.files);
  });
}

/** The test images that came with a model: their values, and what is known of them.
 *
 * @param {object} manifest - Of the model.
 * @param {string} beginning - Of the names of its files.
 */
export async function loadTestImages(manifest, beginning) {
  if (!manifest.test_images.length) return [];
  const name = `${beginning}test_images.bin`;
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) return [];
  const pixels = new Uint8Array(await response.arrayBuffer());
  const [height, width, channels] = manifest.input_shape;
  const size = height * width * channels;
  return manifest.test_images.map((known, i) => {
    const part = pixels.subarray(i * size, (i + 1) * size);
    const values = Float32Array.from(part, (value) => value / 255);
    return { ...known, picture: { height, width, channels, values } };
  });
}

/** Fills the strip: first those that were named right, then the mistaken ones. */
export function showStrip(testImages, shape, perRow, onChoice) {
  for (const [id, isRight] of [["strip-right", true], ["strip-wrong", false]]) {
    const chosen = testImages.filter(
      (image) => (image.class === image.named) === isRight,
    );
    const buttons = chosen.slice(0, perRow).map((image) => {
      const canvas = create("canvas", { className: "tile" });
      paint(canvas, shape, image.picture.values);
      const label = isRight
        ? `Test image of class ${image.class}`
        : `Test image of class ${image.class}, taken for ${image.named}`;
      const caption = isRight ? image.class : `${image.class} \u2192 ${image.named}`;
      return create(
        "button",
        {
          type: "button",
          className: "sample",
          title: label,
          "aria-label": label,
          onclick: () => onChoice(canvas, image.picture),
        },
        canvas,
        create("span", {}, caption),
      );
    });
    byId(id).replaceChildren(...buttons);
    byId(id).parentElement.hidden = !buttons.length;
  }
}
