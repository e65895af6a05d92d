// The tooltip of a token.

const tooltip = byId("tooltip");
let shown = null; // the token whose tooltip is open

// `names` are those of student, teacher and target.
function describe(completion, criteria, names, i) {
  const { scores_of: scores, count } = completion,
    written = pieces[scores.ids[i]];
  // A token decoded by itself may lack the space before it, and the end token has a name: then the probability identifies it.
  const stands = (piece, p, logProb) =>
    piece === written ||
    ((piece.trim() === written.trim() || written === END_OF_TEXT) &&
      logProb !== NONE &&
      Math.abs(p - Math.exp(logProb / 1000)) < 0.001);
  const column = (role, whose) => {
    const logProb = scores[role][i];
    const rows = likeliest(completion, i, whose).map(([piece, p]) => [piece, p, stands(piece, p, logProb)]);
    if (logProb !== NONE && !rows.some(([, , same]) => same)) rows.push([written, Math.exp(logProb / 1000), true]);
    return h(
      `div.top.${role}`,
      {},
      h("p", {}, h("b", {}, names[whose]), h("span.muted", {}, " log p "), nats(logProb)),
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
      ![NONE, 1000].includes(scores.weight[i]) && [", counts ", h("b", {}, nats(scores.weight[i])), " times"],
    ),
    scores.apart &&
      h(
        "p.divergence",
        {},
        h(`i.swatch.${toned(scores.apart[i], "d", "n")}`),
        "target ",
        h("b", {}, nats(scores.apart[i])),
        ` nats from the ${names[1]}`,
      ),
    h(
      scores.apart ? "div.tops.three" : "div.tops",
      {},
      ["student", "teacher", ...(scores.apart ? ["target"] : [])].map(column),
    ),
    speaking.map(([k, value]) =>
      h(
        "p.speaks",
        {},
        h(`i.swatch.${toned(value, "a", "b")}`),
        h("b", {}, signed(value)),
        ` ${criteria[k].title || criteria[k].description}`,
      ),
    ),
  ]
    .flat()
    .filter(Boolean);
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

function show(token, completion, criteria, names) {
  hide();
  shown = token;
  token.setAttribute("aria-describedby", "tooltip");
  token.classList.add("shown");
  tooltip.classList.toggle("wide", completion.targeted);
  tooltip.replaceChildren(...describe(completion, criteria, names, token.place));
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
