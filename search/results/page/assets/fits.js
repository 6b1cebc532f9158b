// Which members fit what one can accept, and the sentence that picks the best of them.

const slid = facts.columns.filter(one => one.better && one.kind !== "search" && new Set(members.map(member => value(member, one.key)).filter(known)).size > 1);
const stops = new Map(slid.map(one => [one.key, [...new Set(members.map(member => value(member, one.key)).filter(known))].sort((a, b) => one.better === "low" ? a - b : b - a)]));
const bounded = one => state.bounds[one.key];
const meets = (member, one) => {
  const bound = bounded(one), own = value(member, one.key);
  return bound === undefined || (known(own) && (one.better === "low" ? own <= bound : own >= bound));
};

// A bound with few digits that the same members meet.
function rounded(bound, better) {
  for (let count = 3; count < 17; count += 1) {
    const size = 10 ** (Math.floor(Math.log10(Math.abs(bound) || 1)) - count + 1);
    const near = Number(((better === "low" ? Math.ceil(bound / size - 1e-9) : Math.floor(bound / size + 1e-9)) * size).toPrecision(count + 1));
    if (better === "low" ? near >= bound && near - bound <= 0.002 * Math.abs(bound) : near <= bound && bound - near <= 0.002 * Math.abs(bound)) return near;
  }
  return bound;
}

// The column that a pick has to name: of the file where all members that fit were measured on their files.
const pickName = (one, ones) => one.on_file && ones.every(member => details(member.number).file[one.key] !== undefined) ? one.on_file : one.key;

function pickSentence(left) {
  const best = slid.find(one => one === firstMetric) || slid[0];
  if (!best) return "knee";
  const conditions = slid.filter(one => bounded(one) !== undefined).map(one => `${pickName(one, members)}${one.better === "low" ? "<=" : ">="}${rounded(bounded(one), one.better)}`);
  return `${best.better === "high" ? "max" : "min"} ${pickName(best, members)}${conditions.length ? ` where ${conditions.join(" and ")}` : ""}`;
}

function drawFits() {
  const left = members.filter(member => slid.every(one => meets(member, one)));
  for (const one of slid) {
    const all = stops.get(one.key), bound = bounded(one), input = element(`slider-${one.key}`);
    const loosest = all[all.length - 1], words = bound === undefined ? "any" : `${one.better === "low" ? "at most" : "at least"} ${shown(bound, one.key)}`;
    input.value = all.indexOf(bound === undefined ? loosest : bound);
    input.setAttribute("aria-valuetext", words);
    element(`bound-${one.key}`).textContent = words;
  }
  const buttons = left.map(one => `<button type="button" data-number="${one.number}"${one.number === state.chosen ? ' aria-pressed="true"' : ""}>trial ${one.number}: ${objectives.map(({key}) => shown(value(one, key), key)).join(", ")}</button>`).join("");
  const sentence = `slimfront export ${facts.words} --pick "${pickSentence(left)}"`;
  element("fitting").innerHTML = left.length
    ? `<p>${left.length} of ${members.length} members fit:</p><p class="members">${buttons}</p><pre id="sentence">${escaped(sentence)}</pre><button type="button" id="copy-sentence">Copy the command</button> <span id="copied-sentence" role="status"></span>`
    : `<p class="bad">No member fits. Loosen a bound, or search for longer.</p>`;
  for (const button of element("fitting").querySelectorAll("[data-number]")) button.addEventListener("click", () => choose(Number(button.dataset.number)));
  element("copy-sentence")?.addEventListener("click", () => copy(sentence, element("copied-sentence")));
}

function startFits() {
  element("sliders").innerHTML = slid.map(one => `<div class="slider"><label for="slider-${one.key}">${escaped(one.title)}</label><input type="range" id="slider-${one.key}" min="0" max="${stops.get(one.key).length - 1}" step="1"><output id="bound-${one.key}" for="slider-${one.key}"></output></div>`).join("");
  for (const one of slid) {
    element(`slider-${one.key}`).addEventListener("input", event => {
      const all = stops.get(one.key), at = Number(event.target.value), bounds = {...state.bounds};
      if (at === all.length - 1) delete bounds[one.key]; else bounds[one.key] = all[at];
      change({bounds});
    });
  }
  drawFits();
}
