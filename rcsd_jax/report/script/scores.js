// Scored tokens.

let pieces = null;

async function unpacked(completion) {
  if (completion.block === undefined || completion.scores_of) return;
  const there = () => byId(`tokens-${completion.block}`);
  // While the file is still loading, an element may exist with half of its text.
  while (document.readyState === "loading" && !there()?.nextElementSibling)
    await new Promise((go) => setTimeout(go, 15));
  const bytes = Uint8Array.from(atob(there().textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  pieces ??= JSON.parse(byId("pieces").textContent);
  const { count: T, most: M, criteria: K, targeted } = completion,
    inTops = (targeted ? 3 : 2) * T * M;
  const Ids = data.idBytes === 2 ? Uint16Array : Uint32Array;
  const ids = new Ids(buffer, 0, T + inTops),
    numbers = new Int16Array(buffer, ids.byteLength);
  const take = (
    (from) => (size) =>
      numbers.subarray(from, (from += size))
  )(0);
  const scores = { ids, divergence: take(T), student: take(T), teacher: take(T), weight: take(T) };
  if (targeted) Object.assign(scores, { target: take(T), apart: take(T) });
  scores.probabilities = take(inTops);
  scores.attribution = Array.from({ length: K }, () => take(T));
  scores.notable = scores.attribution.map(notable);
  scores.views = {
    divergence: scores.divergence,
    weight: scores.weight.map(asNats),
    target: scores.apart ?? new Int16Array(T),
  };
  completion.scores_of = scores;
}

// A weight as the divergence of the same colour step: 0 for a weight near 1, negative for a token that counts less.
function asNats(weight) {
  if (weight === NONE) return NONE;
  const factor = Math.max(weight / 1000, 1000 / weight); // of a weight of 0 it is infinite
  const size = STEPS[FACTORS.filter((from) => factor >= from - 1e-9).length - 1] ?? 0;
  return weight < 1000 ? -size : size;
}

// Places of the tokens that a criterion counts for or against.
function notable(values) {
  let largest = 0;
  for (const x of values) if (x !== NONE) largest = Math.max(largest, Math.abs(x));
  const from = Math.max(NOTABLE, NOTABLE_SHARE * largest),
    found = new Map();
  values.forEach((x, i) => x !== NONE && Math.abs(x) >= from && found.set(i, x));
  return found;
}

// The likeliest pieces before token i of the student (0), the teacher (1) or the target (2): [[piece, probability], ...]
function likeliest({ count: T, most: M, scores_of }, i, whose) {
  const from = (whose * T + i) * M,
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
