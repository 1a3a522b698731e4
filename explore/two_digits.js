// Two digits over each other, and what the network takes apart.

import { DrawingPad } from "./drawing_pad.js";
import { byId, create, decimals } from "./elements.js";
import { newestOnly } from "./network_client.js";
import { paint, paintTinted } from "./painting.js";

const RED = [1, 0.25, 0.2];
const GREEN = [0.2, 0.9, 0.35];
const LARGEST_SHIFT = 4; // pixels, as in training

export class TwoDigits {
  /**
   * @param {object} manifest - Of a model of two digits.
   * @param {NetworkClient} network
   * @param {object[]} testImages - Of `loadTestImages`.
   */
  constructor(manifest, network, testImages) {
    this.names = manifest.class_names;
    this.shape = manifest.input_shape;
    this.network = network;
    this.see = newestOnly((request) => this.seeNow(request));
    const colours = [RED, GREEN].map(
      (colour) => `rgb(${colour.map((part) => 255 * part).join(" ")})`,
    );
    this.pad = new DrawingPad(byId("pair-pad"), colours, () => this.drawn());
    for (const input of document.getElementsByName("layer")) {
      input.addEventListener("change", () => (this.pad.layer = Number(input.value)));
    }
    byId("pair-undo").addEventListener("click", () => this.pad.undo());
    byId("pair-clear").addEventListener("click", () => this.pad.clear());
    const digits = testImages.filter((image) => image.class === image.named);
    const button = byId("pair-random");
    button.hidden = digits.length < 2;
    button.addEventListener("click", () => this.putTogether(digits));
    if (digits.length < 2) this.drawn();
    else this.putTogether(digits);
  }

  drawn() {
    const layers = [0, 1].map((layer) => this.pad.plane(layer));
    this.see(["seeLayers", { layers }]);
  }

  /** Two test digits of different classes, each moved a little, over each other. */
  putTogether(digits) {
    const first = pick(digits);
    const second = pick(digits.filter((image) => image.class !== first.class));
    const pictures = [first, second].map(({ picture }) => this.moved(picture));
    const values = pictures[0].map((value, i) => Math.min(1, value + pictures[1][i]));
    const canvas = create("canvas");
    paintTinted(canvas, this.shape, pictures, [RED, GREEN]);
    this.pad.show(canvas);
    const [height, width, channels] = this.shape;
    const picture = { height, width, channels, values };
    this.see(["see", { picture, shown: null }, pictures]);
  }

  moved({ values }) {
    const [height, width] = this.shape;
    const [down, right] = [0, 0].map(() =>
      Math.round((2 * Math.random() - 1) * LARGEST_SHIFT),
    );
    return values.map((_, i) => {
      const row = Math.floor(i / width) - down;
      const column = (i % width) - right;
      const isInside = row >= 0 && row < height && column >= 0 && column < width;
      return isInside ? values[row * width + column] : 0;
    });
  }

  async seeNow([call, argument, pictures]) {
    const seen = await this.network.ask(call, argument);
    const { lengths, image } = seen;
    // In the colours of the layers, whichever capsule is the longer one.
    const order = areInOrder(seen.alone, pictures ?? seen.parts) ? [0, 1] : [1, 0];
    const [alone, named] = [seen.alone, seen.named].map((pair) => order.map((k) => pair[k]));
    paint(byId("pair-seen"), this.shape, image);
    paintTinted(byId("pair-both"), this.shape, alone, [RED, GREEN]);
    paintTinted(byId("pair-first"), this.shape, [alone[0]], [RED]);
    paintTinted(byId("pair-second"), this.shape, [alone[1]], [GREEN]);
    const texts = named.map((j) => `${this.names[j]} \u00b7 ${decimals(lengths[j])}`);
    byId("pair-first-name").textContent = texts[0];
    byId("pair-second-name").textContent = texts[1];
    const isEmpty = image.every((value) => value === 0);
    byId("pair-answer").classList.toggle("is-long", isEmpty);
    byId("pair-answer").textContent = isEmpty
      ? "Nothing to read"
      : named.map((j) => this.names[j]).join(" and ");
  }
}

/** Whether two drawings are of two parts in this order, rather than in the other. */
const areInOrder = ([a, b], [first, second]) =>
  a.reduce((sum, value, i) => sum + (value - b[i]) * (first[i] - second[i]), 0) >= 0;

const pick = (array) => array[Math.floor(Math.random() * array.length)];
