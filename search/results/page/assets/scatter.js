// The front, and all values of its members, as plots.

const CONFIG = {displaylogo: false, responsive: true, showSendToCloud: false, showEditInChartStudio: false, modeBarButtonsToRemove: ["sendDataToCloud", "lasso2d", "select2d", "autoScale2d"]};
const WIDE = 8;  // a column that spans more than this factor has a logarithmic axis (chosen)
const isWide = values => Math.min(...values) > 0 && Math.max(...values) > WIDE * Math.min(...values);
const ink = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const narrow = () => window.innerWidth < 600;

function layout(changes) {
  const axis = {gridcolor: ink("grid"), zerolinecolor: ink("grid"), linecolor: ink("line"), automargin: true};
  const {xaxis, yaxis, ...rest} = changes;
  return {
    paper_bgcolor: ink("paper"), plot_bgcolor: ink("paper"), font: {color: ink("ink"), size: 13, family: "system-ui, sans-serif"},
    margin: {l: 56, r: 12, t: 12, b: 48}, dragmode: narrow() ? false : "zoom", hovermode: "closest",
    hoverlabel: {font: {size: 13}, align: "left"}, ...rest, xaxis: {...axis, ...xaxis}, yaxis: {...axis, ...yaxis},
  };
}

// Ticks of a logarithmic axis, with SI prefixes: 1, 2 and 5 in each decade where there is room.
function ticks([low, high], unit) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))], steps = last - first > 3 ? [1] : [1, 2, 5];
  const tickvals = [];
  for (let decade = first; decade <= last; decade += 1) for (const step of steps) if (step * 10 ** decade >= low && step * 10 ** decade <= high) tickvals.push(step * 10 ** decade);
  return tickvals.length > 1 ? {tickvals, ticktext: tickvals.map(one => amount(one, unit === "%" ? "" : unit).replace(/\.0+(?=\D|$)/, ""))} : {};
}

const SIGNS = {circle: "●", "circle-open": "○", "diamond-open": "◇", "x-thin-open": "✕", "cross-open": "✛", x: "✖", star: "★", square: "■"};

function drawLegend(traces) {
  const seen = new Set();
  element("legend").innerHTML = traces.filter(({name}) => name && !seen.has(name) && seen.add(name)).map(({name, marker, mode, line}) => {
    const sign = mode === "lines" ? "─" : mode === "lines+markers" ? "→" : SIGNS[marker.symbol], shade = mode.startsWith("lines") ? line.color : marker.color;
    return `<li><span style="color:${typeof shade === "string" ? shade : ink("member")}" aria-hidden="true">${sign}</span> ${escaped(name)}</li>`;
  }).join("");
}

const STATES = {
  trained: {symbol: "circle", title: "behind the front"}, "stopped early": {symbol: "diamond-open", title: "stopped early"},
  rejected: {symbol: "x-thin-open", title: "refused before training"}, failed: {symbol: "cross-open", title: "failed"},
};
const kindOf = one => one.state in STATES ? one.state : "trained";  // "same as 7" repeats a result

function hover(one) {
  const values = facts.columns.map(({key, title}) => known(value(one, key)) ? `${escaped(title)}: ${shown(value(one, key), key)}` : "").filter(Boolean);
  return [`<b>trial ${one.number}</b>, ${escaped(one.state)}`, ...values, lines(one.plan), one.reason ? lines(one.reason) : ""].filter(Boolean).join("<br>");
}

function marks(ones, x, y, extra) {
  return {
    type: "scatter", mode: "markers", x: ones.map(one => value(one, x)), y: ones.map(one => value(one, y)), text: ones.map(hover), hoverinfo: "text",
    customdata: ones.map(one => one.number), ...extra,
  };
}

// The best value across, at each value up: what a network that is chosen by these two columns can reach.
function attained(points, x, y) {
  const [across, up] = [column(x).better === "high" ? -1 : 1, column(y).better === "high" ? -1 : 1];
  const sorted = points.slice().sort((one, other) => across * (one[0] - other[0]) || up * (one[1] - other[1]));
  const kept = [];
  for (const point of sorted) if (!kept.length || up * (point[1] - kept[kept.length - 1][1]) < 0) kept.push(point);
  return kept;
}

