// Numbers as people read them: SI prefixes, three digits, a unit.

const PREFIXES = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];
const column = key => facts.columns.find(one => one.key === key);
const known = value => value !== undefined && value !== null && Number.isFinite(value);

function digits(value) {
  const size = Math.abs(value);
  return size === 0 ? "0" : size >= 100 ? value.toFixed(0) : size >= 10 ? value.toFixed(1) : size >= 1 ? value.toFixed(2) : value.toPrecision(3);
}

function amount(value, unit) {
  if (!known(value)) return "";
  if (unit === "%") return `${value.toFixed(2)} %`;
  if (unit === "x") return `${digits(value)} x`;
  if (unit === "ms" || unit === "mJ") {
    const [scaled, prefix] = Math.abs(value) < 0.1 ? [value * 1000, "µ"] : Math.abs(value) >= 1000 ? [value / 1000, ""] : [value, "m"];
    return `${digits(scaled)} ${prefix}${unit.slice(1)}`;
  }
  if (unit === "s") return `${digits(value)} s`;
  const found = PREFIXES.find(([size]) => Math.abs(value) >= size);
  const text = found ? `${digits(value / found[0])} ${found[1]}${unit}` : `${Number.isInteger(value) ? value : digits(value)} ${unit}`;
  return text.trim();
}

const shown = (value, key) => amount(value, column(key).unit);

// "28x smaller", "1.6x faster", "0.3 points lower"
function comparison(value, teacher, one) {
  if (!known(value) || !known(teacher)) return "";
  if (one.kind === "metric" || one.unit === "%") {
    const change = value - teacher;
    if (Math.abs(change) < 1e-9) return "the same";
    const size = one.unit === "%" ? `${Math.abs(change).toFixed(2)} points` : digits(Math.abs(change));
    return `${size} ${change > 0 ? "higher" : "lower"}`;
  }
  if (value <= 0 || teacher <= 0) return "";
  const words = one.unit === "ms" || one.unit === "s" || one.key.startsWith("latency") ? ["faster", "slower"] : one.unit === "B" ? ["smaller", "larger"] : ["less", "more"];
  const ratio = teacher / value;
  if (Math.abs(ratio - 1) < 0.005) return "the same";
  return ratio >= 1 ? `${digits(ratio)}x ${words[0]}` : `${digits(1 / ratio)}x ${words[1]}`;
}

const ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"};
const escaped = text => String(text).replace(/[&<>"']/g, sign => ENTITIES[sign]);

// Words broken into lines, for a hover label.
function lines(text, width = 70) {
  const found = [""];
  for (const word of String(text).split(" ")) {
    if (found[found.length - 1].length + word.length > width) found.push("");
    found[found.length - 1] += (found[found.length - 1] ? " " : "") + word;
  }
  return found.slice(0, 12).map(escaped).join("<br>") + (found.length > 12 ? " ..." : "");
}
