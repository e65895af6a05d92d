// A completion's text.

function textOf(completion, criteria, names, viewed) {
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
  paint(completion, tokens, null, viewed());
  tokens[0].tabIndex = 0; // one of them is in the tab order; arrow keys reach the others
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
    (event) => event.pointerType !== "touch" && tokenOf(event) && show(tokenOf(event), completion, criteria, names),
  );
  text.addEventListener("pointerleave", () =>
    text.contains(document.activeElement) ? show(entry, completion, criteria, names) : hide(),
  );
  text.addEventListener("click", (event) => getSelection().isCollapsed && focus(tokenOf(event)));
  text.addEventListener("focusin", (event) => tokenOf(event) && show(tokenOf(event), completion, criteria, names));
  text.addEventListener("focusout", hide);
  text.addEventListener("keydown", (event) => {
    const i = entry.place,
      last = tokens.length - 1;
    const calls = (token) =>
      text.classList.contains("lit")
        ? token.classList.contains("notable")
        : scores.views[viewed()][token.place] !== NONE && Math.abs(scores.views[viewed()][token.place]) >= 1000;
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

// Colours tokens by what is viewed or, if a criterion is highlighted, by its attribution.
function paint({ scores_of: scores }, tokens, lit, viewed) {
  tokens.forEach((token, i) => {
    const value = lit === null ? undefined : scores.notable[lit]?.get(i);
    const tone = value === undefined ? toned(scores.views[viewed][i], "d", "n") : `notable ${toned(value, "a", "b")}`;
    const piece = token.textContent;
    token.className = `t ${tone}${piece.includes("\n") ? " break" : ""}${piece === "" ? " empty" : ""}${piece === END_OF_TEXT ? " end" : ""}`;
  });
}