function errors(ones, key) {
  const found = ones.map(one => interval(one, key));
  if (!found.some(Boolean)) return undefined;
  const at = ones.map(one => value(one, key));
  return {
    type: "data", symmetric: false, thickness: 1, width: 3, color: ink("member"),
    array: found.map((pair, index) => pair ? pair[1] - at[index] : 0), arrayminus: found.map((pair, index) => pair ? at[index] - pair[0] : 0),
  };
}

function limitShapes(x, y, rangeX, rangeY) {
  return facts.limits.flatMap(limit => {
    const box = {type: "rect", line: {width: 0}, fillcolor: ink("limit"), layer: "below"};
    const beyond = range => limit.upper ? Math.max(range[1], limit.bound) : Math.min(range[0], limit.bound);
    const found = [];
    if (limit.key === x) found.push({...box, xref: "x", yref: "paper", x0: limit.bound, x1: beyond(rangeX), y0: 0, y1: 1});
    if (limit.key === y) found.push({...box, xref: "paper", yref: "y", x0: 0, x1: 1, y0: limit.bound, y1: beyond(rangeY)});
    return found;
  });
}

function drawScatter() {
  const {x, y, colour} = state;
  const drawn = facts.candidates.filter(one => known(value(one, x)) && known(value(one, y)));
  const rug = facts.candidates.filter(one => known(value(one, x)) && !known(value(one, y)));
  const inFront = drawn.filter(one => one.on_front), others = drawn.filter(one => !one.on_front);
  const references = [["teacher", facts.teacher], ["teacher at 8 bits, not trained", facts.eight_bits]].filter(([, values]) => known(values[x]) && known(values[y]));
  const allX = [...drawn, ...rug].map(one => value(one, x)).concat(references.map(([, values]) => values[x]));
  const wide = allX.length > 0 && isWide(allX);
  const traces = [];
  const paint = (ones, plain) => colour ? {color: ones.map(one => value(one, colour) ?? null), colorscale: "Viridis", coloraxis: "coloraxis"} : {color: plain};
  for (const [name, {symbol, title}] of Object.entries(STATES)) {
    const here = others.filter(one => kindOf(one) === name), below = rug.filter(one => kindOf(one) === name);
    const look = {symbol, size: 8, line: {width: 1.5}};
    if (here.length) traces.push(marks(here, x, y, {name: `${title} (${here.length})`, marker: {...look, ...paint(here, ink("other"))}, legendgroup: name}));
    if (below.length) traces.push({...marks(below, x, y, {name: `${title} (${below.length}, at the bottom)`, marker: {...look, color: ink("other")}, legendgroup: `${name} rug`}), y: below.map(() => 0.025), yaxis: "y2"});
  }
  const bestUp = column(y).better === "high", endX = column(x).better === "high" ? Math.min(...allX) : Math.max(...allX);
  const attainedPoints = attained(inFront.map(one => [value(one, x), value(one, y)]), x, y);
  if (objectives.length <= 3 && column(x).better && column(y).better && attainedPoints.length) {
    const stairs = [...attainedPoints, [endX, attainedPoints[attainedPoints.length - 1][1]]];
    traces.push({type: "scatter", mode: "lines", name: "attained", x: stairs.map(point => point[0]), y: stairs.map(point => point[1]), line: {shape: "hv", color: ink("member"), width: 1.5}, hoverinfo: "skip"});
  }
  const moved = inFront.filter(one => details(one.number)?.file && (one.values[x] !== value(one, x) || one.values[y] !== value(one, y)) && known(one.values[x]) && known(one.values[y]));
  if (moved.length) {
    traces.push({
      type: "scatter", mode: "lines+markers", name: "from prediction to file", hoverinfo: "skip", line: {color: ink("soft"), width: 1},
      x: moved.flatMap(one => [one.values[x], value(one, x), null]), y: moved.flatMap(one => [one.values[y], value(one, y), null]),
      marker: {symbol: "arrow", angleref: "previous", size: moved.flatMap(() => [0, 8, 0]), color: ink("soft")},
    });
  }
  const groups = [
    ["front, file measured", one => details(one.number)?.file && Object.keys(details(one.number).file).length, "circle"],
    ["front, file not verified yet", one => !Object.keys(details(one.number).file).length && !details(one.number).failure, "circle-open"],
    ["front, file failed", one => details(one.number).failure, "x"],
  ];
  for (const [name, belongs, symbol] of groups) {
    const here = inFront.filter(belongs);
    if (!here.length) continue;
    traces.push(marks(here, x, y, {name: `${name} (${here.length})`, marker: {symbol, size: 11, line: {width: 2, color: ink("member")}, ...paint(here, ink("member"))}, error_y: errors(here, y), error_x: errors(here, x)}));
  }
  references.forEach(([name, values], index) => traces.push({
    type: "scatter", mode: "markers", name, x: [values[x]], y: [values[y]], hoverinfo: "text", customdata: [null],
    text: [`<b>${name}</b><br>` + facts.columns.filter(one => known(values[one.key])).map(one => `${escaped(one.title)}: ${shown(values[one.key], one.key)}`).join("<br>")],
    marker: {symbol: index ? "square" : "star", size: index ? 12 : 16, color: ink(index ? "eight" : "teacher")},
  }));
  const ring = (number, name, shade, size) => {
    const one = byNumber.get(number);
    if (one && known(value(one, x)) && known(value(one, y))) traces.push({...marks([one], x, y, {name, marker: {symbol: "circle-open", size, color: ink(shade), line: {width: 2.5}}}), hoverinfo: "skip"});
  };
  ring(facts.knee, "knee", "good", 20);
  ring(state.beside, "beside", "member", 25);
  ring(state.chosen, "chosen", "chosen", 26);
  const core = [...inFront.flatMap(one => [value(one, y), ...(interval(one, y) || [])]), facts.teacher[y]].filter(known);
  const bounds = core.length ? [Math.min(...core), Math.max(...core)] : drawn.length ? [Math.min(...drawn.map(one => value(one, y))), Math.max(...drawn.map(one => value(one, y)))] : [0, 1];
  const wideUp = core.length > 0 && isWide(core), margin = 0.1 * (bounds[1] - bounds[0]) || Math.abs(bounds[1]) * 0.05 || 1;
  const rangeY = wideUp ? [bounds[0] / 1.3, bounds[1] * 1.3] : [bounds[0] - 1.5 * margin, bounds[1] + margin];
  const rangeX = allX.length ? (wide ? [Math.min(...allX) / 1.25, Math.max(...allX) * 1.25] : [Math.min(...allX) - 0.06 * (Math.max(...allX) - Math.min(...allX) || 1), Math.max(...allX) + 0.06 * (Math.max(...allX) - Math.min(...allX) || 1)]) : [0, 1];
  const log = pair => pair.map(Math.log10);
  Plotly.react("scatter", traces, layout({
    xaxis: {title: {text: titled(column(x))}, type: wide ? "log" : "linear", range: wide ? log(rangeX) : rangeX, exponentformat: "SI", ...(wide ? ticks(rangeX, column(x).unit) : {})},
    yaxis: {title: {text: titled(column(y))}, type: wideUp ? "log" : "linear", range: wideUp ? log(rangeY) : rangeY, exponentformat: "SI", ...(wideUp ? ticks(rangeY, column(y).unit) : {})},
    yaxis2: {overlaying: "y", range: [0, 1], visible: false, fixedrange: true},
    shapes: limitShapes(x, y, rangeX, rangeY),
    coloraxis: colour ? {colorscale: "Viridis", colorbar: {title: {text: titled(column(colour)), side: "right"}, thickness: 12}} : undefined,
    showlegend: false,
  }), CONFIG);
  drawLegend(traces);
  const outside = drawn.filter(one => value(one, y) < rangeY[0] || value(one, y) > rangeY[1]).length;
  const nowhere = facts.candidates.length - drawn.length - rug.length;
  const shadedLimits = facts.limits.filter(limit => limit.key === x || limit.key === y).length;
  const parts = [
    members.some(one => interval(one, y)) ? "Vertical lines: 95% intervals (Wilson)." : "", shadedLimits ? "Shaded: beyond a limit." : "",
    outside ? `${outside} candidate${outside > 1 ? "s lie" : " lies"} outside of this range; a double click shows all.` : "",
    nowhere ? `${nowhere} candidate${nowhere > 1 ? "s have" : " has"} no ${column(x).title}; they are in the table.` : "",
    "Click a point, or use the arrow keys here, to choose.",
  ];
  element("scatter-note").textContent = parts.filter(Boolean).join(" ");
  element("scatter").setAttribute("aria-label", `Plot of ${column(y).title} against ${column(x).title}: ${members.length} members of the front. Arrow keys choose a member; the table below has all values.`);
}

