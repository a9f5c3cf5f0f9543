// Puts the page together; called when every script of it has been read.

async function main() {
  const data = await readPageData();
  const { cases } = data;
  // A column of few different texts is stored as codes.
  for (const [name, column] of Object.entries(cases)) {
    if (!Array.isArray(column)) cases[name] = column.codes.map((code) => column.values[code]);
  }
  data.parts = data.gallery.map((row) => ({ name: cases.case_id[row], facts: factsOf(cases, row) }));
  data.galleryIndexOf = new Map(data.gallery.map((row, number) => [row, number]));
  data.worstError = [];
  for (const { row, relative_l2: error } of data.errors) data.worstError[row] = Math.max(data.worstError[row] ?? 0, error ?? 0);
  const viewer = new Viewer(data);
  const parts = wireGallery(data, viewer);
  fillCaseTable(byId("case-table"), data, viewer);
  if (data.errors.length) fillPredictionTable(byId("prediction-table"), data, viewer);
  document.documentElement.dataset.ready = "true";
  document.documentElement.dataset.readyAfter = performance.now().toFixed(0);
  // Nothing waits for the histograms: they come when the page can be used.
  setTimeout(() => {
    fillCharts(byId("charts"), data);
    drawMissingStills(data, parts);
    const asked = partOfAddress(data);
    if (asked !== undefined) viewer.open(asked);
  });
}

/** What is told of a part beside its 3D view. */
function factsOf(cases, row) {
  return [
    ["split", cases.split[row]],
    ["design", cases.design_id[row]],
    ["points", formatNumber(cases.num_points[row])],
    ["height", formatQuantity(cases.height[row], "mm")],
    ["largest Z displacement", formatQuantity(cases.displacement_z_max[row], "mm")],
    ["largest von Mises stress", formatQuantity(cases.von_mises_stress_max[row], "MPa")],
    ["least recoater clearance", describeClearance(cases, row)],
    ["material", cases.material[row]],
    ["changed on the way", cases.remarks[row]],
  ];
}

/** The least clearance with where it was and what it means, in words. */
function describeClearance(cases, row) {
  const height = cases.recoater_clearance_min_height[row];
  const where = height === null ? "" : ` at z = ${formatNumber(height)} mm`;
  return `${formatNumber(cases.recoater_clearance_min[row])} % of a layer${where}${{ contact: ": the part is in contact with the blade", hit: ": closer to the blade than the solver tolerates" }[cases.blade[row]] ?? ""}`;
}

const UNKNOWN = "–";
const BLADE = { contact: 2, hit: 1, clear: 0 }; // how near the blade comes, and its order in the table

function fillCaseTable(place, data, viewer) {
  const { cases } = data;
  const rows = [...cases.case_id.keys()];
  const of = (name) => (row) => cases[name][row];
  const isContact = (row) => cases.blade[row] === "contact";
  rows.sort((a, b) => (cases.recoater_clearance_min[a] ?? Infinity) - (cases.recoater_clearance_min[b] ?? Infinity) || a - b);
  const number = (name, label) => ({ label, kind: "number", value: of(name) });
  const text = (name, label) => ({ label, kind: "text", value: of(name) });
  const statuses = [...new Set(cases.status)].sort();
  const splits = [...new Set(cases.split.filter((name) => name !== null))];
  fillTable(place, {
    label: "cases",
    hint: "id, design, material, reason …",
    columns: [
      text("case_id", "case"),
      text("status", "status"),
      text("split", "split"),
      { label: "blade", kind: "flag", value: (row) => BLADE[cases.blade[row]] ?? null, show: (row) => cases.blade[row] ?? UNKNOWN, isAlarm: isContact },
      number("recoater_clearance_min", "least clearance, %"),
      number("recoater_clearance_min_height", "at z, mm"),
      number("displacement_z_max", "largest Z displacement, mm"),
      number("von_mises_stress_max", "largest stress, MPa"),
      number("height", "height, mm"),
      number("num_points", "points"),
      number("aspect_ratio_max", "aspect ratio"),
      { ...text("reason", "why rejected or failed"), isLong: true },
      text("material", "material"),
      text("design_id", "design"),
    ],
    rows,
    open: (row) => viewer.open(data.galleryIndexOf.get(row)),
    canOpen: (row) => data.galleryIndexOf.has(row),
    isRisk: isContact,
    filters: [
      { label: "status", options: [{ label: "any", keep: () => true }, ...statuses.map((name) => ({ label: name, keep: (row) => cases.status[row] === name }))] },
      { label: "split", options: [{ label: "any", keep: () => true }, ...splits.map((name) => ({ label: name, keep: (row) => cases.split[row] === name }))] },
      { label: "blade", options: [{ label: "any", keep: () => true }, ...Object.keys(BLADE).map((name) => ({ label: name, keep: (row) => cases.blade[row] === name }))] },
    ],
  });
}

function fillPredictionTable(place, data, viewer) {
  const { cases, errors } = data;
  const columns = [...new Set(errors.map(({ column }) => column))];
  const number = (name, label) => ({ label, kind: "number", value: (error) => error[name] });
  const options = columns.map((name) => ({ label: name, keep: ({ column }) => column === name }));
  fillTable(place, {
    label: "predictions",
    hint: "id, split, column …",
    columns: [
      { label: "case", kind: "text", value: ({ row }) => cases.case_id[row] },
      { label: "split", kind: "text", value: ({ row }) => cases.split[row] },
      { label: "predicted", kind: "text", value: ({ column }) => column },
      number("relative_l2", "relative L2 error"),
      { label: "mean error", kind: "number", value: (error) => error.mean_error, show: ({ mean_error: mean, unit }) => formatQuantity(mean, unit) },
      { label: "largest error", kind: "number", value: (error) => error.max_error, show: ({ max_error: most, unit }) => formatQuantity(most, unit) },
    ],
    rows: errors,
    open: ({ row }) => viewer.open(data.galleryIndexOf.get(row)),
    canOpen: ({ row }) => data.galleryIndexOf.has(row),
    filters: columns.length > 1 ? [{ label: "predicted", options: [{ label: "any", keep: () => true }, ...options] }] : [],
  });
}
