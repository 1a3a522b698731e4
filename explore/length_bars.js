// The lengths of the class capsules, as bars; a press on one chooses its class.

import { create, decimals } from "./elements.js";

const MOST = 12; // bars at a time; of more classes, those with the longest capsules

/**
 * @param {HTMLElement} list - Where the bars are.
 * @param {string[]} names - Of the classes.
 * @param {(index: number) => void} onChoice
 */
export class LengthBars {
  constructor(list, names, onChoice) {
    this.names = names;
    this.onChoice = onChoice;
    this.bars = Array.from({ length: Math.min(names.length, MOST) }, (_, i) => {
      const bar = {
        index: i,
        name: create("span", { className: "bar-name" }),
        fill: create("span", { className: "bar-fill" }),
        value: create("span", { className: "bar-value" }),
      };
      bar.button = create(
        "button",
        { type: "button", className: "bar", onclick: () => onChoice(bar.index) },
        bar.name,
        create("span", { className: "bar-track" }, bar.fill),
        bar.value,
      );
      return bar;
    });
    const axis = ["0", "0.5", "1"].map((text) => create("span", {}, text));
    list.replaceChildren(
      ...this.bars.map((bar) => create("li", {}, bar.button)),
      create("li", { className: "axis", "aria-hidden": "true" }, ...axis),
    );
    this.show(new Float32Array(names.length), [], null);
  }

  /**
   * @param {Float32Array} lengths
   * @param {number[]} named - The classes that the network names.
   * @param {number|null} chosen - The class that was chosen by hand, if any.
   */
  show(lengths, named, chosen) {
    let indices = [...lengths.keys()];
    if (indices.length > MOST) {
      indices = indices.sort((i, j) => lengths[j] - lengths[i]).slice(0, MOST);
    }
    this.bars.forEach((bar, i) => {
      const index = (bar.index = indices[i]);
      const length = lengths[index];
      const isNamed = named.includes(index);
      bar.name.textContent = this.names[index];
      bar.value.textContent = decimals(length);
      bar.fill.style.transform = `scaleX(${Math.min(length, 1)})`;
      bar.button.classList.toggle("is-named", isNamed);
      bar.button.setAttribute("aria-pressed", index === chosen);
      bar.button.setAttribute(
        "aria-label",
        `${this.names[index]}: length ${decimals(length)}${isNamed ? ", named" : ""}`,
      );
    });
  }
}
