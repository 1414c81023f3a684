"use strict";
// The panels of an image. A picture holds small files as data URIs: the photograph in colours, maps as grey values in
// 0..255, masks as grey values that are class indices, with 255 for unknown.
const RED = 0, GREEN = 1, BLUE = 2, ALPHA = 3, UNKNOWN = 255;

function decoded(uri) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("a picture of the page is broken"));
    image.src = uri;
  });
}

// Returns the RGBA values of a file at a size. Class indices are not smoothed.
async function values(uri, width, height, smooth) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = smooth;
  context.imageSmoothingQuality = "high";
  context.drawImage(await decoded(uri), 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

function mix(pixels, place, colour, share) {
  for (let channel = RED; channel < ALPHA; channel++) {
    pixels[place + channel] += (colour[channel] - pixels[place + channel]) * share;
  }
}

function overlayHeat(pixels, map, heat, strength) {
  for (let place = 0; place < pixels.length; place += 4) {
    const value = map[place];
    mix(pixels, place, heat[value], strength * (0.2 + 0.8 * Math.min(1, value / 128)));
  }
}

function plainHeat(pixels, map, heat) {
  for (let place = 0; place < pixels.length; place += 4) mix(pixels, place, heat[map[place]], 1);
}

// Tints classes, and draws a line of full colour inside their contour.
function overlayMask(pixels, mask, width, height, colours, strength) {
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const place = 4 * (y * width + x), label = mask[place];
      const others = [
        x > 0 ? mask[place - 4] : label, x + 1 < width ? mask[place + 4] : label,
        y > 0 ? mask[place - 4 * width] : label, y + 1 < height ? mask[place + 4 * width] : label,
      ];
      const edge = others.some((other) => other !== label);
      if (label === UNKNOWN) {
        mix(pixels, place, [128, 128, 128], (x + y) % 6 < 2 ? 0.9 * strength : 0.5 * strength);
      } else if (label > 0) {
        mix(pixels, place, edge ? [255, 255, 255] : colours[label], edge ? 0.95 : strength);
      } else if (edge) {
        mix(pixels, place, [0, 0, 0], 0.8);
      }
    }
  }
}

// Colours what is wrong over a pale photograph; what is right stays grey.
function overlayErrors(pixels, mask, truth, errors, strength) {
  for (let place = 0; place < pixels.length; place += 4) {
    const said = mask[place] === UNKNOWN ? 0 : mask[place], is = truth[place];
    const grey = 0.3 * pixels[place + RED] + 0.59 * pixels[place + GREEN] + 0.11 * pixels[place + BLUE];
    mix(pixels, place, [grey, grey, grey], strength);
    if (is === UNKNOWN) mix(pixels, place, [255, 255, 255], 0.5 * strength);
    else if (said !== is) {
      const kind = is === 0 ? errors.extra : said === 0 ? errors.missed : errors.confused;
      mix(pixels, place, kind, Math.min(1, 1.35 * strength));
    }
  }
}

// Draws one panel over the values of the photograph; `kind` is image, heat, map, mask or errors.
async function drawPanel(canvas, panel, picture, base, look) {
  const width = picture.w, height = picture.h, pixels = new Uint8ClampedArray(base.data);
  if (panel.kind === "heat") {
    overlayHeat(pixels, (await values(panel.uri, width, height, true)).data, look.heat, look.strength);
  } else if (panel.kind === "map") {
    plainHeat(pixels, (await values(panel.uri, width, height, true)).data, look.heat);
  } else if (panel.kind === "mask") {
    const mask = (await values(panel.uri, width, height, false)).data;
    overlayMask(pixels, mask, width, height, look.colours, look.strength);
  } else if (panel.kind === "errors") {
    const mask = (await values(panel.uri, width, height, false)).data;
    const truth = (await values(picture.truth, width, height, false)).data;
    overlayErrors(pixels, mask, truth, look.errors, look.strength);
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(new ImageData(pixels, width, height), 0, 0);
}
