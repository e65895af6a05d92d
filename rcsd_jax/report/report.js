"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const NONE = -32768; // stands for a number that is not there
  const END = 32767; // a number of at least so many thousandths
  const STEPS = [10, 30, 100, 300, 1000, 3000]; // thousandths of a nat from which each colour step begins
  const NOTABLE = 100; // a criterion speaks for or against a token from so many thousandths of a nat on,
  const NOTABLE_SHARE = 0.25; // and from this share of its largest value in the completion
  const END_OF_TEXT = "\u2403"; // the piece that stands for an end token
  const ROLES = ["base", "trained", "teacher"];

  // -------------------------------------------------------------------------------- elements and numbers

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

  // -------------------------------------------------------------------------------- theme and copying

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const themeButton = byId("theme");
  const themeNow = () => document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light");
  function remembered(set) {
    try {
      if (set) localStorage.setItem("rcsd_jax.theme", set);
      return localStorage.getItem("rcsd_jax.theme");
    } catch {
      return null; // a file that may keep nothing
    }
  }
  function nameTheme() {
    themeButton.textContent = themeNow() === "dark" ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", `Switch to ${themeNow() === "dark" ? "light" : "dark"} colours`);
  }
  if (["light", "dark"].includes(remembered())) document.documentElement.dataset.theme = remembered();
  themeButton.addEventListener("click", () => {
    document.documentElement.dataset.theme = themeNow() === "dark" ? "light" : "dark";
    remembered(themeNow());
    nameTheme();
  });
  dark.addEventListener("change", nameTheme);
  nameTheme();

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.previousElementSibling;
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code); // then it is one key press
        button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1600);
    });
  }

  // -------------------------------------------------------------------------------- curves and histograms

  const WIDTH = 340,
    HEIGHT = 168,
    LEFT = 38,
    TOP = 10,
    BOTTOM = 22;

  function ticks(low, high, count) {
    const rough = (high - low) / count,
      power = 10 ** Math.floor(Math.log10(rough));
    const size = [1, 2, 2.5, 5, 10].map((x) => x * power).find((x) => x >= rough * 0.999);
    const found = [];
    for (let x = Math.ceil(low / size - 1e-9) * size; x <= high + size * 1e-9; x += size)
      found.push(+x.toPrecision(12));
    return found;
  }

  function smoothed(values) {
    const reach = Math.round(values.length / 40);
    if (values.length < 60) return null;
    return values.map((_, i) => {
      const near = values.slice(Math.max(0, i - reach), i + reach + 1).filter((y) => y !== null);
      return near.length ? near.reduce((a, b) => a + b) / near.length : null;
    });
  }

  // series: [{label, of, x, y, low?, high?, dots?}]; rules: [{label, of, y}], horizontal
  function lineChart({ title, series, rules = [], percent = false }) {
    const scale = percent ? 100 : 1;
    series = series.map((line) => {
      const times = (values) => values?.map((y) => (y === null || y === undefined ? null : y * scale));
      return { ...line, y: times(line.y), low: times(line.low), high: times(line.high) };
    });
    rules = rules.map((rule) => ({ ...rule, y: rule.y * scale }));
    const drawn = series.map((line) => (line.dots ? null : smoothed(line.y)));
    const xs = series.flatMap((line) => line.x),
      known = (values) => (values ?? []).filter((y) => y !== null);
    let ys = [
      ...series.flatMap((line) => [...known(line.y), ...known(line.low), ...known(line.high)]),
      ...rules.map((r) => r.y),
    ];
    if (!ys.length) return null;
    let low = ys.reduce((a, b) => Math.min(a, b)),
      high = ys.reduce((a, b) => Math.max(a, b));
    if (low >= 0 && low < 0.5 * high) low = 0;
    if (high === low) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 10, high + Math.abs(high) / 10];
    if (low !== 0) low -= (high - low) * 0.06;
    if (!percent || high < 100) high += (high - low) * 0.06;
    const first = xs.reduce((a, b) => Math.min(a, b)),
      last = Math.max(
        xs.reduce((a, b) => Math.max(a, b)),
        first + 1,
      );
    const named = series.length + rules.length > 1,
      right = WIDTH - (named ? 58 : 12);
    const px = (x) => LEFT + ((x - first) / (last - first)) * (right - LEFT);
    const py = (y) => HEIGHT - BOTTOM - ((y - low) / (high - low)) * (HEIGHT - BOTTOM - TOP);
    const path = (x, y) => {
      let pen = "M";
      return y
        .map((value, i) => {
          if (value === null) {
            pen = "M";
            return "";
          }
          const part = `${pen}${px(x[i]).toFixed(1)} ${py(value).toFixed(1)}`;
          pen = "L";
          return part;
        })
        .join("");
    };
    const parts = [];
    for (const y of ticks(low, high, 4)) {
      parts.push(s("path.grid", { d: `M${LEFT} ${py(y).toFixed(1)}H${right}` }));
      parts.push(s("text.tick", { x: LEFT - 6, y: py(y) + 3.5, "text-anchor": "end" }, number(y)));
    }
    for (const x of ticks(first, last, 4)) {
      parts.push(s("text.tick", { x: px(x), y: HEIGHT - 7, "text-anchor": "middle" }, number(x)));
    }
    for (const rule of rules)
      parts.push(s(`path.rule.of-${rule.of}`, { d: `M${LEFT} ${py(rule.y).toFixed(1)}H${right}` }));
    series.forEach((line, k) => {
      if (drawn[k]) parts.push(s(`path.line.raw.of-${line.of}`, { d: path(line.x, line.y) }));
      parts.push(s(`path.line.of-${line.of}`, { d: path(line.x, drawn[k] ?? line.y) }));
      if (!line.dots) return;
      line.x.forEach((x, i) => {
        if (line.y[i] === null) return;
        if (line.low?.[i] !== null && line.low) {
          parts.push(s(`path.line.of-${line.of}`, { d: `M${px(x)} ${py(line.low[i])}V${py(line.high[i])}` }));
        }
        parts.push(s(`circle.dot.of-${line.of}`, { cx: px(x), cy: py(line.y[i]), r: 2.6 }));
      });
    });
    if (named) {
      const ends = series.map((line, k) => ({ ...line, at: (drawn[k] ?? line.y).findLast((y) => y !== null) }));
      const labels = [...ends, ...rules.map((rule) => ({ ...rule, at: rule.y }))].filter((l) => l.at !== undefined);
      labels.forEach((label) => (label.place = py(label.at) + 3.5));
      labels.sort((a, b) => a.place - b.place);
      labels.forEach((label, i) => i && (label.place = Math.max(label.place, labels[i - 1].place + 12)));
      const over = labels.at(-1).place - (HEIGHT - BOTTOM + 2);
      if (over > 0) labels.forEach((label) => (label.place -= over));
      for (const label of labels)
        parts.push(s(`text.name.of-${label.of}`, { x: right + 6, y: label.place }, label.label));
    }
    const cross = s("path.cross", { d: "" });
    const say = (line) =>
      `${title}${line.label ? `, ${line.label}` : ""}: from ${number(line.y.find((y) => y !== null) ?? null)} to ${number(line.y.findLast((y) => y !== null) ?? null)}`;
    const drawing = s(
      "svg",
      {
        viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
        role: "img",
        "aria-label":
          [...series.map(say), ...rules.map((r) => `${r.label}: ${number(r.y)}`)].join("; ") +
          (percent ? " percent" : ""),
      },
      parts,
      cross,
    );
    const readout = h("span.readout");
    const figure = h("figure.chart", {}, h("figcaption", {}, h("span", {}, title), readout), drawing);
    const all = [...new Set(xs)].sort((a, b) => a - b);
    figure.addEventListener("pointermove", (event) => {
      const box = drawing.getBoundingClientRect();
      const x = first + ((((event.clientX - box.left) * WIDTH) / box.width - LEFT) / (right - LEFT)) * (last - first);
      const near = all.reduce((a, b) => (Math.abs(b - x) < Math.abs(a - x) ? b : a));
      cross.setAttribute("d", `M${px(near)} ${TOP}V${HEIGHT - BOTTOM}`);
      const values = series
        .map((line) => [line, line.y[line.x.indexOf(near)]])
        .filter(([, y]) => y !== undefined && y !== null);
      readout.textContent = `step ${near}: ${values.map(([line, y]) => `${series.length > 1 ? `${line.label} ` : ""}${number(y)}`).join(", ")}`;
    });
    figure.addEventListener("pointerleave", () => {
      cross.setAttribute("d", "");
      readout.textContent = "";
    });
    return figure;
  }

  function histogram(lengths, labels) {
    const shown = ROLES.filter((role) => lengths[role]?.length),
      roles = shown.length ? shown : Object.keys(lengths);
    const largest = Math.max(...roles.map((role) => lengths[role].reduce((a, b) => Math.max(a, b))));
    const size = Math.max(1, Math.ceil((largest + 1) / 36)),
      bins = Math.ceil((largest + 1) / size);
    const right = WIDTH - 12,
      row = 46,
      height = roles.length * row + BOTTOM;
    const px = (x) => LEFT / 2 + (x / (bins * size)) * (right - LEFT / 2);
    const parts = [];
    for (const x of ticks(0, bins * size, 4)) {
      parts.push(s("path.grid", { d: `M${px(x)} ${TOP - 6}V${height - BOTTOM}` }));
      parts.push(s("text.tick", { x: px(x), y: height - 7, "text-anchor": "middle" }, number(x)));
    }
    const said = roles.map((role, k) => {
      const sorted = [...lengths[role]].sort((a, b) => a - b),
        median = sorted[(sorted.length - 1) >> 1];
      const counts = new Array(bins).fill(0),
        base = (k + 1) * row;
      for (const length of lengths[role]) counts[Math.floor(length / size)]++;
      const most = Math.max(...counts),
        wide = px(size) - px(0);
      const bars = counts.map((c, i) => {
        const tall = c && Math.max(1, (c / most) * (row - 18));
        return c
          ? `M${px(i * size).toFixed(1)} ${base}v${-tall.toFixed(1)}h${Math.max(wide - 0.6, 0.6).toFixed(1)}v${tall.toFixed(1)}z`
          : "";
      });
      parts.push(s(`path.bar.of-${role}`, { d: bars.join("") }));
      parts.push(s("path.grid", { d: `M${LEFT / 2} ${base}H${right}` }));
      parts.push(s("path.median", { d: `M${px(median + 0.5)} ${base}v${-(row - 16)}` }));
      parts.push(
        s(
          `text.name.of-${role}`,
          { x: right, y: base - row + 14, "text-anchor": "end" },
          `${short(role)}, median ${median}`,
        ),
      );
      return `${labels[role] ?? role}: median ${median} tokens`;
    });
    const drawing = s(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": `Lengths; ${said.join("; ")}` },
      parts,
    );
    return h(
      "figure.chart",
      {},
      h("figcaption", {}, h("span", {}, "Length of evaluation completions, tokens")),
      drawing,
    );
  }

  const short = (role) => role.replace(/^step_/, "step ").replaceAll("_", " ");

  // The main score of the student at the steps where it was evaluated, for each split, between base and teacher.
  function scoreCharts(stage) {
    const { evaluation, score } = stage;
    if (!score) return [];
    const steps = stage.metrics.step ?? [],
      evaluated = Object.keys(evaluation).filter((role) => /^step_\d+$/.test(role));
    const end = steps.length ? steps.at(-1) + 1 : Math.max(0, ...evaluated.map((role) => +role.slice(5))) + 1;
    const at = { base: 0, trained: end, ...Object.fromEntries(evaluated.map((role) => [role, +role.slice(5)])) };
    const students = Object.keys(at)
      .filter((role) => evaluation[role])
      .sort((a, b) => at[a] - at[b]);
    const splits = [...new Set(Object.values(evaluation).flatMap((of) => Object.keys(of)))];
    return splits.map((split) => {
      const modes = Object.values(evaluation).flatMap((of) => Object.keys(of[split] ?? {}));
      const mode = modes.includes("sampled") ? "sampled" : modes[0];
      const of = (role) => evaluation[role]?.[split]?.[mode] ?? {};
      const there = students.filter((role) => typeof of(role)[score] === "number");
      if (!there.some((role) => role !== "base")) return null;
      const interval = (role, i) => of(role)[`${score}_interval`]?.[i] ?? null;
      return lineChart({
        title: `${capital(data.scoreNames[score])}, %, ${split.replaceAll("_", " ")}, ${mode}`,
        percent: true,
        series: [
          {
            label: "student",
            of: "student",
            dots: true,
            x: there.map((role) => at[role]),
            y: there.map((role) => of(role)[score]),
            low: there.map((role) => interval(role, 0)),
            high: there.map((role) => interval(role, 1)),
          },
        ],
        rules: ["base", "teacher"]
          .filter((role) => typeof of(role)[score] === "number")
          .map((role) => ({ label: role, of: role, y: of(role)[score] })),
      });
    });
  }

  function drawCharts(root, stage) {
    const { metrics } = stage,
      x = metrics.step ?? [];
    const has = (name) => metrics[name]?.some((y) => typeof y === "number");
    const chart = (title, names, options = {}) => {
      const lines = names.filter(([name]) => x.length && has(name));
      return lines.length
        ? lineChart({
            title,
            series: lines.map(([name, label, of]) => ({ label, of, x, y: metrics[name].map((y) => y ?? null) })),
            ...options,
          })
        : null;
    };
    const figures = [
      ...scoreCharts(stage),
      chart("Loss", [["loss", "", "plain"]]),
      chart("Entropy, nats", [
        ["student_entropy", "student", "student"],
        ["teacher_entropy", "teacher", "teacher"],
      ]),
      chart("Completion length, tokens", [["completion_length", "", "plain"]]),
      chart("Share of completions cut, %", [["share_cut", "", "plain"]], { percent: true }),
      Object.keys(stage.lengths).length ? histogram(stage.lengths, stage.labels) : null,
    ];
    root.append(...figures.filter(Boolean));
    const shown = [
      "step",
      "loss",
      "student_entropy",
      "teacher_entropy",
      "completion_length",
      "share_cut",
      "compilations",
    ];
    const others = Object.keys(metrics).filter((name) => !shown.includes(name) && has(name));
    if (!others.length || !x.length) return;
    const more = h("details", {}, h("summary", {}, plural(others.length, "more curve")));
    more.addEventListener("toggle", () => {
      if (more.childElementCount > 1) return;
      more.append(
        h(
          "div.charts",
          {},
          others.map((name) => chart(name.replaceAll("_", " "), [[name, "", "plain"]])),
        ),
      );
    });
    root.after(more);
  }

  // -------------------------------------------------------------------------------- scored tokens

  let pieces = null;

  async function unpacked(completion) {
    if (completion.block === undefined || completion.scores_of) return;
    const there = () => byId(`tokens-${completion.block}`);
    // While the file is still being read, an element may be there with half of its text.
    while (document.readyState === "loading" && !there()?.nextElementSibling)
      await new Promise((go) => setTimeout(go, 15));
    const bytes = Uint8Array.from(atob(there().textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    pieces ??= JSON.parse(byId("pieces").textContent);
    const { count: T, most: M, criteria: K } = completion,
      inTops = 2 * T * M;
    const Ids = data.idBytes === 2 ? Uint16Array : Uint32Array;
    const ids = new Ids(buffer, 0, T + inTops),
      numbers = new Int16Array(buffer, ids.byteLength);
    const take = (
      (from) => (size) =>
        numbers.subarray(from, (from += size))
    )(0);
    const scores = { ids, divergence: take(T), student: take(T), teacher: take(T), probabilities: take(inTops) };
    scores.attribution = Array.from({ length: K }, () => take(T));
    scores.notable = scores.attribution.map(notable);
    completion.scores_of = scores;
  }

  // Places of the tokens for or against which a criterion speaks.
  function notable(values) {
    let largest = 0;
    for (const x of values) if (x !== NONE) largest = Math.max(largest, Math.abs(x));
    const from = Math.max(NOTABLE, NOTABLE_SHARE * largest),
      found = new Map();
    values.forEach((x, i) => x !== NONE && Math.abs(x) >= from && found.set(i, x));
    return found;
  }

  // The likeliest pieces of one role before token i: [[piece, probability], ...]
  function likeliest({ count: T, most: M, scores_of }, i, ofTeacher) {
    const from = (ofTeacher * T + i) * M,
      found = [];
    for (let j = from; j < from + M; j++) {
      if (scores_of.probabilities[j] !== NONE)
        found.push([pieces[scores_of.ids[T + j]], scores_of.probabilities[j] / 10000]);
    }
    return found;
  }

  const toned = (x, up, down) => (x < 0 && x !== NONE ? down : up) + step(x);

  // A strip of cells, at most `cells` of them, each as strong as the strongest of its tokens.
  function strip(values, up, down, label, cells = 120) {
    const count = Math.min(cells, values.length),
      shapes = {};
    for (let c = 0; c < count; c++) {
      let strongest = 0;
      for (let i = Math.floor((c * values.length) / count); i < ((c + 1) * values.length) / count; i++) {
        if (values[i] !== NONE && Math.abs(values[i]) > Math.abs(strongest)) strongest = values[i];
      }
      const tone = toned(strongest, up, down);
      if (step(strongest)) shapes[tone] = (shapes[tone] ?? "") + `M${c} 0h1v1h-1z`;
    }
    return s(
      "svg.strip",
      { viewBox: `0 0 ${count} 1`, preserveAspectRatio: "none", role: "img", "aria-label": label },
      Object.entries(shapes).map(([tone, d]) => s(`path.${tone}`, { d })),
    );
  }

  // -------------------------------------------------------------------------------- the tooltip of a token

  const tooltip = byId("tooltip");
  let shown = null; // the token whose tooltip is open

  function describe(completion, criteria, i) {
    const { scores_of: scores, count } = completion,
      written = pieces[scores.ids[i]];
    // Decoded alone, a token may lack the space before it, and the end has a name: then its probability tells.
    const stands = (piece, p, logProb) =>
      piece === written ||
      ((piece.trim() === written.trim() || written === END_OF_TEXT) &&
        logProb !== NONE &&
        Math.abs(p - Math.exp(logProb / 1000)) < 0.001);
    const column = (name, ofTeacher, logProb) => {
      const rows = likeliest(completion, i, ofTeacher).map(([piece, p]) => [piece, p, stands(piece, p, logProb)]);
      if (logProb !== NONE && !rows.some(([, , same]) => same)) rows.push([written, Math.exp(logProb / 1000), true]);
      return h(
        `div.top.${name}`,
        {},
        h("p", {}, h("b", {}, name), h("span.muted", {}, " log p "), nats(logProb)),
        rows.map(([piece, p, same]) => {
          const bar = h("span.bar");
          bar.style.setProperty("--p", p);
          return h(
            same ? "div.row.written" : "div.row",
            {},
            h("span.piece", {}, visible(piece)),
            bar,
            h("span.p", {}, share(p)),
          );
        }),
      );
    };
    const speaking = scores.attribution
      .map((values, k) => [k, values[i]])
      .filter(([k]) => scores.notable[k].has(i))
      .sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]))
      .slice(0, 3);
    return [
      h("p.head", {}, h("b.piece", {}, visible(written)), h("span.muted", {}, `token ${i + 1} of ${count}`)),
      h(
        "p.divergence",
        {},
        h(`i.swatch.${toned(scores.divergence[i], "d", "n")}`),
        "divergence ",
        h("b", {}, nats(scores.divergence[i])),
        " nats",
      ),
      h("div.tops", {}, column("student", 0, scores.student[i]), column("teacher", 1, scores.teacher[i])),
      speaking.map(([k, value]) =>
        h(
          "p.speaks",
          {},
          h(`i.swatch.${toned(value, "a", "b")}`),
          h("b", {}, signed(value)),
          ` ${criteria[k].title || criteria[k].description}`,
        ),
      ),
    ].flat();
  }

  function place() {
    const target = shown.getClientRects()[0] ?? shown.getBoundingClientRect(),
      box = tooltip.getBoundingClientRect();
    const below = target.bottom + 8 + box.height <= innerHeight || target.top - 8 - box.height < 0;
    const x = Math.min(
      Math.max(8, target.left + target.width / 2 - box.width / 2),
      document.documentElement.clientWidth - box.width - 8,
    );
    const y = below ? Math.min(target.bottom + 8, innerHeight - box.height - 4) : target.top - 8 - box.height;
    tooltip.style.transform = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  }

  function show(token, completion, criteria) {
    hide();
    shown = token;
    token.setAttribute("aria-describedby", "tooltip");
    token.classList.add("shown");
    tooltip.replaceChildren(...describe(completion, criteria, token.place));
    tooltip.hidden = false;
    place();
  }

  function hide() {
    shown?.removeAttribute("aria-describedby");
    shown?.classList.remove("shown");
    shown = null;
    tooltip.hidden = true;
  }

  addEventListener("scroll", () => shown && place(), { capture: true, passive: true });
  addEventListener("resize", () => shown && place());

  // -------------------------------------------------------------------------------- a completion's text

  function textOf(completion, criteria) {
    const scores = completion.scores_of;
    if (!scores) return h("div.text.unscored", {}, completion.text ?? "");
    const text = h("div.text", {
      role: "group",
      "aria-label": `${completion.role}: ${completion.count} tokens; arrow keys move between them`,
    });
    const tokens = Array.from({ length: completion.count }, (_, i) => {
      const token = document.createElement("span");
      token.textContent = pieces[scores.ids[i]];
      token.place = i;
      return token;
    });
    paint(completion, tokens, null);
    tokens[0].tabIndex = 0; // one of them is in the tab order, the others are reached by arrow keys
    text.append(...tokens);
    text.tokens = tokens;
    let entry = tokens[0];
    const focus = (token) => {
      if (!token) return;
      entry.removeAttribute("tabindex");
      (entry = token).tabIndex = 0;
      token.focus();
    };
    const tokenOf = (event) => (event.target.place === undefined ? null : event.target);
    text.addEventListener(
      "pointerover",
      (event) => event.pointerType !== "touch" && tokenOf(event) && show(tokenOf(event), completion, criteria),
    );
    text.addEventListener("pointerleave", () =>
      text.contains(document.activeElement) ? show(entry, completion, criteria) : hide(),
    );
    text.addEventListener("click", (event) => getSelection().isCollapsed && focus(tokenOf(event)));
    text.addEventListener("focusin", (event) => tokenOf(event) && show(tokenOf(event), completion, criteria));
    text.addEventListener("focusout", hide);
    text.addEventListener("keydown", (event) => {
      const i = entry.place,
        last = tokens.length - 1;
      const calls = (token) =>
        text.classList.contains("lit") ? token.classList.contains("notable") : scores.divergence[token.place] >= 1000;
      const moves = {
        ArrowRight: () => tokens[Math.min(i + 1, last)],
        ArrowLeft: () => tokens[Math.max(i - 1, 0)],
        Home: () => tokens[0],
        End: () => tokens[last],
        ArrowDown: () => inNextLine(tokens, i, 1),
        ArrowUp: () => inNextLine(tokens, i, -1),
        n: () => tokens.slice(i + 1).find(calls),
        p: () => tokens.slice(0, i).findLast(calls),
      };
      if (!Object.hasOwn(moves, event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      focus(moves[event.key]());
    });
    return text;
  }

  function inNextLine(tokens, i, way) {
    const box = (token) => token.getClientRects()[0] ?? token.getBoundingClientRect(),
      from = box(tokens[i]);
    let best = null,
      line = null;
    for (let j = i + way; tokens[j]; j += way) {
      const to = box(tokens[j]);
      if (Math.abs(to.top - from.top) < from.height / 2) continue;
      line ??= to.top;
      if (Math.abs(to.top - line) > to.height / 2) break;
      const apart = Math.abs(to.left - from.left);
      if (!best || apart < best.apart) best = { apart, token: tokens[j] };
    }
    return best?.token;
  }

  // Colours tokens by divergence or, where a criterion is lit, by what it says of them.
  function paint({ scores_of: scores }, tokens, lit) {
    tokens.forEach((token, i) => {
      const value = lit === null ? undefined : scores.notable[lit]?.get(i);
      const tone = value === undefined ? toned(scores.divergence[i], "d", "n") : `notable ${toned(value, "a", "b")}`;
      const piece = token.textContent;
      token.className = `t ${tone}${piece.includes("\n") ? " break" : ""}${piece === "" ? " empty" : ""}${piece === END_OF_TEXT ? " end" : ""}`;
    });
  }

  // -------------------------------------------------------------------------------- examples

  const SCORE_ORDER = Object.keys(data.scoreNames);
  function scoreOf(example, role) {
    const scores = example.completions.find((c) => c.role === role)?.scores ?? {};
    const name = ["accuracy", ...SCORE_ORDER].find((n) => typeof scores[n] === "number");
    return name === undefined ? null : scores[name];
  }
  const right = (example, role) => scoreOf(example, role) !== null && scoreOf(example, role) >= 1 - 1e-9;
  const wrong = (example, role) => scoreOf(example, role) !== null && !right(example, role);
  const rise = (e) =>
    scoreOf(e, "base") === null || scoreOf(e, "trained") === null ? 0 : scoreOf(e, "trained") - scoreOf(e, "base");
  const OUTCOMES_OF_ANSWERS = [
    ["all", "every outcome", () => true],
    ["gained", "base wrong, trained right", (e) => wrong(e, "base") && right(e, "trained")],
    ["lost", "base right, trained wrong", (e) => right(e, "base") && wrong(e, "trained")],
    ["wrong", "trained wrong", (e) => wrong(e, "trained")],
  ];
  const OUTCOMES_OF_SCORES = [
    ["all", "every outcome", () => true],
    ["gained", "trained above base", (e) => rise(e) > 0],
    ["lost", "trained below base", (e) => rise(e) < 0],
    ["wrong", "trained below 1", (e) => wrong(e, "trained")],
  ];
  const mark = (value) =>
    value === null
      ? ["none", "not graded"]
      : value >= 1 - 1e-9
        ? ["full", "right"]
        : value > 0
          ? ["part", "partly right"]
          : ["zero", "wrong"];

  function legend(scored) {
    const negative = scored.some(({ completion }) =>
      completion.scores_of.divergence.some((x) => x !== NONE && x <= -STEPS[0]),
    );
    const attributed = scored.some(({ completion }) => completion.scores_of.attribution.length);
    const scale = (up, down, label, less, more) =>
      h(
        "div.scale",
        {},
        h("span.what", {}, label),
        h(
          "span.steps",
          {},
          down && [h("span.way", {}, less), [...STEPS].reverse().map((_, i) => h(`i.${down}${STEPS.length - i}`))],
          h("i"),
          STEPS.map((from, i) => h(`i.${up}${i + 1}`, {}, h("span", {}, String(from / 1000)))),
          h("span.way", {}, more),
        ),
      );
    return h(
      "div.legend",
      {},
      scale("d", negative ? "n" : null, "divergence from the teacher, nats", "negative", ""),
      attributed && scale("a", "b", "a lit criterion makes the token, by nats,", "less likely", "more likely"),
      h(
        "p.keys",
        {},
        h("kbd", {}, "j"),
        " ",
        h("kbd", {}, "k"),
        " examples, ",
        h("kbd", {}, "←"),
        " ",
        h("kbd", {}, "→"),
        " tokens, ",
        h("kbd", {}, "n"),
        " ",
        h("kbd", {}, "p"),
        " next of note",
      ),
    );
  }

  function explorer(root, stage) {
    const keys = new Map(); // what a link names an example by: its id or, where that is taken, its split and id
    for (const example of stage.examples) {
      const id = String(example.id ?? ""),
        key = keys.has(id) ? `${example.split}:${id}` : id;
      keys.set(keys.has(key) ? `${key}:${keys.size}` : key, example);
    }
    const keyOf = new Map([...keys].map(([key, example]) => [example, key]));
    const splits = [...new Set(stage.examples.map((e) => e.split).filter(Boolean))];
    const link = (key) => `#${encodeURIComponent(stage.name)}/${encodeURIComponent(key)}`;
    const graded = stage.examples.some((e) => e.completions.some((c) => typeof c.scores?.accuracy === "number"));
    const OUTCOMES = graded ? OUTCOMES_OF_ANSWERS : OUTCOMES_OF_SCORES;
    let listed = [],
      current = null,
      lit = null,
      turn = 0;

    const bySplit = h(
      "select",
      { "aria-label": "Split" },
      h("option", { value: "" }, "all splits"),
      splits.map((x) => h("option", { value: x }, x.replaceAll("_", " "))),
    );
    const byOutcome = h(
      "select",
      { "aria-label": "Outcome" },
      OUTCOMES.map(([value, label]) => h("option", { value }, label)),
    );
    const list = h("ol.list", { "aria-label": "Examples" });
    const criteria = h("div.criteria");
    const view = h("article.view");
    const judged = stage.examples.some((e) => scoreOf(e, "trained") !== null);
    root.append(
      h("div.rail", {}, h("div.filters", {}, splits.length > 1 && bySplit, judged && byOutcome), list, criteria),
      view,
    );

    function filter() {
      const ofSplit = stage.examples.filter((e) => !bySplit.value || e.split === bySplit.value);
      OUTCOMES.forEach(
        ([, label, test], i) => (byOutcome.options[i].textContent = `${label} (${ofSplit.filter(test).length})`),
      );
      listed = ofSplit.filter(OUTCOMES.find(([value]) => value === byOutcome.value)[2]);
      list.replaceChildren(
        ...listed.map((example) => {
          const marks = ROLES.filter((role) => example.completions.some((c) => c.role === role)).map((role) => [
            role,
            ...mark(scoreOf(example, role)),
          ]);
          const title = `${marks.map(([role, , word]) => `${role} ${word}`).join(", ")}: ${example.question ?? example.id}`;
          return h(
            "li",
            {},
            h(
              "a",
              {
                href: link(keyOf.get(example)),
                tabindex: -1,
                "aria-label": title,
                title: marks.map(([role, , word]) => `${role} ${word}`).join(", "),
              },
              h(
                "span.marks",
                {},
                marks.map(([role, name]) => h(`i.mark.${name}.of-${role}`)),
              ),
              h("span.brief", {}, example.question ?? String(example.id)),
            ),
          );
        }),
      );
      if (!listed.length) list.append(h("li.note", {}, "No example is like that."));
    }

    function select(key, { scroll = false } = {}) {
      const example = keys.get(key);
      if (!example) return false;
      if (!listed.includes(example)) {
        bySplit.value = "";
        byOutcome.value = "all";
        filter();
      }
      current = example;
      list.querySelectorAll("a").forEach((a, i) => {
        const here = listed[i] === example;
        a.tabIndex = here ? 0 : -1;
        if (here) a.setAttribute("aria-current", "true");
        else a.removeAttribute("aria-current");
        if (!here) return;
        const row = a.parentElement;
        list.scrollTop = Math.max(
          Math.min(list.scrollTop, row.offsetTop - 4),
          row.offsetTop + row.offsetHeight - list.clientHeight + 4,
        );
      });
      draw(example).then(() => scroll && root.scrollIntoView());
      return true;
    }

    function move(by) {
      if (!listed.length) return;
      const at = listed.indexOf(current),
        to = listed[at < 0 ? 0 : Math.min(Math.max(at + by, 0), listed.length - 1)];
      const inList = list.contains(document.activeElement);
      if (to !== current) {
        history.replaceState(null, "", link(keyOf.get(to)));
        select(keyOf.get(to));
      }
      if (inList) list.querySelector("[aria-current]")?.focus();
    }

    async function draw(example) {
      const mine = ++turn;
      let failed = null;
      try {
        await Promise.all(example.completions.map(unpacked));
      } catch (error) {
        failed = `This browser cannot unpack the scores of tokens (${error}).`;
      }
      if (mine !== turn) return;
      hide();
      lit = null;
      const held = view.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
      const at = listed.indexOf(example),
        rubric = example.rubric ?? [];
      const cards = example.completions.map((completion) => card(completion, rubric));
      const goes = (by, label, sign) => {
        const button = h("button.quiet", { type: "button", "aria-label": label, disabled: !listed[at + by] }, sign);
        button.addEventListener("click", () => move(by));
        return button;
      };
      const scored = cards.filter((c) => c.completion.scores_of);
      view.replaceChildren(
        h(
          "div.title",
          {},
          h("h3", {}, keyOf.get(example)),
          example.split && h("span.muted", {}, example.split.replaceAll("_", " ")),
          h(
            "span.steps",
            {},
            goes(-1, "Previous example", "←"),
            h("span.muted", {}, `${at + 1} of ${listed.length}`),
            goes(1, "Next example", "→"),
          ),
        ),
        example.question &&
          h(
            "div.question",
            example.question.length > 700 ? { tabindex: 0, role: "region", "aria-label": "Question" } : {},
            example.question,
          ),
        ...[
          example.reference &&
            h("details.reference", {}, h("summary", {}, "Reference answer"), h("div.question", {}, example.reference)),
          scored.length && legend(scored),
          failed && h("p.note", {}, failed),
        ].filter(Boolean),
        h(
          "div.cards",
          {},
          cards.map((c) => c.element),
        ),
      );
      criteria.replaceChildren(
        ...(rubric.length
          ? [
              h("h4", {}, plural(rubric.length, "criterion").replace("criterions", "criteria")),
              h(
                "ul",
                {},
                rubric.map((c, k) => h("li", {}, criterion(c, k, scored))),
              ),
            ]
          : []),
      );
      root.cards = cards;
      if (held) view.querySelector(`button[aria-label="${held}"]`)?.focus();
      if (view.firstElementChild.getBoundingClientRect().top < -100) view.firstElementChild.scrollIntoView();
      requestAnimationFrame(() => setTimeout(() => performance.mark("tokens"))); // when they are painted
    }

    function card(completion, rubric) {
      const text = textOf(completion, rubric),
        scores = completion.scores_of;
      const graded = Object.entries(completion.scores ?? {})
        .filter(([, x]) => typeof x === "number")
        .map(([name, x]) =>
          h("span", {}, `${data.scoreNames[name] ?? name.replaceAll("_", " ")} `, h("b", {}, number(x))),
        );
      const element = h(
        `section.card.of-${completion.role}`,
        { "aria-label": `${completion.role} completion` },
        h(
          "div.who",
          {},
          h("h4", {}, stage.labels[completion.role] ?? completion.role),
          completion.cut && h("span.cut", {}, "cut"),
        ),
        h(
          "p.graded",
          {},
          graded,
          scores && h("span", {}, h("b", {}, String(completion.count)), " tokens"),
          scores && h("span", {}, h("b", {}, mean(scores.divergence)), " nats a token"),
        ),
        scores && strip(scores.divergence, "d", "n", "divergence along the completion"),
        text,
      );
      return { completion, element, text };
    }

    function mean(values) {
      const known = values.filter((x) => x !== NONE);
      const average = known.reduce((a, b) => a + b, 0) / known.length / 1000;
      return known.length ? minus(average.toFixed(Math.abs(average) < 0.01 ? 4 : 3)) : "–";
    }

    function criterion(c, k, scored) {
      const shown = scored.filter(({ completion }) => completion.scores_of.attribution.length);
      const inside = [
        h(
          "span.top",
          {},
          h(
            `span.kind.${(c.kind ?? "").toLowerCase() || "none"}`,
            {},
            c.kind ?? "",
            typeof c.weight === "number" && h("span.weight", {}, ` ${number(c.weight)}`),
          ),
          c.title && h("b", {}, c.title),
        ),
        h("span.description", {}, c.description ?? ""),
        h(
          "span.strips",
          {},
          shown.map(({ completion }) => {
            const { attribution, notable } = completion.scores_of;
            return h(
              "span.stripe",
              {},
              h("span.muted", {}, completion.role),
              strip(attribution[k], "a", "b", `along the ${completion.role} completion`),
              h("span.count", { title: "tokens of note" }, String(notable[k].size)),
            );
          }),
        ),
      ];
      if (!shown.length) return h("div.criterion", {}, inside);
      const button = h("button.criterion", { type: "button", "aria-pressed": "false" }, inside);
      button.addEventListener("click", () => light(lit === k ? null : k));
      return button;
    }

    function light(k) {
      lit = k;
      criteria.querySelectorAll("button").forEach((button, i) => button.setAttribute("aria-pressed", String(i === k)));
      for (const { completion, text } of root.cards) {
        if (!text.tokens) continue;
        text.classList.toggle("lit", k !== null && completion.scores_of.attribution.length > 0);
        paint(completion, text.tokens, k);
      }
      if (shown) shown.classList.add("shown");
    }

    for (const control of [bySplit, byOutcome]) {
      control.addEventListener("change", () => {
        filter();
        if (!listed.length) return;
        const keep = listed.includes(current) ? current : listed[0];
        history.replaceState(null, "", link(keyOf.get(keep)));
        select(keyOf.get(keep));
      });
    }
    list.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      move(by);
    });
    filter();
    return {
      select,
      move,
      first: () => select(keyOf.get(stage.examples[0])),
      release: () => lit !== null && light(null),
    };
  }

  // -------------------------------------------------------------------------------- stages, links and keys

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
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const inScroller = event.target.closest(".scroll, .question");
    const by = { j: 1, k: -1, ...(inScroller ? {} : { ArrowRight: 1, ArrowLeft: -1 }) }[event.key];
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
})();
