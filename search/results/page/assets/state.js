// One state, which all views show; a view that changes it calls `change`, and every view is drawn again.

const facts = JSON.parse(document.getElementById("facts").textContent);
const element = id => document.getElementById(id);
const byNumber = new Map(facts.candidates.map(one => [one.number, one]));
const members = facts.candidates.filter(one => one.on_front);
const objectives = facts.columns.filter(one => one.is_objective);
const firstMetric = objectives.find(one => one.kind === "metric") || objectives[0];
const firstCost = objectives.find(one => one !== firstMetric) || firstMetric;
const STORED = `slimfront ${facts.name}`;

const state = {
  chosen: facts.knee, beside: null, x: firstCost.key, y: firstMetric.key, colour: "",
  sort: "", descending: false, filter: "", status: "", bounds: {}, changedOnly: false,
};
try {  // a page that loads itself again, while a run goes on, keeps what was chosen
  if (facts.refresh) Object.assign(state, JSON.parse(sessionStorage.getItem(STORED) || "{}"));
} catch (error) { /* without storage the choices are lost, the page works */ }
if (!byNumber.has(state.chosen)) state.chosen = facts.knee;
if (!byNumber.has(state.beside)) state.beside = null;

const views = [];
function change(changes) {
  Object.assign(state, changes);
  try { sessionStorage.setItem(STORED, JSON.stringify(state)); } catch (error) { /* as above */ }
  for (const view of views) view();
}
const choose = number => { if (byNumber.has(number)) change({chosen: number}); };

// What is known of a candidate: of a member what its file measured, where it did.
const details = number => facts.members[number];
function value(one, key) {
  const file = details(one.number)?.file;
  return file && key in file ? file[key] : one.values[key];
}
const interval = (one, key) => details(one.number)?.intervals[key];

function options(select, entries, current) {
  select.innerHTML = entries.map(([key, title]) => `<option value="${escaped(key)}"${String(key) === String(current ?? "") ? " selected" : ""}>${escaped(title)}</option>`).join("");
}
const titled = one => one.unit && one.unit !== "x" ? `${one.title} (${one.unit})` : one.title;
