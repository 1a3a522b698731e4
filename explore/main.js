// Puts the parts of the page together.

import { CapsuleSliders } from "./capsule_sliders.js";
import { DrawingPad } from "./drawing_pad.js";
import { byId, create, decimals } from "./elements.js";
import { LengthBars } from "./length_bars.js";
import { NetworkClient, newestOnly } from "./network_client.js";
import { paint } from "./painting.js";
import { loadTestImages, showStrip, takePictures } from "./picture_sources.js";
import { RoutingView } from "./routing_view.js";
import { TwoDigits } from "./two_digits.js";

const THRESHOLD = 0.5; // the length of a capsule whose entity is there
const PER_ROW = 10; // test images of each kind

class Page {
  constructor(manifest, network, testImages) {
    this.manifest = manifest;
    this.names = manifest.class_names;
    this.network = network;
    this.chosen = null; // a class; null for the one with the longest capsule
    this.isDigits = manifest.digit_box !== null && manifest.input_shape[2] === 1;
    this.look = newestOnly((picture) => this.lookNow(picture));

    const choose = (index) => this.choose(index === this.chosen ? null : index);
    this.bars = new LengthBars(byId("bars"), this.names, choose);
    this.sliders = new CapsuleSliders(
      byId("sliders"), manifest, network, (image) => this.showMoved(image));
    this.routing = new RoutingView(manifest, choose);
    this.pad = new DrawingPad(byId("pad"), ["#fff"], () => this.drawn());
    this.connect();
    const show = (canvas, picture) => this.take(canvas, picture);
    showStrip(testImages, manifest.input_shape, PER_ROW, show);
    takePictures(manifest.input_shape[2], show, (text) => this.say(text));
    this.begin(testImages);
  }

  connect() {
    byId("undo").addEventListener("click", () => this.pad.undo());
    byId("clear").addEventListener("click", () => {
      this.chosen = null;
      this.pad.clear();
    });
    byId("brush").addEventListener("input", ({ target }) => {
      this.pad.brush = target.value / 100;
    });
    byId("follow").addEventListener("click", () => this.choose(null));
    byId("reset").addEventListener("click", () => this.sliders.reset());
    const select = byId("class");
    select.replaceChildren(
      ...this.names.map((name, value) => create("option", { value }, name)),
    );
    select.addEventListener("change", () => this.choose(Number(select.value)));
    document.body.classList.toggle("is-pictures", !this.isDigits);
    if (!this.isDigits) byId("pad").style.pointerEvents = "none";
    byId("hint").textContent = this.isDigits
      ? "Draw a digit here"
      : "Load a picture, paste one, or drop it here";
  }

  /** The first picture: a test image, else an empty pad. */
  begin([first]) {
    if (first) byId("strip-right").querySelector("button").click();
    else this.drawn();
  }

  drawn() {
    const [height, width, channels] = this.manifest.input_shape;
    const values = new Float32Array(height * width * channels);
    const black = { height, width, channels, values };
    this.look(this.isDigits ? this.pad.plane(0) : black);
    this.showHint();
  }

  /** Shows a picture that is there already on the pad, and looks at it. */
  take(canvas, picture) {
    this.chosen = null;
    this.pad.show(canvas);
    this.look(picture);
    this.showHint();
  }

  showHint() {
    byId("hint").hidden = this.pad.picture !== null || !this.pad.isEmpty;
    byId("undo").disabled = this.pad.isEmpty;
  }

  /** Looks at the same picture again, with another class to show. */
  choose(index) {
    this.chosen = index;
    this.look(this.picture);
  }

  async lookNow(picture) {
    this.picture = picture;
    const shown = this.chosen;
    const seen = await this.network.ask("see", { picture, shown });
    const { lengths, named } = seen;
    const longest = lengths.indexOf(Math.max(...lengths));
    const index = shown ?? longest;
    // Capsules answer to an empty picture, too, as if something were there.
    const isEmpty = seen.image.every((value) => value === 0);
    this.bars.show(lengths, isEmpty ? [] : named, shown);
    paint(byId("seen"), this.manifest.input_shape, seen.image);
    paint(byId("reconstruction"), this.manifest.input_shape, seen.reconstruction);
    byId("drawn-classes").textContent = this.list(seen.drawn);
    byId("class").value = index;
    byId("follow").hidden = shown === null;
    this.sliders.show(seen.capsules, index);
    this.routing.show(seen, index);
    this.say(isEmpty ? "Nothing to read" : this.answerOf(lengths, named));
    byId("milliseconds").textContent = Math.round(seen.milliseconds);
  }

  answerOf(lengths, named) {
    const isLong = named.filter((j) => lengths[j] > THRESHOLD);
    if (!isLong.length) return "No capsule is longer than 0.5";
    return this.list(isLong);
  }

  list(indices) {
    return indices.map((j) => this.names[j]).join(" and ") || "no class";
  }

  say(text) {
    const answer = byId("answer");
    if (answer.textContent !== text) answer.textContent = text; // read out once
    answer.classList.toggle("is-long", text.length > 3);
  }

  showMoved(image) {
    paint(byId("moved"), this.manifest.input_shape, image);
  }
}

/** What a model is, in a sentence. */
function describe(manifest) {
  const [height, width, channels] = manifest.input_shape;
  const colour = channels === 3 ? " in colour" : "";
  const size = manifest.weights.reduce(
    (sum, { shape }) => sum + shape.reduce((product, side) => product * side, 1), 0);
  return (
    `${manifest.title}: ${decimals(size / 1e6, 1)} million weights, images of ` +
    `${height} \u00d7 ${width} pixels${colour}, ` +
    `${manifest.class_names.length} classes, ${manifest.routings} rounds of routing`
  );
}

/** A promise of the element being in sight, or nearly. */
function inSight(element) {
  return new Promise((resolve) => {
    const seen = ([entry], observer) => {
      if (!entry.isIntersecting) return;
      observer.disconnect();
      resolve();
    };
    new IntersectionObserver(seen, { rootMargin: "50%" }).observe(element);
  });
}

/** Part 4, by the page's own model or by another one, which is loaded when needed. */
async function showTwoDigits(manifest, network, testImages) {
  const files = manifest.two_digits;
  if (files === null) return;
  byId("two-digits").hidden = false;
  let model = [manifest, network, testImages];
  if (files) {
    await inSight(byId("two-digits"));
    const other = new NetworkClient();
    const itsManifest = await other.ask("load", files);
    model = [itsManifest, other, await loadTestImages(itsManifest, files)];
    byId("pair-model").textContent = `Part 4: ${describe(itsManifest)}`;
  }
  byId("pair-loading").hidden = true;
  byId("pair").hidden = false;
  new TwoDigits(...model);
}

async function start() {
  const network = new NetworkClient();
  const manifest = await network.ask("load", "");
  const testImages = await loadTestImages(manifest, "");
  const [height, width] = manifest.input_shape;
  byId("model").textContent = describe(manifest);
  byId("seen-size").textContent = `${height} \u00d7 ${width}`;
  byId("loading").hidden = true;
  byId("parts").hidden = false;
  new Page(manifest, network, testImages);
  await showTwoDigits(manifest, network, testImages);
}

start().catch((error) => {
  const text = `The model could not be loaded (${error.message}).`;
  for (const place of document.querySelectorAll(".loading")) place.textContent = text;
});
