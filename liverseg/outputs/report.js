"use strict";

// What leads to the right and down in each picture: patient's right on the left, head or front up.
const PLANES = {
  axial: { axis: 2, columns: 0, rows: 1, edges: "RLAP" },
  coronal: { axis: 1, columns: 0, rows: 2, edges: "RLHF" },
  sagittal: { axis: 0, columns: 1, rows: 2, edges: "APHF" },
};
const SIDES = ["left", "right", "top", "bottom"];
// Pixels are made here, not by the graphics card.
const IN_MEMORY = { willReadFrequently: true };
const SURFACE_PIXELS = 480;
const GLASS_OPACITY = 0.45;
// From the viewer's left, above, in front; of length 1.
const LIGHT = [-0.48, 0.53, 0.7];
const TURN_BY_KEY = 0.15;
const FINGER_PIXELS_PER_SLICE = 6;
const FRONT = { around: 0, over: 0.17 };
const ENDS = { R: [1, 0, 0], L: [-1, 0, 0], A: [0, 1, 0], P: [0, -1, 0], H: [0, 0, 1], F: [0, 0, -1] };

const view = JSON.parse(document.getElementById("viewer-data").textContent);
const strides = [1, view.shape[0], view.shape[0] * view.shape[1]];
const rgbOf = (colour) => [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
const state = {
  position: [...view.start], window: document.querySelector("[name=window]:checked").value, maskOn: true, opacity: 0.4,
  hidden: new Set(), turn: { ...FRONT },
};
const isShown = (one) => state.maskOn && !state.hidden.has(one.value);

async function unpack(id) {
  const element = document.getElementById(id);
  const text = atob(element.textContent);
  element.remove();
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

function addCanvas(stage, width, height, id) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height, id, tabIndex: 0 });
  canvas.setAttribute("role", "img");
  stage.append(canvas);
  return canvas;
}

function add(stage, className, text = "") {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  element.ariaHidden = "true";
  stage.append(element);
  return element;
}

function makePlane(name, image, mask) {
  const { axis, columns, rows, edges } = PLANES[name];
  const figure = document.querySelector(`[data-plane=${name}]`);
  const stage = figure.querySelector(".stage");
  const [width, height, count] = [columns, rows, axis].map((one) => view.shape[one]);
  const ratio = (width * view.spacingMm[columns]) / (height * view.spacingMm[rows]);
  stage.style.setProperty("--ratio", ratio);
  const canvas = addCanvas(stage, width, height, name);
  SIDES.forEach((side, index) => add(stage, `edge ${side}`, edges[index]));
  const down = add(stage, "line down");
  const across = add(stage, "line across");
  const slider = figure.querySelector("input");
  const output = figure.querySelector("output");
  const context = canvas.getContext("2d", IN_MEMORY);
  const picture = context.createImageData(width, height);

  function draw(grey, tints) {
    const pixels = picture.data;
    let target = 0;
    for (let row = 0; row < height; row++) {
      let source = state.position[axis] * strides[axis] + (height - 1 - row) * strides[rows] + (width - 1) * strides[columns];
      for (let column = 0; column < width; column++, source -= strides[columns], target += 4) {
        const value = grey[image[source]];
        const tint = tints[mask[source]];
        const opacity = tint ? state.opacity : 0;
        for (let channel = 0; channel < 3; channel++)
          pixels[target + channel] = tint ? value + (tint[channel] - value) * opacity : value;
        pixels[target + 3] = 255;
      }
    }
    context.putImageData(picture, 0, 0);
    const shown = state.position[axis] + 1;
    slider.value = shown;
    output.textContent = `${shown} / ${count}`;
    canvas.setAttribute("aria-label", `${name} slice ${shown} of ${count}; arrow keys scroll`);
    down.style.left = `${(100 * (width - state.position[columns] - 0.5)) / width}%`;
    across.style.top = `${(100 * (height - state.position[rows] - 0.5)) / height}%`;
  }

  const goTo = (index) => {
    state.position[axis] = Math.max(0, Math.min(count - 1, index));
    drawPlanes();
  };
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    const share = (value) => Math.max(0, Math.min(0.9999, value));
    state.position[columns] = width - 1 - Math.floor(share((event.clientX - box.left) / box.width) * width);
    state.position[rows] = height - 1 - Math.floor(share((event.clientY - box.top) / box.height) * height);
    drawPlanes();
  };
  slider.addEventListener("input", () => goTo(slider.valueAsNumber - 1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    goTo(state.position[axis] - Math.sign(event.deltaY));
  }, { passive: false });
  const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -count, End: count };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    goTo(state.position[axis] + steps[event.key]);
  });
  // A mouse moves the cross; a finger scrolls, and a tap moves the cross.
  let finger = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    finger = { y: event.clientY, slice: state.position[axis], moved: false };
    if (event.pointerType !== "touch") place(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    if (event.pointerType !== "touch") return place(event);
    const slices = Math.trunc((finger.y - event.clientY) / FINGER_PIXELS_PER_SLICE);
    if (slices) finger.moved = true;
    if (finger.moved) goTo(finger.slice + slices);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (event.pointerType === "touch" && !finger.moved) place(event);
  });
  return draw;
}

