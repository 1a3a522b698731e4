// Which parts of a picture vote for a class, round by round.
//
// A place of the primary capsules sees a square of the picture, its field. Its vote for
// a class is the sum, over the types of capsules there, of coupling times agreement:
// c_ij (u_hat_ij . v_j).

import { byId, create, decimals } from "./elements.js";
import { brightness, paintPixels } from "./painting.js";

const FOR = [1, 0.5, 0.16]; // the colour of votes for a class
const AGAINST = [0.25, 0.5, 1];
const DETAIL = 4; // points of the map for a pixel of the picture
const MOST = 12; // small maps; of more classes, those with the longest capsules
const BEAT = 1100; // ms between two rounds that play

export class RoutingView {
  /**
   * @param {object} manifest - Of the model.
   * @param {(index: number) => void} onChoice - A class was chosen.
   */
  constructor(manifest, onChoice) {
    this.names = manifest.class_names;
    this.shape = manifest.input_shape;
    this.onChoice = onChoice;
    const [down, across] = (this.fields = manifest.fields);
    const [height, width] = this.shape;
    this.rows = down.places;
    this.columns = across.places;
    this.weights = Object.fromEntries(
      [1, DETAIL].map((detail) => [
        detail,
        [
          this.spreadWeights(height * detail, detail, down),
          this.spreadWeights(width * detail, detail, across),
        ],
      ]),
    );
    this.round = manifest.routings - 1;
    this.place = null;
    this.map = byId("votes");
    this.map.style.aspectRatio = `${width} / ${height}`;
    this.lens = byId("lens");
    this.makeStepper(manifest.routings);
    this.makeSmallMaps();
    this.map.addEventListener("pointermove", (event) => this.point(event));
    this.map.addEventListener("pointerleave", () => this.choosePlace(null));
    this.map.addEventListener("keydown", (event) => this.step(event));
    this.map.addEventListener("blur", () => this.choosePlace(null));
  }

  makeStepper(rounds) {
    this.steps = Array.from({ length: rounds }, (_, i) =>
      create("input", {
        type: "radio",
        name: "round",
        value: i,
        checked: i === this.round,
        onchange: () => this.goTo(i),
      }),
    );
    const labels = this.steps.map((input, i) =>
      create("label", {}, input, create("span", {}, `${i + 1}`)),
    );
    byId("rounds").append(...labels);
    byId("play").addEventListener("click", () => this.play());
  }

  makeSmallMaps() {
    this.small = Array.from({ length: Math.min(this.names.length, MOST) }, () => {
      const small = { canvas: create("canvas", { className: "tile" }) };
      small.label = create("span");
      small.button = create(
        "button",
        {
          type: "button",
          className: "sample",
          onclick: () => this.onChoice(small.index),
        },
        small.canvas,
        small.label,
      );
      return small;
    });
    byId("small-maps").replaceChildren(...this.small.map(({ button }) => button));
  }

  /**
   * @param {object} seen - The worker's answer.
   * @param {number} index - Of the class whose votes are shown.
   */
  show(seen, index) {
    this.rounds = seen.rounds;
    this.ink = brightness(this.shape, seen.image);
    this.index = index;
    // One scale for all classes and rounds, so that growing votes look as they grow.
    const longest = seen.lengths.indexOf(Math.max(...seen.lengths));
    this.largest = Math.max(1e-6, ...this.spread(this.rounds.at(-1).votes, longest, 1));
    const order = [...this.names.keys()];
    const { lengths } = seen;
    if (order.length > MOST) order.sort((i, j) => lengths[j] - lengths[i]);
    this.small.forEach((small, i) => (small.index = order[i]));
    this.repaint();
  }

  goTo(round) {
    this.round = round;
    this.steps[round].checked = true;
    this.repaint();
  }

  /** Shows the rounds one after the other. */
  play() {
    clearTimeout(this.timer);
    this.goTo(0);
    const next = () => {
      if (this.round + 1 >= this.rounds.length) return;
      this.goTo(this.round + 1);
      this.timer = setTimeout(next, BEAT);
    };
    this.timer = setTimeout(next, BEAT);
  }

  repaint() {
    if (!this.rounds) return;
    const { lengths, votes, couplings } = this.rounds[this.round];
    this.paintMap(this.map, votes, this.index, DETAIL);
    for (const { canvas, label, button, index } of this.small) {
      this.paintMap(canvas, votes, index, 1);
      const text = `${this.names[index]} \u00b7 ${decimals(lengths[index])}`;
      label.textContent = text;
      button.setAttribute("aria-pressed", index === this.index);
      button.setAttribute("aria-label", `Votes for ${text}`);
    }
    const name = this.names[this.index];
    const places = this.rows * this.columns;
    const own = votes.subarray(this.index * places, (this.index + 1) * places);
    const all = own.reduce((sum, vote) => sum + vote, 0);
    byId("round-length").textContent = decimals(lengths[this.index]);
    byId("round-coupling").textContent = decimals(couplings[this.index]);
    byId("round-votes").textContent = decimals(all);
    for (const element of document.querySelectorAll(".routed-class")) {
      element.textContent = name;
    }
    this.describePlace();
  }

