/* Resizing with a triangle filter that is widened where an image shrinks, as Pillow and PyTorch do it. */

// Pillow's weights are multiples of that.
const STEP = 2 ** -22;

/* For each pixel of an axis of `to` pixels: the first of `from` that it is a mean of, and the weights. */
function listWeights(from, to) {
  const [scale, support] = [from / to, Math.max(from / to, 1)];
  return Array.from({ length: to }, (_, index) => {
    const center = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), from);
    const weights = [];
    for (let position = first; position < end; position++) {
      weights.push(Math.max(1 - Math.abs(position + 0.5 - center) / support, 0));
    }
    const total = weights.reduce((sum, weight) => sum + weight);
    return { first, weights: weights.map((weight) => Math.round(weight / total / STEP) * STEP) };
  });
}

/* A plane of `[height, width]` at another size. `finish` is applied to every value after each of the two passes. */
export function resize(plane, [height, width], [newHeight, newWidth], finish = (value) => value) {
  const [columns, rows] = [listWeights(width, newWidth), listWeights(height, newHeight)];
  const narrow = new Float32Array(height * newWidth);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < newWidth; x++) {
      const { first, weights } = columns[x];
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * plane[y * width + first + k];
      narrow[y * newWidth + x] = finish(sum);
    }
  }
  const result = new Float32Array(newHeight * newWidth);
  for (let y = 0; y < newHeight; y++) {
    const { first, weights } = rows[y];
    for (let x = 0; x < newWidth; x++) {
      let sum = 0;
      for (let k = 0; k < weights.length; k++) sum += weights[k] * narrow[(first + k) * newWidth + x];
      result[y * newWidth + x] = finish(sum);
    }
  }
  return result;
}

const toByte = (value) => Math.min(Math.max(Math.floor(value + 0.5), 0), 255);

/* RGB in [0, 255] of shape `(3, height, width)` from the bytes of a canvas, resized in 8 bits as Pillow does. */
export function resizePixels(bytes, from, to) {
  const [area, newArea] = [from[0] * from[1], to[0] * to[1]];
  const result = new Float32Array(3 * newArea);
  for (let channel = 0; channel < 3; channel++) {
    const plane = new Uint8Array(area);
    for (let pixel = 0; pixel < area; pixel++) plane[pixel] = bytes[4 * pixel + channel];
    result.set(resize(plane, from, to, toByte), channel * newArea);
  }
  return result;
}
