"use strict";
// The list of images: filter, search, sort, pictures and table.
const STEP = { pictures: 20, table: 200 };
const state = { view: "pictures", shown: STEP.pictures, sort: null, ascending: true, rows: [] };

// What images can be sorted by: a name, the value of a row, which end comes first, and whether it is in the table.
function orders() {
  const found = [], runs = report.runs;
  const has = (value) => report.rows.some((row) => value(row) !== null && value(row) !== undefined);
  const add = (name, value, ascending, column) => has(value) && found.push({ name, value, ascending, column });
  runs.forEach((run, i) => {
    const of = several ? ` (${run.name})` : "";
    add(`worst first${of}`, (row) => row.score[i], true, `IoU${of}`);
    if (i === 0) add(`best first${of}`, (row) => row.score[i], false, null);
  });
  runs.slice(1).forEach((run, i) => {
    const both = (row) => row.score[0] !== null && row.score[i + 1] !== null;
    add(`masks differ most from ${run.name}`, (row) => row.differ[i], false, `differs from ${run.name}`);
    add(`${run.name} better`, (row) => (both(row) ? row.score[i + 1] - row.score[0] : null), false, null);
    add(`${run.name} worse`, (row) => (both(row) ? row.score[0] - row.score[i + 1] : null), false, null);
  });
  add("most wrong pixels", (row) => row.wrong[0], false, "wrong pixels");
  add("least like saliency", (row) => row.saliency[0], false, "unlike saliency");
  add("changed most by the CRF", (row) => row.crf[0], false, "changed by the CRF");
  add("id", (row) => row.id, true, "image");
  return found;
}
const ORDERS = orders();

function compare(order, ascending) {
  return (one, other) => {
    const a = order.value(one), b = order.value(other);
    if (a === null || b === null) return (a === null) - (b === null);   // what is not known comes last
    const sign = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
    return (ascending ? sign : -sign) || one.place - other.place;
  };
}

function select() {
  const text = at("search").value.trim().toLowerCase(), wanted = at("class").value;
  state.rows = report.rows.filter((row) =>
    row.id.toLowerCase().includes(text) && (wanted === "" || row.classes.includes(Number(wanted))));
  state.rows.sort(compare(state.sort, state.ascending));
  state.shown = STEP[state.view];
  render();
}

function render() {
  const pictured = state.rows.filter((row) => row.picture !== null);
  const listed = state.view === "pictures" ? pictured : state.rows;
  at("pictures").hidden = state.view !== "pictures";
  at("table").hidden = state.view !== "table";
  at("legend").hidden = state.view !== "pictures";
  at("count").textContent = `${state.rows.length} of ${report.rows.length} images`;
  const without = state.rows.length - pictured.length;
  at("note").textContent = state.view === "pictures" && without
    ? `${pictured.length} of them have pictures (${report.choice}); all are in the table.` : "";
  if (state.view === "pictures") renderCards(listed.slice(0, state.shown));
  else renderTable(listed.slice(0, state.shown));
  at("more").hidden = state.shown >= listed.length;
}

function renderCards(rows) {
  watcher.disconnect();
  at("pictures").replaceChildren(...rows.map(card));
  if (!rows.length) at("pictures").append(element("p", "No image with a picture fits.", { className: "note" }));
}

// ---- the table of all images

