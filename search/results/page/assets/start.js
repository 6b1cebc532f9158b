// Starts the page: the text at once, the plots when their script is unpacked.

function startText() {
  element("name").textContent = facts.name;
  const counts = {};
  for (const one of facts.candidates) if (!one.on_front) counts[kindOf(one)] = (counts[kindOf(one)] || 0) + 1;
  const told = Object.entries(counts).map(([name, count]) => `${count} ${STATES[name].title}`).join(", ");
  element("summary").textContent = `${members.length} member${members.length === 1 ? "" : "s"} of the front; ${told}. Files for ${facts.runtime}; seed ${facts.seed}.${facts.goal ? ` Goal: ${facts.goal}.` : ""}${facts.refresh ? " The search goes on; this page renews itself." : ""}`;
  element("limits").innerHTML = facts.limits.map(limit => `<li>limit: ${escaped(column(limit.key) ? `${column(limit.key).title} ${limit.upper ? "at most" : "at least"} ${shown(limit.bound, limit.key)} (${limit.words})` : limit.words)}</li>`).join("");
  element("footer").textContent = `Written by slimfront ${facts.version}. Everything is in this file; it asks no network.`;
}

async function unpacked() {
  const bytes = Uint8Array.from(atob(element("plots").textContent), sign => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

function drawPlots() {
  drawScatter();
  if (members.length > 1) drawParallel();
  drawCourse();
}

async function start() {
  startText();
  if (members.length < 2) for (const id of ["sliders", "parallel"]) element(id).closest("section").hidden = true;  // nothing to choose from
  startTable();
  startLayers();
  startFits();
  drawMember();
  views.push(drawTable, drawLayers, drawFits, drawMember);
  try {
    await unpacked();
  } catch (error) {
    for (const id of ["scatter", "parallel", "course"]) element(id).innerHTML = "<p>This browser is too old for the plots; the tables have all numbers.</p>";
    document.documentElement.dataset.ready = "tables";
    return;
  }
  startScatter();
  if (members.length > 1) {
    drawParallel();
    connect("parallel");
  }
  startCourse();
  views.push(drawPlots);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawPlots);
  const printed = light => { if (light) document.documentElement.dataset.theme = "light"; else delete document.documentElement.dataset.theme; drawPlots(); };
  matchMedia("print").addEventListener("change", event => printed(event.matches));
  if (facts.refresh) setTimeout(() => location.reload(), 1000 * facts.refresh);
  document.documentElement.dataset.ready = "all";
}

start();
