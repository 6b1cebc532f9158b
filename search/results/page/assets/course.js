// How the search went: small plots.

function courseCard(id, title, note) {
  return `<section aria-labelledby="${id}-heading"><h3 id="${id}-heading">${escaped(title)}</h3><div id="${id}" class="plot small"></div><p class="note">${escaped(note)}</p></section>`;
}

function courses() {
  const found = [], {course} = facts;
  if (course.hypervolume.length > 1) {
    found.push(["volume", "Hypervolume over CPU time", "Of all trainings so far: 1 is the teacher's quality at the smallest cost that was trained, on a logarithmic scale of cost; without table and draft.", () => [[{
      type: "scatter", mode: "lines+markers", line: {shape: "hv", color: ink("member")}, x: course.hypervolume.map(([spent]) => spent), y: course.hypervolume.map(([, volume]) => volume),
      customdata: course.hypervolume.map(([, , number]) => number), text: course.hypervolume.map(([spent, volume, number]) => `trial ${number}: ${volume.toFixed(3)} after ${digits(spent)} s`), hoverinfo: "text",
    }], {xaxis: {title: {text: "CPU time of the trials (s)"}, rangemode: "tozero"}, yaxis: {title: {text: "hypervolume"}, range: [0, 1.02]}}]]);
  }
  for (const [key, points] of Object.entries(course.predicted)) {
    if (points.length < 2) continue;
    const title = column(key)?.title ?? key, unit = column(key)?.unit ?? "", both = points.flatMap(([, a, b]) => [a, b]), ends = [Math.min(...both), Math.max(...both)], scale = isWide(both) ? ticks([ends[0] / 1.3, ends[1] * 1.3], unit) : {}, log = isWide(both) ? "log" : "linear";
    const error = points.map(([, a, b]) => Math.abs(a / b - 1)).sort((a, b) => a - b)[Math.floor(points.length / 2)];
    found.push([`predicted-${key}`, `${title}: predicted and measured`, `${points.length} networks, median error ${(100 * error).toFixed(1)}%.`, () => [[
      {type: "scatter", mode: "lines", x: ends, y: ends, line: {color: ink("line"), dash: "dot"}, hoverinfo: "skip"},
      {type: "scatter", mode: "markers", x: points.map(point => point[1]), y: points.map(point => point[2]), customdata: points.map(point => point[0]), marker: {color: points.map(point => point[0] === state.chosen ? ink("chosen") : ink("member")), size: 8}, text: points.map(([number, a, b]) => `trial ${number}: ${amount(a, unit)} predicted, ${amount(b, unit)} measured`), hoverinfo: "text"},
    ], {xaxis: {title: {text: `predicted${unit ? ` (${unit})` : ""}`}, type: log, exponentformat: "SI", ...scale}, yaxis: {title: {text: "measured"}, type: log, exponentformat: "SI", ...scale}}]]);
  }
  if (course.proxy.length > 2) {
    found.push(["proxy", "Before and after training", `${course.proxy.length} plans of the draft: the loss by which they were chosen, and that on validation examples after training; 0 is the teacher's. The closer to a rising line, the better the draft chose.`, () => [[
      {type: "scatter", mode: "markers", x: course.proxy.map(point => point[1]), y: course.proxy.map(point => point[2]), customdata: course.proxy.map(point => point[0]), marker: {color: course.proxy.map(point => point[0] === state.chosen ? ink("chosen") : ink("member")), size: 8}, text: course.proxy.map(([number]) => `trial ${number}`), hoverinfo: "text"},
    ], {xaxis: {title: {text: "proxy loss of the draft"}}, yaxis: {title: {text: "loss after training"}}}]]);
  }
  const time = Object.entries(course.time).filter(([, seconds]) => seconds > 0), total = time.reduce((sum, [, seconds]) => sum + seconds, 0);
  if (time.length) {
    found.push(["time", "Where the time went", `${digits(total)} CPU seconds of all runs.`, () => [[
      {type: "bar", orientation: "h", y: time.map(([name]) => name).reverse(), x: time.map(([, seconds]) => seconds).reverse(), marker: {color: ink("member")}, text: time.map(([, seconds]) => `${(100 * seconds / total).toFixed(0)}%`).reverse(), hoverinfo: "x+y"},
    ], {xaxis: {title: {text: "CPU seconds"}}, yaxis: {tickfont: {size: 12}}}]]);
  }
  for (const [key, shares] of Object.entries(course.importance)) {
    found.push([`importance-${key}`, `What ${column(key)?.title ?? key} depends on`, `Importance of the parameters (fANOVA) over the ${course.trained} trained candidates; with few of them it is a rough guess.`, () => [[
      {type: "bar", orientation: "h", y: shares.map(([name]) => name).reverse(), x: shares.map(([, part]) => part).reverse(), marker: {color: ink("member")}, hoverinfo: "x+y"},
    ], {xaxis: {title: {text: "share of the variance"}}, yaxis: {tickfont: {size: 12}}}]]);
  }
  return found;
}

const shownCourses = courses();

function drawCourse() {
  for (const [id, , , parts] of shownCourses) {
    const [traces, changes] = parts();
    Plotly.react(id, traces, layout({...changes, showlegend: false}), CONFIG);
  }
}

function startCourse() {
  element("course").innerHTML = shownCourses.map(([id, title, note]) => courseCard(id, title, note)).join("") || "<p>Nothing was trained yet.</p>";
  element("notes").innerHTML = [...facts.notes, facts.files].map(note => `<li>${escaped(note)}</li>`).join("");
  drawCourse();
  for (const [id] of shownCourses) connect(id);
}