function connect(id) {
  element(id).on("plotly_click", event => {
    const point = event.points.find(one => known(one.customdata)) ;
    if (point) choose(point.customdata);
  });
}

function startScatter() {
  const axes = facts.columns.map(one => [one.key, titled(one)]);
  for (const id of ["x", "y"]) {
    options(element(id), axes, state[id]);
    element(id).addEventListener("change", event => change({[id]: event.target.value}));
  }
  options(element("colour"), [["", "none"], ...axes], state.colour);
  element("colour").addEventListener("change", event => change({colour: event.target.value}));
  drawScatter();
  connect("scatter");
  element("scatter").addEventListener("keydown", event => {
    const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!step || !members.length) return;
    event.preventDefault();
    const sorted = members.slice().sort((one, other) => value(one, state.x) - value(other, state.x));
    const at = sorted.findIndex(one => one.number === state.chosen);
    choose(sorted[at < 0 ? 0 : (at + step + sorted.length) % sorted.length].number);
  });
}

function drawParallel() {
  const shownColumns = facts.columns.filter(one => members.filter(member => known(value(member, one.key))).length > 1);
  const scales = shownColumns.map(({key, better}) => {
    const found = members.map(one => value(one, key)).filter(known), log = isWide(found) ? Math.log : one => one;
    const [low, high] = [Math.min(...found), Math.max(...found)];
    const upper = better === "low" ? low : high, lower = better === "low" ? high : low;
    return {upper, lower, of: one => known(one) ? (upper === lower ? 0.5 : (log(one) - log(lower)) / (log(upper) - log(lower))) : null};
  });
  const across = shownColumns.map((one, index) => index);
  element("parallel").style.minWidth = `${110 * across.length}px`;
  const traces = members.map(one => ({
    type: "scatter", mode: "lines+markers", x: across, y: shownColumns.map(({key}, index) => scales[index].of(value(one, key))), name: `trial ${one.number}`,
    text: across.map(() => hover(one)), hoverinfo: "text", customdata: across.map(() => one.number),
    line: {color: one.number === state.chosen ? ink("chosen") : ink("member"), width: one.number === state.chosen ? 4 : 1.5}, opacity: one.number === state.chosen || one.number === state.beside ? 1 : 0.55,
    marker: {size: one.number === state.chosen ? 9 : 6},
  }));
  traces.sort((one, other) => one.line.width - other.line.width);
  const label = (text, at, y, anchor) => ({x: at, y, text: escaped(text), showarrow: false, yanchor: anchor, font: {size: 12}});
  const annotations = shownColumns.flatMap(({key}, index) => [label(shown(scales[index].upper, key), index, 1.04, "bottom"), label(shown(scales[index].lower, key), index, -0.04, "top")]);
  Plotly.react("parallel", traces, layout({
    xaxis: {tickvals: across, ticktext: shownColumns.map(one => escaped(one.title).replace(/ (?=\w+ \w|\w{8})/g, "<br>")), range: [-0.4, across.length - 0.6], showgrid: true, zeroline: false, fixedrange: true, tickfont: {size: 12}},
    yaxis: {range: [-0.18, 1.18], visible: false, fixedrange: true}, showlegend: false, annotations, margin: {l: 12, r: 12, t: 8, b: 64}, dragmode: false,
  }), CONFIG);
}
