// What the page's JavaScript says of numbers, for Python to compare.
//
//     node page_in_node.mjs engine FOLDER    # of the page, with images.bin
//     node page_in_node.mjs layout FILE      # JSON: model, and pictures
//
// Numbers are float32, little endian; the answer goes to stdout in the same form.

import fs from "node:fs";
import path from "node:path";
import { Network } from "../explore/engine.js";
import { preparePicture } from "../explore/picture_layout.js";

const read = (...parts) => {
  const bytes = fs.readFileSync(path.join(...parts));
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
};
const write = (numbers) => fs.writeSync(1, new Uint8Array(numbers.buffer));

/** Of each image: lengths, what the longest capsule draws, votes of all rounds. */
function engine(folder) {
  const manifest = JSON.parse(fs.readFileSync(path.join(folder, "model.json")));
  const network = new Network(manifest, read(folder, "weights.bin"));
  const images = new Float32Array(read(folder, "images.bin"));
  const size = manifest.input_shape.reduce((product, side) => product * side, 1);
  const answers = [];
  for (let start = 0; start < images.length; start += size) {
    const seen = network.see(images.subarray(start, start + size));
    const longest = seen.lengths.indexOf(Math.max(...seen.lengths));
    const votes = seen.rounds.flatMap((round) => [...round.votes]);
    const drawn = network.decode(seen.capsules, [longest]);
    answers.push(...seen.lengths, ...drawn, ...votes);
  }
  return Float32Array.from(answers);
}

function layout(file) {
  const { model, pictures } = JSON.parse(fs.readFileSync(file));
  const prepared = pictures.map((picture) =>
    preparePicture({ ...picture, values: Float32Array.from(picture.values) }, model),
  );
  return Float32Array.from(prepared.flatMap((values) => [...values]));
}

const [, , what, where] = process.argv;
write({ engine, layout }[what](where));
