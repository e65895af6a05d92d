// Examples.

const briefOf = (example) => example.brief ?? example.question ?? String(example.id);
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

// What colour can show, as radio buttons.
function viewSwitch(stage, viewed, choose) {
  const choices = stage.views.map((view) => {
    const radio = h("input", { type: "radio", name: `views of ${stage.name}`, value: view, checked: view === viewed });
    radio.addEventListener("change", () => choose(view));
    return h("label", {}, radio, view);
  });
  return h("fieldset.views", {}, h("legend", {}, "colour"), choices);
}

// A scale of colours: the label, what negative and positive ones mean, and the number at which each step begins.
function scale(up, down, label, less, more, numbers = STEPS.map((from) => String(from / 1000)), below = []) {
  const marked = (tone, text) => h(`i.${tone}`, {}, text && h("span", {}, text));
  return h(
    below.length ? "div.scale.both" : "div.scale",
    {},
    h("span.what", {}, label),
    h(
      "span.steps",
      {},
      down && [
        h("span.way", {}, less),
        STEPS.map((_, i) => STEPS.length - i).map((n) => marked(`${down}${n}`, below[n - 1])),
      ],
      h("i"),
      numbers.map((from, i) => marked(`${up}${i + 1}`, from)),
      h("span.way", {}, more),
    ),
  );
}

// The scale of what is viewed. `against` is what divergences are measured from.
function scaleOf(viewed, scored, against) {
  if (viewed === "weight") {
    const below = FACTORS.map((factor) => String(+(1 / factor).toFixed(2)));
    return scale("d", "n", "how many times a token counts", "less", "more", FACTORS.map(String), below);
  }
  if (viewed === "target") return scale("d", null, `divergence of the target from the ${against}, nats`, "", "");
  const values = scored.map(({ completion }) => completion.scores_of);
  const negative = values.some(({ divergence }) => divergence.some((x) => x !== NONE && x <= -STEPS[0]));
  const from = values.some(({ apart }) => apart) ? "target" : against;
  return scale("d", negative ? "n" : null, `divergence from the ${from}, nats`, "negative", "");
}

function legend(scored, stage, viewed, against, choose) {
  const attributed = scored.some(({ completion }) => completion.scores_of.attribution.length);
  return h(
    "div.legend",
    {},
    stage.views.length > 1 && viewSwitch(stage, viewed, choose),
    scaleOf(viewed, scored, against),
    attributed && scale("a", "b", "a highlighted criterion makes the token, in nats,", "less likely", "more likely"),
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
      " next notable token",
    ),
  );
}

function explorer(root, stage) {
  const keys = new Map(); // the name of an example in a link: its id or, if that is taken, its split and id
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
    viewed = "divergence",
    turn = 0;
  const names = ["student", stage.hasTeacher ? "teacher" : "start", "target"]; // a method without a teacher moves away from the start

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
        const title = `${marks.map(([role, , word]) => `${role} ${word}`).join(", ")}: ${briefOf(example)}`;
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
            h("span.brief", {}, briefOf(example)),
          ),
        );
      }),
    );
    if (!listed.length) list.append(h("li.note", {}, "No example matches."));
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
    const active = view.contains(document.activeElement) ? document.activeElement : null;
    const held = active?.type === "radio" ? "input:checked" : `button[aria-label="${active?.getAttribute("aria-label")}"]`;
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
        scored.length && legend(scored, stage, viewed, names[1], choose),
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
            h("h3", {}, plural(rubric.length, "criterion").replace("criterions", "criteria")),
            h(
              "ul",
              {},
              rubric.map((c, k) => h("li", {}, criterion(c, k, scored))),
            ),
          ]
        : []),
    );
    root.cards = cards;
    if (active) view.querySelector(held)?.focus();
    if (view.firstElementChild.getBoundingClientRect().top < -100) view.firstElementChild.scrollIntoView();
    requestAnimationFrame(() => setTimeout(() => performance.mark("tokens"))); // when they are painted
  }

  function card(completion, rubric) {
    const text = textOf(completion, rubric, names, () => viewed),
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
      scores && stripOf(scores),
      text,
    );
    return { completion, element, text };
  }

  const stripOf = (scores) => strip(scores.views[viewed], "d", "n", `${viewed} along the completion`);

  function choose(name) {
    viewed = name;
    const scored = root.cards.filter((c) => c.completion.scores_of);
    view.querySelector(".legend .scale").replaceWith(scaleOf(viewed, scored, names[1]));
    for (const { completion, element } of scored)
      element.querySelector(".strip").replaceWith(stripOf(completion.scores_of));
    light(lit);
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
            h("span.count", { title: "notable tokens" }, String(notable[k].size)),
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
      paint(completion, text.tokens, k, viewed);
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
  // Opens on an example that training changed: the base is wrong and the trained student right, or else better. Where
  // all roles are right they agree, and tokens have no colour.
  const gained = (e) => wrong(e, "base") && right(e, "trained");
  const wanted = [gained, (e) => rise(e) > 0, (e) => wrong(e, "base") || wrong(e, "trained"), () => true];
  const opening = wanted.map((is) => stage.examples.find(is)).find(Boolean);
  return {
    select,
    move,
    first: () => select(keyOf.get(opening)),
    release: () => lit !== null && light(null),
  };
}