  /** The picture, dim, and over it the votes, spread over the fields they are from. */
  paintMap(canvas, votes, index, detail) {
    const [height, width] = this.shape;
    const map = this.spread(votes, index, detail);
    paintPixels(canvas, [height * detail, width * detail], (i) => {
      const y = Math.floor(i / (width * detail) / detail);
      const x = Math.floor((i % (width * detail)) / detail);
      const ink = Math.min(1, this.ink[y * width + x]);
      const part = Math.abs(map[i]) / this.largest;
      const strength = Math.min(1, 1.25 * Math.sqrt(part)); // weak ones can be seen
      const colour = map[i] > 0 ? FOR : AGAINST;
      return colour.map((shade) => {
        const drawn = 0.42 * (1 - strength) + shade * strength;
        return ink * drawn + (1 - ink) * 0.34 * shade * strength;
      });
    });
  }

  /** A class's votes at each point of the picture: first along rows, then down. */
  spread(votes, index, detail) {
    const { rows, columns } = this;
    const [down, across] = this.weights[detail];
    const [height, width] = this.shape.map((side) => side * detail);
    const own = votes.subarray(index * rows * columns, (index + 1) * rows * columns);
    const lines = new Float32Array(rows * width);
    for (let row = 0; row < rows; row++) {
      for (let x = 0; x < width; x++) {
        for (let column = 0; column < columns; column++) {
          lines[row * width + x] +=
            across[x * columns + column] * own[row * columns + column];
        }
      }
    }
    const map = new Float32Array(height * width);
    for (let y = 0; y < height; y++) {
      for (let row = 0; row < rows; row++) {
        const part = down[y * rows + row];
        if (!part) continue;
        for (let x = 0; x < width; x++) {
          map[y * width + x] += part * lines[row * width + x];
        }
      }
    }
    return map;
  }

  /** How much each place counts at each point: most in the middle of its field. */
  spreadWeights(points, detail, { places, start, strides, size }) {
    const weights = new Float64Array(points * places);
    const reach = size / 2 + strides; // so that no edge is without votes
    for (let point = 0; point < points; point++) {
      let total = 0;
      for (let place = 0; place < places; place++) {
        const middle = start + place * strides + size / 2;
        const distance = Math.abs((point + 0.5) / detail - middle);
        const weight = Math.max(0, 1 - distance / reach) ** 3;
        weights[point * places + place] = weight;
        total += weight;
      }
      for (let place = 0; place < places && total; place++) {
        weights[point * places + place] /= total;
      }
    }
    return weights;
  }

  point(event) {
    const box = this.map.getBoundingClientRect();
    const at = (part, side, { places, start, strides, size }) => {
      const place = Math.round((part * side - start - size / 2) / strides);
      return Math.min(Math.max(place, 0), places - 1);
    };
    const [height, width] = this.shape;
    const [down, across] = this.fields;
    this.choosePlace([
      at((event.clientY - box.top) / box.height, height, down),
      at((event.clientX - box.left) / box.width, width, across),
    ]);
  }

  /** Arrow keys move the field. */
  step(event) {
    const moves = {
      ArrowUp: [-1, 0],
      ArrowDown: [1, 0],
      ArrowLeft: [0, -1],
      ArrowRight: [0, 1],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const middle = [this.rows >> 1, this.columns >> 1];
    const [row, column] = this.place ?? middle;
    this.choosePlace([
      Math.min(Math.max(row + move[0], 0), this.rows - 1),
      Math.min(Math.max(column + move[1], 0), this.columns - 1),
    ]);
  }

  choosePlace(place) {
    this.place = place;
    this.describePlace();
  }

  describePlace() {
    this.lens.hidden = !this.place;
    if (!this.place) {
      byId("place").textContent = "Point at the picture to see the field of a place.";
      return;
    }
    const [height, width] = this.shape;
    const [row, column] = this.place;
    const [down, across] = this.fields;
    const frame = (place, { start, strides, size }, side) => {
      const first = Math.max(0, start + place * strides); // a field may reach over it
      const last = Math.min(side, start + place * strides + size);
      return [first, last - first].map((pixels) => `${(100 * pixels) / side}%`);
    };
    const { style } = this.lens;
    [style.top, style.height] = frame(row, down, height);
    [style.left, style.width] = frame(column, across, width);
    const { votes } = this.rounds[this.round];
    const place = row * this.columns + column;
    const vote = votes[this.index * this.rows * this.columns + place];
    byId("place").textContent =
      `Row ${row + 1}, column ${column + 1}: the capsules that see this square ` +
      `vote ${decimals(vote)} for ${this.names[this.index]}.`;
  }
}