function makeSurface(buffer) {
  const stage = document.querySelector("[data-surface] .stage");
  const canvas = addCanvas(stage, SURFACE_PIXELS, SURFACE_PIXELS, "surface");
  canvas.setAttribute("aria-label", "Surface of the mask; arrow keys turn it");
  const faceCount = view.classes.length ? view.classes.at(-1).lastFace : 0;
  const points = new Int16Array(buffer, 0, 3 * view.points);
  const faces = new Uint16Array(buffer, 6 * view.points, 3 * faceCount);
  const normals = new Int8Array(buffer, 6 * (view.points + faceCount), 3 * view.points);
  const size = SURFACE_PIXELS;
  const context = canvas.getContext("2d", IN_MEMORY);
  const picture = context.createImageData(size, size);
  const pixels = new Uint32Array(picture.data.buffer);
  const layers = [0, 1].map(() => ({ depth: new Float32Array(size * size), colour: new Uint32Array(size * size) }));
  const seen = new Float32Array(3 * view.points);
  const light = new Float32Array(view.points);
  const middle = [0, 1, 2].map((axis) => {
    const along = points.filter((_, place) => place % 3 === axis).sort();
    return (along[0] + along.at(-1)) / 2;
  });
  let reach = 1;
  for (let p = 0; p < points.length; p += 3)
    reach = Math.max(reach, Math.hypot(points[p] - middle[0], points[p + 1] - middle[1], points[p + 2] - middle[2]));
  // Whatever way it turns, it stays inside the picture and its letters.
  const scale = (0.42 * size) / reach;

  // To the picture's right, to its top, and to the viewer, who looks from the front at first.
  function axes() {
    const [c, s] = [Math.cos(state.turn.around), Math.sin(state.turn.around)];
    const [co, so] = [Math.cos(state.turn.over), Math.sin(state.turn.over)];
    return [[-c, -s, 0], [s * so, -c * so, co], [-s * co, c * co, so]];
  }
  const dot = (one, x, y, z) => one[0] * x + one[1] * y + one[2] * z;

  function fill(layer, a, b, c, [red, green, blue]) {
    const ax = seen[3 * a], ay = seen[3 * a + 1], az = seen[3 * a + 2];
    const bx = seen[3 * b], by = seen[3 * b + 1], bz = seen[3 * b + 2];
    const cx = seen[3 * c], cy = seen[3 * c + 1], cz = seen[3 * c + 2];
    const area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax);
    if (area === 0) return;
    const left = Math.ceil(Math.min(ax, bx, cx)), right = Math.floor(Math.max(ax, bx, cx));
    const top = Math.ceil(Math.min(ay, by, cy)), bottom = Math.floor(Math.max(ay, by, cy));
    for (let y = top; y <= bottom; y++) {
      for (let x = left; x <= right; x++) {
        const u = ((bx - x) * (cy - y) - (by - y) * (cx - x)) / area;
        const v = ((cx - x) * (ay - y) - (cy - y) * (ax - x)) / area;
        const w = 1 - u - v;
        if (u < 0 || v < 0 || w < 0) continue;
        const place = y * size + x;
        const depth = u * az + v * bz + w * cz;
        if (depth <= layer.depth[place]) continue;
        layer.depth[place] = depth;
        const bright = u * light[a] + v * light[b] + w * light[c];
        layer.colour[place] = 0xff000000 | ((blue * bright) << 16) | ((green * bright) << 8) | (red * bright);
      }
    }
  }

  function letters(toRight, toTop, toViewer) {
    context.font = "600 22px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (const [letter, end] of Object.entries(ENDS)) {
      context.fillStyle = dot(toViewer, ...end) > -0.2 ? "#ffffff" : "#8a949d";
      context.fillText(letter, size / 2 + 0.46 * size * dot(toRight, ...end), size / 2 - 0.46 * size * dot(toTop, ...end));
    }
  }

  function draw() {
    const [toRight, toTop, toViewer] = axes();
    for (let p = 0; p < view.points; p++) {
      const [x, y, z] = [points[3 * p] - middle[0], points[3 * p + 1] - middle[1], points[3 * p + 2] - middle[2]];
      seen[3 * p] = size / 2 + scale * dot(toRight, x, y, z);
      seen[3 * p + 1] = size / 2 - scale * dot(toTop, x, y, z);
      seen[3 * p + 2] = scale * dot(toViewer, x, y, z);
      const [i, j, k] = [normals[3 * p] / 127, normals[3 * p + 1] / 127, normals[3 * p + 2] / 127];
      const facing = dot(LIGHT, dot(toRight, i, j, k), dot(toTop, i, j, k), dot(toViewer, i, j, k));
      light[p] = 0.35 + 0.65 * Math.max(0, Math.min(1, facing));
    }
    for (const layer of layers) {
      layer.depth.fill(-Infinity);
      layer.colour.fill(0);
    }
    let face = 0;
    for (const one of view.classes) {
      const rgb = rgbOf(one.colour);
      if (isShown(one))
        for (; face < one.lastFace; face++)
          fill(layers[one.inner ? 0 : 1], faces[3 * face], faces[3 * face + 1], faces[3 * face + 2], rgb);
      face = one.lastFace;
    }
    const [inner, outer] = layers.map((layer) => layer.colour);
    const mix = (one, other, shift) =>
      (GLASS_OPACITY * ((one >> shift) & 255) + (1 - GLASS_OPACITY) * ((other >> shift) & 255)) << shift;
    for (let i = 0; i < pixels.length; i++)
      pixels[i] = inner[i] && outer[i]
        ? 0xff000000 | mix(outer[i], inner[i], 0) | mix(outer[i], inner[i], 8) | mix(outer[i], inner[i], 16)
        : inner[i] || outer[i] || 0xff000000;
    context.putImageData(picture, 0, 0);
    if (faceCount) letters(toRight, toTop, toViewer);
  }

  let waiting = false;
  const later = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
  const turn = (around, over) => {
    state.turn.around += around;
    state.turn.over = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, state.turn.over + over));
    later();
  };
  const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    turn(...keys[event.key].map((step) => step * TURN_BY_KEY));
  });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (canvas.hasPointerCapture(event.pointerId)) turn(event.movementX / 100, event.movementY / 100);
  });
  document.getElementById("front").addEventListener("click", () => {
    state.turn = { ...FRONT };
    later();
  });
  return later;
}

