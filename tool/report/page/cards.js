"use strict";
// One image: its heading and its panels. `report` is what the page was made of.
const report = JSON.parse(document.getElementById("report").textContent);
const at = (id) => document.getElementById(id);
const look = { heat: report.heat, colours: report.colours, errors: report.errors, strength: 0.6 };
const several = report.runs.length > 1;

function element(name, text, settings = {}) {
  const made = Object.assign(document.createElement(name), settings);
  if (text !== null) made.textContent = text;
  return made;
}
const percent = (share) => (share === null || share === undefined ? "–" : (100 * share).toFixed(1));

const names = (classes) => classes.map((c) => report.classes[c]).join(", ") || "background only";

function camPanels(run, i) {
  return run.cams.flatMap((cam) => {
    const name = report.classes[cam.class], found = [];
    if (cam.plain) found.push({ kind: "heat", uri: cam.plain, name: `${name}: CAM before the gate` });
    if (cam.gate) found.push({ kind: "map", uri: cam.gate, name: `${name}: the gate` });
    found.push({ kind: "heat", uri: cam.map, name: `${name}: CAM${report.runs[i].gated ? ", gated" : ""}` });
    return found;
  });
}

// Returns the strips of a picture, each with the number of the run that its title names, and panels.
function strips(picture) {
  const image = { kind: "image", name: "image" };
  const known = picture.truth ? [{ kind: "mask", uri: picture.truth, name: `truth: ${names(picture.found)}` }]
    : picture.saliency ? [{ kind: "map", uri: picture.saliency, name: "saliency" }] : [];
  const errors = (run) => (picture.truth ? [{ kind: "errors", uri: run.mask, name: "errors" }] : []);
  if (!several) {
    const run = picture.runs[0], mask = { kind: "mask", uri: run.mask, name: `mask: ${names(run.found)}` };
    return [{ title: null, panels: [image, ...camPanels(run, 0), mask, ...known, ...errors(run)] }];
  }
  // The masks of all runs stand beside one another; their CAMs come below, run by run.
  const masks = picture.runs.flatMap((run, i) => (run === null ? [] : [
    { kind: "mask", uri: run.mask, name: `${report.runs[i].name}: ${names(run.found)}`, run: i }, ...errors(run),
  ]));
  const cams = picture.runs.map((run, i) => ({ title: i, panels: run === null ? [] : camPanels(run, i) }));
  return [{ title: null, panels: [image, ...known, ...masks] }, ...cams];
}

function pictureOf(row) {
  return JSON.parse(at(`picture-${row.picture}`).textContent);
}

function heading(row) {
  const title = element("h3", null);
  title.append(element("span", row.id, { className: "id" }));
  const scores = row.iou[0] ? Object.entries(row.iou[0]) : row.classes.map((c) => [c, null]);
  for (const [index, share] of scores) {
    const about = element("small", null), key = element("span", null, { className: "key" });
    key.style.background = `rgb(${report.colours[index]})`;
    about.append(key, `${report.classes[index]}${share === null ? "" : ` ${percent(share)}`}`);
    title.append(about);
  }
  const more = [];
  if (row.score[0] !== null && !several) more.push(`mean ${percent(row.score[0])}`);
  if (row.saliency[0] !== null && row.score[0] === null) more.push(`${percent(row.saliency[0])} % unlike saliency`);
  if (row.crf[0] !== null) more.push(`CRF changed ${percent(row.crf[0])} % of pixels`);
  title.append(element("small", more.join(" · ")));
  return title;
}

function card(row) {
  const made = element("article", null, { className: "card", tabIndex: 0 });
  made.dataset.id = row.id;
  made.setAttribute("aria-label", `Image ${row.id}`);
  made.append(heading(row));
  const picture = pictureOf(row);
  const cams = element("div", null, { className: "cams" });
  for (const { title, panels } of strips(picture)) {
    const strip = element("div", null, { className: "strip" });
    if (title !== null) strip.append(stripTitle(row, title));
    strip.style.setProperty("--panels", panels.length);
    for (const panel of panels) {
      const figure = element("figure", null, { className: "panel" }), canvas = element("canvas", null);
      canvas.style.aspectRatio = `${picture.w} / ${picture.h}`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${panel.name} of ${row.id}`);
      canvas.panel = panel;
      const caption = element("figcaption", panel.name);
      if (panel.run !== undefined) caption.prepend(runLine(panel.run));
      figure.append(canvas, caption);
      strip.append(figure);
    }
    (title === null ? made : cams).append(strip);
  }
  made.append(cams);
  made.row = row;
  watcher.observe(made);
  return made;
}

function runLine(i) {
  const line = element("span", null, { className: "run" });
  line.style.background = `var(--run${i % 6})`;
  return line;
}

function stripTitle(row, i) {
  const title = element("p", null);
  title.append(runLine(i), report.runs[i].name);
  if (row.score[i] !== null) title.append(`, IoU ${percent(row.score[i])}`);
  if (i && row.differ[i - 1] !== null) title.append(`, ${percent(row.differ[i - 1])} % of pixels differ`);
  return title;
}

// Panels are drawn when they come near the window, one image after the other, and released when they are far from it.
let drawing = Promise.resolve();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.near = isIntersecting;
    if (isIntersecting) draw(target);
    else for (const canvas of target.querySelectorAll("canvas")) canvas.width = canvas.height = 1;
  }
}, { rootMargin: "600px" });

function draw(shown) {
  drawing = drawing.then(() => (shown.near ? drawNow(shown) : null)).catch((error) => console.error(shown.row.id, error));
}

async function drawNow(shown) {
  const picture = pictureOf(shown.row);
  const base = await values(picture.image, picture.w, picture.h, true);
  await Promise.all([...shown.querySelectorAll("canvas")].map((canvas) => drawPanel(canvas, canvas.panel, picture, base, look)));
  shown.dataset.drawn = "yes";
}
