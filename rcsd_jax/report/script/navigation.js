// Stages, links and keys.

const panels = [...document.querySelectorAll("div.stage")],
  tabs = [...document.querySelectorAll("nav.stages button")];
const explorers = panels.map((panel, i) => {
  const stage = data.stages[i],
    charts = panel.querySelector(".charts"),
    root = panel.querySelector(".explorer");
  if (charts) drawCharts(charts, stage);
  if (charts && !charts.childElementCount) charts.closest("section").remove();
  return root ? explorer(root, stage) : null;
});
let open = -1;

function openStage(i) {
  if (i === open) return;
  open = i;
  hide();
  panels.forEach((panel, k) => panel.classList.toggle("away", k !== i));
  tabs.forEach((tab, k) =>
    k === i ? tab.setAttribute("aria-current", "true") : tab.removeAttribute("aria-current"),
  );
}

function route(scroll) {
  const [name, ...rest] = location.hash.slice(1).split("/");
  let wanted = [name, rest.join("/")];
  try {
    wanted = wanted.map(decodeURIComponent);
  } catch {
    /* a link that is none of ours */
  }
  const i = rest.length ? data.stages.findIndex((stage) => stage.name === wanted[0]) : -1;
  if (i < 0) return false;
  openStage(i);
  return explorers[i]?.select(wanted[1], { scroll }) ?? false;
}

tabs.forEach((tab, i) => tab.addEventListener("click", () => openStage(i)));
addEventListener("hashchange", () => {
  const root = panels[open]?.querySelector(".explorer")?.getBoundingClientRect();
  route(!root || root.bottom < 0 || root.top > innerHeight);
});
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select")) return;
  const hasArrows = event.target.closest(".scroll, .question, input"); // they scroll, or choose what is viewed
  const by = { j: 1, k: -1, ...(hasArrows ? {} : { ArrowRight: 1, ArrowLeft: -1 }) }[event.key];
  if (by) explorers[open]?.move(by);
  if (event.key === "Escape") {
    if (shown) hide();
    else explorers[open]?.release();
  }
});

// Every stage shows its first example, so that a printed page has all of them.
explorers.forEach((of) => of?.first());
openStage(data.stages.length - 1);
route(true);
performance.mark("ready");
