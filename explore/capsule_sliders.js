// A slider for each element of a capsule, under a film strip of what it changes.

import { create, decimals } from "./elements.js";
import { newestOnly } from "./network_client.js";
import { paint } from "./painting.js";

const REACH = 0.25; // either way from the drawing's own value
const CHANGES = [-1, -0.5, 0, 0.5, 1].map((part) => part * REACH);
const PAUSE = 150; // ms without a change, before the strips are made

/**
 * @param {HTMLElement} list - Where the sliders are.
 * @param {object} manifest - Of the model.
 * @param {NetworkClient} network
 * @param {(values: Float32Array) => void} onImage - Gets the reconstruction.
 */
export class CapsuleSliders {
  constructor(list, manifest, network, onImage) {
    this.shape = manifest.input_shape;
    this.network = network;
    this.onImage = onImage;
    this.decode = newestOnly((argument) => this.decodeNow(argument));
    this.film = newestOnly((argument) => this.filmNow(argument));
    this.dim = manifest.capsule_size;
    this.rows = Array.from({ length: this.dim }, (_, i) => this.row(i));
    list.replaceChildren(...this.rows.map(({ item }) => item));
  }

  row(element) {
    const name = `Dimension ${element + 1}`;
    const row = { frames: CHANGES.map(() => create("canvas", { className: "tile" })) };
    row.value = create("output", { className: "slider-value" });
    row.slider = create("input", {
      type: "range",
      min: -REACH,
      max: REACH,
      step: 0.005,
      value: 0,
      title: "A double click, or the key 0, sets back",
      "aria-label": name,
      oninput: () => this.move(element),
      onchange: () => this.refreshFilm(),
      ondblclick: () => this.set(element, 0),
      onkeydown: ({ key }) => {
        if (key === "0") this.set(element, 0);
      },
    });
    row.item = create(
      "li",
      { className: "slider" },
      create("span", { className: "slider-name" }, `${element + 1}`),
      row.value,
      create("div", { className: "film", "aria-hidden": "true" }, ...row.frames),
      row.slider,
    );
    return row;
  }

  /** Starts from a drawing's own capsules.
   *
   * @param {Float32Array} capsules - Of all classes.
   * @param {number} index - The class whose capsule is moved.
   */
  show(capsules, index) {
    this.capsules = capsules;
    this.index = index;
    this.reset();
  }

  reset() {
    this.rows.forEach((_, element) => this.label(element, 0));
    this.update();
    this.refreshFilm();
  }

  set(element, change) {
    this.label(element, change);
    this.update();
    this.refreshFilm();
  }

  move(element) {
    this.label(element, Number(this.rows[element].slider.value));
    this.update();
  }

  label(element, change) {
    const { slider, value, item } = this.rows[element];
    const total = this.own(element) + change;
    slider.value = change;
    slider.setAttribute("aria-valuetext", decimals(total));
    value.textContent = decimals(total);
    item.classList.toggle("is-moved", change !== 0);
  }

  own(element) {
    return this.capsules[this.index * this.dim + element];
  }

  /** The capsules, with the one that is moved where the sliders are. */
  moved() {
    const capsules = this.capsules.slice();
    this.rows.forEach(({ slider }, element) => {
      capsules[this.index * this.dim + element] += Number(slider.value);
    });
    return capsules;
  }

  update() {
    this.decode({ capsules: this.moved(), shown: [this.index] });
  }

  async decodeNow(argument) {
    this.onImage(await this.network.ask("decode", argument));
  }

  /** Once nothing has changed for a moment: while someone draws, strips would cost. */
  refreshFilm() {
    clearTimeout(this.timer);
    this.wanted = null;
    this.timer = setTimeout(() => {
      this.wanted = { capsules: this.moved(), shown: this.index };
      this.film(this.wanted);
    }, PAUSE);
  }

  /** One strip after the other, until there is something newer to show. */
  async filmNow(wanted) {
    for (let element = 0; element < this.dim; element++) {
      const values = CHANGES.map((change) => this.own(element) + change);
      const images = await this.network.ask("film", { ...wanted, element, values });
      if (this.wanted !== wanted) return;
      const { frames } = this.rows[element];
      images.forEach((image, i) => paint(frames[i], this.shape, image));
    }
  }
}
