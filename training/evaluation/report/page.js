"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const PAGE = 50;
let limit = PAGE;

function make(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

const last = data.labels.length - 1;
const views = { mismatches: ["Any answer wrong", (row) => row.right.includes(false)] };
data.labels.forEach((label, i) => {
  views["wrong-" + i] = [label + " wrong", (row) => !row.right[i]];
});
if (last > 0) {
  views.fixed = [data.labels[0] + " wrong, " + data.labels[last] + " right", (row) => !row.right[0] && row.right[last]];
  views.broken = [data.labels[0] + " right, " + data.labels[last] + " wrong", (row) => row.right[0] && !row.right[last]];
}
views.all = ["All rows", () => true];

function option(select, value, text) {
  const entry = make("option", text);
  entry.value = value;
  select.append(entry);
}

for (const [value, [text]] of Object.entries(views)) {
  option(find("show"), value, text + " (" + data.rows.filter(views[value][1]).length + ")");
}
const fields = [...new Set(data.rows.flatMap((row) => Object.keys(row.fields)))];
option(find("field"), "", "any");
fields.forEach((name) => option(find("field"), name, name));
find("field-label").hidden = fields.length < 2;
if (fields.length < 2) find("field-label").style.display = "none";
option(find("class"), "", "any");
for (const target of data.targets) {
  const values = [...new Set(data.rows.map((row) => row.fields[target]).filter((v) => v !== undefined))].sort();
  values.forEach((value) => option(find("class"), target + "=" + value, data.targets.length > 1 ? target + ": " + value : value));
}
if (!data.targets.length) find("class-label").style.display = "none";

function wrongField(row, name) {
  return name in row.fields && row.given.some((given) => given[name] !== row.fields[name]);
}

function chosen() {
  const [field, show, text] = [find("field").value, find("show").value, find("search").value.toLowerCase()];
  const at = find("class").value.indexOf("=");
  const [target, label] = [find("class").value.slice(0, at), find("class").value.slice(at + 1)];
  return data.rows.filter((row) =>
    views[show][1](row) &&
    (!field || wrongField(row, field)) &&
    (at < 0 || row.fields[target] === label) &&
    (!text || JSON.stringify([row.prompt.map((m) => m.content), row.expected, row.answers]).toLowerCase().includes(text)));
}

function answer(title, text, fields, expected, right) {
  const box = make("div", undefined, right === undefined ? "" : right ? "right" : "wrong");
  box.append(make("h2", title + (right === undefined ? "" : right ? " ✓" : " ✗"), "who"));
  const body = make("div", undefined, "text");
  if (right === false && fields && !("answer" in expected && Object.keys(expected).length === 1)) {
    const wrong = Object.keys(expected).filter((name) => fields[name] !== expected[name]);
    for (const line of text.split("\n")) {
      const name = wrong.find((entry) => line.trim().replace(/^"/, "").startsWith(entry));
      const part = make("span", line, name === undefined ? "" : "differs");
      body.append(part, "\n");
    }
  } else body.textContent = text;
  if (!text) body.append(make("span", "(empty)", "role"));
  box.append(body);
  return box;
}

function card(row) {
  const article = make("article");
  article.append(make("p", "row " + row.number, "role"));
  const prompt = make("div", undefined, "text asked");
  for (const message of row.prompt) {
    prompt.append(make("span", message.role, "role"), "\n" + message.content + "\n");
  }
  const side = make("div", undefined, "side");
  side.append(answer("expected", row.expected));
  data.labels.forEach((label, i) => side.append(answer(label, row.answers[i], row.given[i], row.fields, row.right[i])));
  article.append(prompt, side);
  return article;
}

function render() {
  const rows = chosen();
  find("rows").replaceChildren(...rows.slice(0, limit).map(card));
  find("count").textContent = rows.length + " rows" +
    (data.rows.length < data.num_rows ? " of the first " + data.rows.length + " that the page holds" : "");
  find("more").style.display = rows.length > limit ? "" : "none";
  const state = new URLSearchParams();
  for (const id of ["show", "field", "class", "search"]) {
    if (find(id).value && !(id === "show" && find(id).value === "mismatches")) state.set(id, find(id).value);
  }
  history.replaceState(null, "", "#" + state);
}

function head(name, scope) {
  const cell = make("th", name);
  cell.scope = scope;
  return cell;
}

function matrix(label, target, table) {
  const scroll = make("div", undefined, "scroll");
  scroll.tabIndex = 0;
  const element = make("table");
  element.append(make("caption", label + (target === "answer" ? "" : ", " + target) + ": expected in rows, given in columns"));
  const names = make("tr");
  names.append(make("td"), ...table.columns.map((name) => head(name, "col")));
  element.append(names);
  table.rows.forEach((counts, i) => {
    const line = make("tr");
    const total = counts.reduce((a, b) => a + b, 0) || 1;
    line.append(head(table.columns[i], "row"));
    counts.forEach((count) => {
      const cell = make("td", count || "");
      cell.style.background = "rgba(var(--heat), " + (0.55 * count / total).toFixed(3) + ")";
      line.append(cell);
    });
    element.append(line);
  });
  scroll.append(element);
  return scroll;
}

find("title").textContent = data.title;
find("summary").textContent = data.labels.map((label, i) =>
  label + ": " + data.num_right[i] + " of " + data.num_rows + " right (" + (100 * data.num_right[i] / data.num_rows).toFixed(1) + " %)").join(" · ");
data.labels.forEach((label, i) => {
  for (const [target, table] of Object.entries(data.confusion[i])) find("confusion").append(matrix(label, target, table));
});
if (!data.targets.length) find("confusion").style.display = "none";
const start = new URLSearchParams(location.hash.slice(1));
for (const [id, value] of start) {
  if (!["show", "field", "class", "search"].includes(id)) continue;
  find(id).value = value;
  if (id !== "search" && find(id).value !== value) find(id).selectedIndex = 0;
}
for (const id of ["show", "field", "class", "search"]) {
  find(id).addEventListener("input", () => { limit = PAGE; render(); });
}
find("more").addEventListener("click", () => { limit += PAGE; render(); });
render();
