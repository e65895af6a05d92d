// Curves and histograms.

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
