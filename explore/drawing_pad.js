// A pad to draw on with mouse, pen or finger, or to show a picture on instead.

const INK_SIDE = 120; // pixels, of the drawing that the network gets

/** Strokes in one or more layers.
 *
 * @param {HTMLCanvasElement} canvas - The pad.
 * @param {string[]} colours - Of the strokes of each layer.
 * @param {() => void} onChange - Called after each change.
 */
export class DrawingPad {
  constructor(canvas, colours, onChange) {
    this.canvas = canvas;
    this.colours = colours;
    this.onChange = onChange;
    this.layer = 0;
    this.brush = 0.08; // of the pad's side
    this.strokes = []; // { layer, brush, points }, points from 0 to 1
    this.picture = null; // a canvas that is shown as long as nothing is drawn
    this.ink = document.createElement("canvas");
    this.ink.width = this.ink.height = INK_SIDE;
    this.inkContext = this.ink.getContext("2d", { willReadFrequently: true });
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.go(event));
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, () => (this.current = null));
    }
    new ResizeObserver(() => this.repaint()).observe(canvas);
  }

  get isEmpty() {
    return !this.strokes.length;
  }

  begin(event) {
    if (event.button !== 0 || this.current) return;
    event.preventDefault();
    this.canvas.setPointerCapture(event.pointerId);
    this.picture = null;
    this.current = { layer: this.layer, brush: this.brush, points: [] };
    this.pointer = event.pointerId;
    this.strokes.push(this.current);
    this.go(event);
  }

  go(event) {
    if (!this.current || event.pointerId !== this.pointer) return;
    const box = this.canvas.getBoundingClientRect();
    const events = event.getCoalescedEvents?.() ?? [];
    for (const { clientX, clientY } of events.length ? events : [event]) {
      this.current.points.push([
        (clientX - box.left) / box.width,
        (clientY - box.top) / box.height,
      ]);
    }
    this.changed();
  }

  undo() {
    this.strokes.pop();
    this.changed();
  }

  clear() {
    this.strokes = [];
    this.picture = null;
    this.changed();
  }

  /** Shows a picture in place of strokes; what is made of it is the caller's. */
  show(picture) {
    this.strokes = [];
    this.picture = picture;
    this.repaint();
  }

  changed() {
    this.repaint();
    this.onChange();
  }

  /** What is drawn in a layer, as worker.js takes it. */
  plane(layer) {
    const context = this.inkContext;
    context.fillStyle = "#000";
    context.fillRect(0, 0, INK_SIDE, INK_SIDE);
    const strokes = this.strokes.filter((stroke) => stroke.layer === layer);
    for (const stroke of strokes) drawStroke(context, INK_SIDE, stroke, "#fff");
    const { data } = context.getImageData(0, 0, INK_SIDE, INK_SIDE);
    const values = new Float32Array(INK_SIDE ** 2);
    for (let i = 0; i < values.length; i++) values[i] = data[4 * i] / 255;
    return { height: INK_SIDE, width: INK_SIDE, channels: 1, values };
  }

  repaint() {
    const { canvas } = this;
    const side = Math.round(canvas.clientWidth * devicePixelRatio);
    if (!side) return; // in a part of the page that is hidden
    if (canvas.width !== side) canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, side, side);
    if (this.picture) drawPicture(context, side, this.picture);
    context.globalCompositeOperation = "lighter"; // red and green make yellow
    for (const stroke of this.strokes) {
      drawStroke(context, side, stroke, this.colours[stroke.layer]);
    }
    context.globalCompositeOperation = "source-over";
  }
}

function drawStroke(context, side, { brush, points }, colour) {
  context.strokeStyle = colour;
  context.lineWidth = brush * side;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  const [[x, y], ...more] = points;
  context.moveTo(x * side, y * side);
  for (const [nextX, nextY] of more.length ? more : points) {
    context.lineTo(nextX * side, nextY * side);
  }
  context.stroke();
}

function drawPicture(context, side, picture) {
  const scale = side / Math.max(picture.width, picture.height);
  const [width, height] = [picture.width * scale, picture.height * scale];
  context.imageSmoothingEnabled = scale < 2; // pixels of small pictures stay squares
  context.drawImage(picture, (side - width) / 2, (side - height) / 2, width, height);
}
