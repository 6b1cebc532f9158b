// All candidates, sortable and with a filter: also the form of the page for those who do not see the plots.

const CONDITION = /^\s*(\w+)\s*(<=|>=|<|>|=)\s*([-+\d.eE]+)\s*$/;
const HOLDS = {"<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "<": (a, b) => a < b, ">": (a, b) => a > b, "=": (a, b) => a === b};

function passes(one) {
  if (state.status === "front" ? !one.on_front : state.status && kindOf(one) !== state.status && one.state !== state.status) return false;
  const condition = state.filter.match(CONDITION);
  if (condition && (column(condition[1]) || condition[1] === "number")) {
    const own = condition[1] === "number" ? one.number : value(one, condition[1]);
    return known(own) && HOLDS[condition[2]](own, Number(condition[3]));
  }
  return state.filter.toLowerCase().split(/\s+/).every(word => `trial ${one.number} ${one.state} ${one.plan} ${one.reason}`.toLowerCase().includes(word));
}

function sorted(ones) {
  if (!state.sort) return ones;
  const key = one => state.sort === "number" ? one.number : column(state.sort) ? value(one, state.sort) : one[state.sort];
  const sign = state.descending ? -1 : 1;
  return ones.slice().sort((one, other) => {
    const [a, b] = [key(one), key(other)], [missing, also] = [a === undefined || a === "", b === undefined || b === ""];
    if (missing || also) return missing - also;  // what is not known comes last, either way
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  });
}

function stateWords(one) {
  const own = details(one.number);
  const file = own?.failure ? ", file failed" : own?.beaten ? ", verified; another file beats it" : own && Object.keys(own.file).length ? ", verified" : "";
  return one.on_front ? `front${file}` : one.state + (one.feasible === false && one.state === "trained" ? ", misses a limit" : "");
}

function drawTable() {
  const keys = facts.columns.filter(one => facts.candidates.some(candidate => known(value(candidate, one.key))));
  const heads = [["number", "trial", "number"], ["state", "state", ""], ...keys.map(one => [one.key, titled(one), "number"]), ["plan", "plan", ""], ["reason", "reason", ""]];
  const direction = key => state.sort === key ? (state.descending ? "descending" : "ascending") : "none";
  const head = heads.map(([key, title, look]) => `<th scope="col" class="${look}" aria-sort="${direction(key)}"><button type="button" data-sort="${key}">${escaped(title)}${state.sort === key ? (state.descending ? " ▼" : " ▲") : ""}</button></th>`).join("");
  const ones = sorted(facts.candidates.filter(passes));
  const stop = ones.some(one => one.number === state.chosen) ? state.chosen : ones[0]?.number;
  const body = ones.map(one => {
    const cells = keys.map(({key}) => `<td class="number">${shown(value(one, key), key)}</td>`).join("");
    const look = one.number === state.beside ? ' class="beside"' : "";
    return `<tr data-number="${one.number}" tabindex="${one.number === stop ? 0 : -1}" aria-selected="${one.number === state.chosen}"${look}><th scope="row" class="number">${one.number}</th><td>${escaped(stateWords(one))}</td>${cells}<td class="words">${escaped(one.plan)}</td><td class="words">${escaped(one.reason)}</td></tr>`;
  }).join("");
  const focused = document.activeElement?.dataset ?? {};
  element("table").innerHTML = `<thead><tr>${head}</tr></thead><tbody>${body}</tbody>`;
  if (focused.sort) element("table").querySelector(`[data-sort="${focused.sort}"]`)?.focus({preventScroll: true});
  if (focused.number && document.activeElement === document.body) element("table").querySelector(`tr[data-number="${focused.number}"]`)?.focus({preventScroll: true});
  const left_out = facts.left_out ? `; ${facts.left_out} more are in candidates.csv alone` : "";
  element("shown").textContent = `${ones.length} of ${facts.candidates.length} candidates${left_out}`;
}

function startTable() {
  const states = [...new Set(facts.candidates.map(one => one.state))].filter(name => !name.startsWith("same as"));
  options(element("status"), [["", "all"], ["front", "on the front"], ...states.map(name => [name, name])], state.status);
  element("status").addEventListener("change", event => change({status: event.target.value}));
  element("filter").value = state.filter;
  element("filter").addEventListener("input", event => change({filter: event.target.value}));
  const table = element("table");
  table.addEventListener("click", event => {
    const head = event.target.closest("[data-sort]"), row = event.target.closest("tr[data-number]");
    if (head) change({sort: head.dataset.sort, descending: state.sort === head.dataset.sort && !state.descending});
    else if (row) choose(Number(row.dataset.number));
  });
  table.addEventListener("keydown", event => {
    const row = event.target.closest("tr[data-number]");
    if (!row) return;
    const next = {ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling}[event.key];
    if (next) { event.preventDefault(); row.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(Number(row.dataset.number)); }
  });
  drawTable();
}
