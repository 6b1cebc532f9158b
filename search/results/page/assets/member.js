// The panel of the chosen member: from the teacher to it, its plan, its file, and the command that exports it.

const FLOAT_BITS = 32;

function teacherValue(one, number) {
  const file = details(number)?.teacher_file || {};
  return one.key === "latency_ratio" ? 1 : one.on_file && known(file[one.on_file]) && known(details(number).file[one.key]) ? file[one.on_file] : facts.teacher[one.key];
}

function valueRows(one) {
  return facts.columns.filter(({key, kind}) => known(value(one, key)) && kind !== "search").map(col => {
    const own = value(one, col.key), teacher = teacherValue(col, one.number), pair = interval(one, col.key);
    const range = pair ? `<br><span class="soft">95%: ${pair[0].toFixed(2)} to ${pair[1].toFixed(2)}</span>` : "";
    const words = col.key === "agreement_percent" || col.key === "latency_ratio" ? "" : comparison(own, teacher, col);
    const source = details(one.number)?.file && col.key in details(one.number).file ? "" : ' <span class="soft">(search)</span>';
    return `<tr><th scope="row">${escaped(col.title)}${source}</th><td class="number">${shown(teacher, col.key)}</td><td class="number">${shown(own, col.key)}${words ? `<br><b>${words}</b>` : ""}${range}</td></tr>`;
  }).join("");
}

// Whether the teacher's metric lies in the interval of the member: then the examples do not tell them apart.
function indistinct(one) {
  return facts.columns.filter(col => {
    const pair = col.kind === "metric" && interval(one, col.key), teacher = facts.teacher[col.key];
    return pair && known(teacher) && pair[0] <= teacher && teacher <= pair[1];
  });
}

function picture(number) {
  const rows = facts.plans[number];
  const most = Math.max(...facts.layers.map(layer => Math.sqrt(layer.now[4])), 1), step = 600 / rows.length;
  const bars = rows.map((row, index) => {
    const before = 78 * Math.sqrt(facts.layers[index].now[4]) / most, after = 78 * Math.sqrt(row[4]) / most;
    const bits = row[2], shade = row[0] ? 0.35 + 0.65 * (FLOAT_BITS - Math.min(bits, FLOAT_BITS)) / FLOAT_BITS : 0;
    const title = `${facts.layers[index].name}: ${layerWords(facts.layers[index].now, row)}`;
    const common = `x="${(index * step).toFixed(1)}" width="${Math.max(step * 0.8, 1).toFixed(1)}"`;
    return `<g><title>${escaped(title)}</title><rect ${common} y="${(84 - before).toFixed(1)}" height="${Math.max(before, 1).toFixed(1)}" fill="none" stroke="var(--soft)" stroke-width="0.7"/><rect ${common} y="${(84 - after).toFixed(1)}" height="${after.toFixed(1)}" fill="var(--bar-now)" opacity="${shade.toFixed(2)}"/></g>`;
  }).join("");
  return `<svg class="picture" viewBox="0 0 600 92" preserveAspectRatio="none" role="img" aria-label="Work of each layer before and after; the table of layers has the numbers">${bars}</svg><p class="note">A bar is a layer, in the order of execution: the outline is the teacher's work (area: multiply-adds), filled what is left, darker with fewer bits.</p>`;
}

function layerWords(before, after) {
  if (!after[0]) return "left out";
  const words = [after[0] === before[0] ? `width ${before[0]}` : `width ${before[0]} to ${after[0]}`];
  if (after[1]) words.push(`rank ${after[1]}`);
  if (after[2] < FLOAT_BITS || after[3] < FLOAT_BITS) words.push(`bits ${after[2]}/${after[3]}`);
  return words.join(", ");
}

const command = number => `slimfront export ${facts.words} --pick ${number}`;

function drawMember() {
  const one = byNumber.get(state.chosen), body = element("member-body");
  if (!one) { body.innerHTML = "<p>No candidate is on the front yet.</p>"; return; }
  const own = details(one.number);
  const badges = [["badge", one.on_front ? "on the front" : one.state]];
  if (one.number === facts.knee) badges.push(["badge good", "knee: the best trade-off"]);
  if (own && facts.limits.length) badges.push([`badge ${own.meets ? "good" : "bad"}`, own.meets ? "meets all limits" : "misses a limit"]);
  if (own?.beaten) badges.push(["badge", "another file beats its file"]);
  if (own && own.failure) badges.push(["badge bad", "its file failed"]);
  const parts = [`<h3>Trial ${one.number}</h3>`, badges.map(([look, text]) => `<span class="${look}">${escaped(text)}</span>`).join("")];
  if (one.reason) parts.push(`<p>${escaped(one.reason)}</p>`);
  parts.push(`<div class="scroll"><table><thead><tr><th></th><th class="number">teacher</th><th class="number">trial ${one.number}</th></tr></thead><tbody>${valueRows(one)}</tbody></table></div>`);
  for (const col of indistinct(one)) parts.push(`<p class="soft">In ${escaped(col.title)} it cannot be told from the teacher: the teacher's value lies within its 95% interval.</p>`);
  const confirmed = Object.entries(own?.confirmed || {});
  if (confirmed.length) parts.push(`<h3>Confirmed</h3><ul>${confirmed.map(([name, [mean, spread, count]]) => `<li>${escaped(name.replace("_", ", "))}: ${digits(mean)}${count > 1 ? ` ± ${digits(spread)} (${count} trainings)` : " (1 training)"}</li>`).join("")}</ul>`);
  parts.push(`<h3>Plan</h3><p>${escaped(one.plan)}</p>`);
  if (facts.plans[one.number]) parts.push(picture(one.number));
  if (own) {
    parts.push(`<h3>File for ${escaped(facts.runtime)}</h3>`);
    parts.push(own.failure ? `<p class="bad">failed: ${escaped(own.failure)}</p>` : `<p>${own.verification ? `verified: ${escaped(own.verification)}` : "not verified yet"}</p>`);
    for (const [runtime, words] of Object.entries(own.others)) parts.push(`<h3>File for ${escaped(runtime)}</h3><p>verified: ${escaped(words)}</p>`);
    parts.push(`<pre id="command">${escaped(command(one.number))}</pre><button type="button" id="copy">Copy the command</button> <span id="copied" role="status"></span>`);
  }
  body.innerHTML = parts.join("");
  if (own) element("copy").addEventListener("click", () => copy(command(one.number), element("copied")));
}

async function copy(text, told) {
  try {
    await navigator.clipboard.writeText(text);
    told.textContent = "copied";
  } catch (error) {
    told.textContent = "this browser does not allow it; select the text";
  }
}
