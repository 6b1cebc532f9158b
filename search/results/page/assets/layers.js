// What one or two plans do to each layer.

const share = (part, whole) => whole ? `${digits(100 * part / whole)} %` : "";

function bar(before, after, most) {
  const width = part => `${(100 * Math.sqrt(part / (most || 1))).toFixed(1)}%`;
  return `<span class="bar"><i style="width:${width(before)}"></i><b style="width:${width(after)}"></b></span>`;
}

function layerCells(layer, row, totals, most) {
  const [width, ranks, weights, inputs, macs, size] = row, before = layer.now;
  if (!width) return `<td colspan="5" class="soft">left out with its branch</td>`;
  const bits = weights < FLOAT_BITS || inputs < FLOAT_BITS ? `${weights} / ${inputs}` : "float";
  const changed = (part, whole) => part === whole ? `${part}` : `${whole} → ${part}`;
  return `<td class="number">${changed(width, before[0])}</td><td class="number">${escaped(ranks)}</td><td class="number">${bits}</td>` +
    `<td>${bar(before[4], macs, most[0])}${amount(macs, "")} <span class="soft">${share(before[4], totals.before[0])} → ${share(macs, totals.before[0])}</span></td>` +
    `<td>${bar(before[5], size, most[1])}${amount(size, "B")} <span class="soft">${share(before[5], totals.before[1])} → ${share(size, totals.before[1])}</span></td>`;
}

function drawLayers() {
  const known_plans = members.filter(one => facts.plans[one.number]), names = known_plans.map(one => [one.number, `trial ${one.number}`]);
  const own = facts.plans[state.chosen] ? state.chosen : null;
  options(element("layers-of"), own === null ? [["", "choose a member of the front"], ...names] : names, own);
  options(element("beside"), [["", "nothing"], ...names.filter(([number]) => number !== own)], state.beside);
  element("changed-only").checked = state.changedOnly;
  const chosen = [own, state.beside !== own ? state.beside : null].filter(number => number !== null && facts.plans[number]);
  if (!chosen.length) { element("layers").innerHTML = "<tbody><tr><td>No member of the front is chosen.</td></tr></tbody>"; return; }
  const totals = {before: [4, 5].map(at => facts.layers.reduce((sum, layer) => sum + layer.now[at], 0))};
  const most = [4, 5].map(at => Math.max(...facts.layers.map(layer => layer.now[at])));
  const heads = chosen.map(number => `<th class="number">width</th><th class="number">rank</th><th class="number">bits: weights / inputs</th><th>multiply-adds, share before → after</th><th>bytes, share before → after</th>`).join("");
  const groups = chosen.map(number => `<th colspan="5" scope="colgroup">trial ${number}</th>`).join("");
  const rows = facts.layers.map((layer, index) => ({layer, plans: chosen.map(number => facts.plans[number][index])}))
    .filter(({layer, plans}) => !state.changedOnly || plans.some(row => String(row) !== String(layer.now)))
    .map(({layer, plans}) => {
      const why = Object.entries(layer.why).map(([axis, reason]) => `${axis}: ${reason}`).join("; ");
      return `<tr><th scope="row">${escaped(layer.name)}</th><td>${escaped(layer.kind)} ${escaped(layer.kernel)}</td>${plans.map(row => layerCells(layer, row, totals, most)).join("")}<td class="words soft">${escaped(why)}</td></tr>`;
    });
  const top = chosen.length > 1 ? `<tr><th></th><th></th>${groups}<th></th></tr>` : "";
  element("layers").innerHTML = `<thead>${top}<tr><th scope="col">layer</th><th scope="col">kind</th>${heads}<th scope="col">what stays, and why</th></tr></thead><tbody>${rows.join("")}</tbody>`;
}

function startLayers() {
  element("layers-of").addEventListener("change", event => choose(Number(event.target.value)));
  element("beside").addEventListener("change", event => change({beside: event.target.value === "" ? null : Number(event.target.value)}));
  element("changed-only").addEventListener("change", event => change({changedOnly: event.target.checked}));
  drawLayers();
}
