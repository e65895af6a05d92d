// Elements and numbers.

const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const NONE = -32768; // stands for a missing number
const END = 32767; // a number of at least this many thousandths
const STEPS = [10, 30, 100, 300, 1000, 3000]; // thousandths of a nat from which each colour step begins
const FACTORS = [1.05, 1.1, 1.25, 1.5, 2, 4]; // how many times more, or less, a token counts from which each colour step begins
const NOTABLE = 100; // a criterion counts for or against a token from this many thousandths of a nat on,
const NOTABLE_SHARE = 0.25; // and from this share of its largest value in the completion
const END_OF_TEXT = "\u2403"; // the piece that stands for an end token
const ROLES = ["base", "trained", "teacher"];

function make(create, [name, ...classes], attributes, children) {
  const element = create(name);
  if (classes.length) element.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false)
      element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((x) => x !== null && x !== undefined && x !== false));
  return element;
}
// h("p.note", {id: "x"}, "text", child): strings become text nodes, so nothing in the data is ever read as markup.
const h = (what, attributes = {}, ...children) =>
  make((name) => document.createElement(name), what.split("."), attributes, children);
const s = (what, attributes = {}, ...children) =>
  make((name) => document.createElementNS("http://www.w3.org/2000/svg", name), what.split("."), attributes, children);

const minus = (text) => text.replace("-", "−");
function number(x) {
  if (x === null || x === undefined) return "–";
  const size = Math.abs(x);
  if (size >= 1000) return minus(Math.round(x).toLocaleString("en").replaceAll(",", " "));
  return minus(
    size >= 100 ? x.toFixed(0) : size !== 0 && size < 0.001 ? x.toExponential(1) : String(+x.toPrecision(3)),
  );
}
const nats = (x) =>
  x === NONE ? "–" : Math.abs(x) === END ? (x > 0 ? "> 32.7" : "< −32.7") : minus((x / 1000).toFixed(3));
const signed = (x) => (x > 0 ? "+" : "") + nats(x);
function share(p) {
  if (p === null) return "–";
  if (p > 0.9995 && p < 1) return "> 99.9";
  return p >= 0.0995 ? (100 * p).toFixed(1) : p >= 0.0001 ? (100 * p).toFixed(2) : "< 0.01";
}
const step = (x) => (x === NONE ? 0 : STEPS.filter((from) => Math.abs(x) >= from).length);
// White space is shown; a piece may also be empty, where a character takes several tokens.
const visible = (piece) =>
  piece === ""
    ? "∅"
    : piece === END_OF_TEXT
      ? "end"
      : piece.replace(/^ | $/g, "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
const capital = (text) => text[0].toUpperCase() + text.slice(1);
const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