let drawPlanes, drawSurface;

async function start() {
  const [image, mask] = (await Promise.all(["image-data", "mask-data"].map(unpack))).map((buffer) => new Uint8Array(buffer));
  const draws = Object.keys(PLANES).map((name) => makePlane(name, image, mask));
  drawSurface = makeSurface(await unpack("surface-data"));
  const readout = document.getElementById("readout");
  drawPlanes = () => {
    const [low, high] = view.windows[state.window];
    const grey = view.values.map((value) => Math.round(255 * Math.max(0, Math.min(1, (value - low) / (high - low || 1)))));
    const tints = [];
    for (const one of view.classes) if (isShown(one)) tints[one.value] = rgbOf(one.colour);
    draws.forEach((draw) => draw(grey, tints));
    const place = state.position.reduce((sum, index, axis) => sum + index * strides[axis], 0);
    const found = view.classes.find((one) => one.value === mask[place]);
    readout.textContent = `At the cross: about ${Math.round(view.values[image[place]])}${view.unit}, ${found ? found.name : "background"}`;
  };
  const onChange = (id, change) => document.getElementById(id).addEventListener("input", (event) => {
    change(event.target);
    drawPlanes();
    drawSurface();
  });
  onChange("mask-on", (input) => { state.maskOn = input.checked; });
  onChange("opacity", (input) => { state.opacity = input.valueAsNumber / 100; });
  for (const input of document.querySelectorAll("[data-class]"))
    input.addEventListener("input", () => {
      state.hidden[input.checked ? "delete" : "add"](Number(input.dataset.class));
      drawPlanes();
      drawSurface();
    });
  for (const button of document.querySelectorAll("[data-place]"))
    button.addEventListener("click", () => {
      state.position = JSON.parse(button.dataset.place);
      drawPlanes();
      document.querySelector(".viewer").scrollIntoView();
    });
  for (const input of document.querySelectorAll("[name=window]"))
    input.addEventListener("input", () => {
      state.window = input.value;
      drawPlanes();
    });
  drawPlanes();
  drawSurface();
  document.body.dataset.ready = "";
}

start().catch((error) => {
  const problem = document.getElementById("problem");
  problem.hidden = false;
  problem.textContent = `The pictures could not be shown (${error.message}): open this page in a browser of 2023 or later.`;
});