function renderTable(rows) {
  const columns = ORDERS.filter((order) => order.column);
  columns.unshift(columns.pop());                                         // the id comes first
  const table = element("table", null), head = table.createTHead().insertRow(), body = table.createTBody();
  for (const order of columns) {
    const cell = element("th", null, { scope: "col", className: order.column === "image" ? "" : "number" });
    const button = element("button", order.column, { type: "button" });
    if (order === state.sort) cell.setAttribute("aria-sort", state.ascending ? "ascending" : "descending");
    button.onclick = () => sortBy(order, order === state.sort ? !state.ascending : order.ascending, button.textContent);
    cell.append(button);
    head.append(cell);
  }
  head.append(element("th", "classes", { scope: "col" }));
  for (const row of rows) {
    const line = body.insertRow();
    for (const order of columns) {
      if (order.column === "image") {
        const cell = line.insertCell();
        if (row.picture === null) cell.textContent = row.id;
        else cell.append(element("button", row.id, { type: "button", onclick: () => open(row) }));
      } else {
        line.append(element("td", percent(order.value(row)), { className: "number" }));
      }
    }
    line.append(element("td", row.classes.map((c) => report.classes[c]).join(", ")));
  }
  const wide = element("div", null, { className: "wide" });
  wide.append(table);
  at("table").replaceChildren(wide);
}

function open(row) {
  at("shown").replaceChildren(card(row));
  at("dialog").showModal();
}

// ---- what a reader does

function sortBy(order, ascending, focus) {
  Object.assign(state, { sort: order, ascending });
  at("sort").value = String(ORDERS.indexOf(order));
  select();
  if (focus) [...document.querySelectorAll("th button")].find((b) => b.textContent === focus)?.focus();
}

function view(name) {
  state.view = name;
  for (const one of ["pictures", "table"]) at(`show-${one}`).setAttribute("aria-pressed", String(one === name));
  state.shown = STEP[name];
  render();
}

function overlay(strength) {
  look.strength = strength;
  for (const shown of document.querySelectorAll(".card")) if (shown.near) draw(shown);
}

function move(by) {
  const cards = [...document.querySelectorAll("#pictures .card")];
  const here = cards.indexOf(document.activeElement.closest?.(".card"));
  let next = here < 0 ? 0 : here + by;
  if (next >= cards.length && !at("more").hidden) {
    more();
    return document.querySelectorAll("#pictures .card")[next].focus();
  }
  next = Math.max(0, Math.min(cards.length - 1, next));
  cards[next]?.focus();
}

function more() {
  state.shown += STEP[state.view];
  render();
}

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=search], select");
  if (event.key === "Escape" && event.target.id === "search") { at("search").value = ""; select(); }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); at("search").focus(); }
  else if (event.key === "j") move(1);
  else if (event.key === "k") move(-1);
  else if (event.key === "t") view(state.view === "pictures" ? "table" : "pictures");
  else if (event.key === "o" && !event.repeat) overlay(0);
  else if (event.key === "Enter" && event.target.classList.contains("card")) event.target.classList.toggle("large");
});
document.addEventListener("keyup", (event) => event.key === "o" && overlay(at("overlay").value / 100));
document.addEventListener("click", (event) => event.target.closest(".panel")?.closest(".card").classList.toggle("large"));

at("tools").onsubmit = (event) => event.preventDefault();
at("search").oninput = select;
at("class").onchange = select;
at("sort").onchange = (event) => sortBy(ORDERS[event.target.value], ORDERS[event.target.value].ascending, null);
at("overlay").oninput = (event) => overlay(event.target.value / 100);
at("show-pictures").onclick = () => view("pictures");
at("show-table").onclick = () => view("table");
at("more").onclick = more;
at("close").onclick = () => at("dialog").close();

report.rows.forEach((row, place) => { row.place = place; });
at("class").append(new Option("all", ""));
for (const index of new Set(report.rows.flatMap((row) => row.classes).sort((a, b) => a - b))) {
  at("class").append(new Option(report.classes[index], index));
}
ORDERS.forEach((order, i) => at("sort").append(new Option(order.name, i)));
const first = several ? ORDERS.find((order) => order.name.startsWith("masks differ")) : null;
const unscored = ORDERS.find((order) => !report.scored && /saliency|CRF/.test(order.name));
const start = first ?? unscored ?? ORDERS[0];
sortBy(start, start.ascending, null);
if (matchMedia("(max-width: 40rem)").matches) for (const part of document.querySelectorAll(".long")) part.open = false;
