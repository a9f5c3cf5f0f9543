// Histograms of what is measured, drawn with Observable Plot.

const CHART_HEIGHT = 190;
const BINS = 28;

/** Fill a place with one histogram a quantity. */
function fillCharts(place, data) {
  const { cases, quantities } = data;
  const measured = [...cases.case_id.keys()].filter((i) => cases.status[i] === "kept" || cases.status[i] === "rejected");
  if (!measured.length) {
    place.replaceChildren(element("p", { className: "note" }, "No case could be measured."));
    return;
  }
  const key = element("div", { className: "key" }, ...["kept", "rejected"].map((status) => {
    const mark = element("i");
    mark.style.background = `var(--${status})`;
    return element("span", {}, mark, status);
  }));
  place.before(key);
  place.replaceChildren(...quantities.map((quantity) => makeChart(cases, measured, quantity)));
}

function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const low = Math.floor(at);
  return sorted[low] + (at - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

/** What a histogram shows, in words. */
function describeChart(rows, { heading, limit }) {
  const said = ["kept", "rejected"].map((status) => {
    const values = rows.filter((row) => row.status === status).map((row) => row.value).sort((a, b) => a - b);
    if (!values.length) return `no ${status} cases`;
    const range = `from ${formatNumber(values[0])} to ${formatNumber(values.at(-1))}, median ${formatNumber(quantile(values, 0.5))}`;
    return `${formatNumber(values.length)} ${status} cases ${range}`;
  });
  return `${heading}: ${said.join("; ")}${limit === null ? "" : `; limit ${formatNumber(limit)}`}.`;
}

/** What the axis spans: the kept cases and the limit, and of the others what lies near. */
function axisOf(rows, limit) {
  const kept = rows.filter(({ status }) => status === "kept");
  const shown = (kept.length ? kept : rows).map(({ value }) => value);
  let low = shown.reduce((least, value) => Math.min(least, value), Infinity);
  let high = shown.reduce((most, value) => Math.max(most, value), -Infinity);
  const room = 0.5 * (high - low) || Math.abs(high) || 1;
  // A limit is worth three quarters of the axis, no more.
  if (limit !== null && limit > high && limit <= high + 6 * room) high = limit;
  const near = rows.map(({ value }) => value).filter((value) => value >= low - room && value <= high + room);
  low = near.reduce((least, value) => Math.min(least, value), low);
  high = near.reduce((most, value) => Math.max(most, value), high);
  return low < high ? [low, high] : [low - 0.5, high + 0.5];
}

/** Cases in the fullest bin. */
function highestBar(rows, [low, high]) {
  const counts = new Uint32Array(BINS + 1);
  for (const { value } of rows) counts[Math.min(Math.floor((BINS * (value - low)) / (high - low)), BINS - 1)]++;
  return counts.reduce((most, count) => Math.max(most, count), 0);
}

/** About three whole numbers from 0 up. */
function wholeTicks(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
  const step = Math.max(1, [0.5, 1, 2, 5].map((factor) => factor * power).find((size) => most / size <= 4));
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}

function makeChart(cases, measured, quantity) {
  const all = measured.map((i) => ({ value: cases[quantity.name][i], status: cases.status[i] })).filter((row) => Number.isFinite(row.value));
  const domain = axisOf(all, quantity.limit);
  const rows = all.filter(({ value }) => value >= domain[0] && value <= domain[1]);
  const beyond = all.length - rows.length;
  const edges = Array.from({ length: BINS + 1 }, (_, i) => domain[0] + (i / BINS) * (domain[1] - domain[0]));
  const marks = [
    plots.axisX({ ticks: 4, label: null }),
    plots.axisY({ ticks: wholeTicks(highestBar(rows, domain)), label: null, tickFormat: formatNumber }),
    plots.rectY(rows, plots.binX({ y: "count" }, { x: "value", fill: "status", thresholds: edges, insetLeft: 0.5, insetRight: 0.5 })),
    plots.ruleY([0]),
  ];
  if (quantity.limit !== null && quantity.limit <= domain[1]) marks.push(plots.ruleX([quantity.limit], { strokeDasharray: "4 3" }));
  const svg = plots.plot({
    width: 360, height: CHART_HEIGHT, marginLeft: 40, marginBottom: 44,
    x: { domain },
    y: { nice: true },
    color: { domain: ["kept", "rejected"], range: ["var(--kept)", "var(--rejected)"] },
    marks,
  });
  const words = describeChart(all, quantity);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", words);
  if (quantity.published) addPublishedBox(svg, quantity.published);
  const note = beyond ? element("small", {}, ` ${formatNumber(beyond)} further out`) : null;
  return element("figure", { title: words }, element("figcaption", {}, quantity.heading, note ?? ""), svg);
}

/** Least value, quartiles, median and largest value of the published set, below the axis; it may run off the chart. */
function addPublishedBox(svg, published) {
  const scale = svg.scale("x");
  const [least, lower, median, upper, largest] = published.map((value) => scale.apply(value));
  const [left, right] = scale.range;
  const shape = `M${least} 0H${lower}M${upper} 0H${largest}M${lower} -4H${upper}V4H${lower}ZM${median} -4V4`;
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const frame = make("svg", { x: left, y: CHART_HEIGHT - 18, width: right - left, height: 12, viewBox: `${left} -6 ${right - left} 12`, overflow: "hidden" });
  frame.append(make("path", { d: shape, fill: "none", stroke: "currentColor", "stroke-width": 1.2 }));
  svg.append(frame);
}
