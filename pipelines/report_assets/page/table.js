// A table that sorts by its heads, searches, filters and turns pages.

const ROWS_A_PAGE = 50;

/**
 * Fill a place with a table.
 *
 * hint: what can be searched for.
 * columns: [{ label, kind: "text" | "number" | "flag", isLong?, value(row), show?(row), isAlarm?(row) }]; the first may be a link.
 * rows: any values; order: how they lie at first; open(row): what a click on the first column does, null for none.
 * filters: [{ label, options: [{ label, keep(row) }] }]; isRisk(row): marked.
 */
function fillTable(place, { label, hint, columns, rows, open, canOpen, filters = [], isRisk = () => false }) {
  const texts = rows.map((row) => columns.filter((c) => c.kind === "text").map((c) => c.value(row) ?? "").join("\n").toLowerCase());
  const state = { query: "", sorted: null, descending: false, page: 0, choices: filters.map(() => 0) };
  const search = element("input", { type: "search", placeholder: hint, "aria-label": `Search in ${label}` });
  const count = element("output", { className: "count" });
  const selects = filters.map((filter, number) => {
    const select = element("select", {}, ...filter.options.map((option, i) => element("option", { value: i }, option.label)));
    select.addEventListener("change", () => update({ page: 0, choices: state.choices.with(number, Number(select.value)) }));
    return element("label", {}, `${filter.label} `, select);
  });
  const heads = columns.map((column, number) => {
    const button = element("button", { type: "button" }, column.label);
    button.addEventListener("click", () => sortBy(number));
    return element("th", { scope: "col", className: column.kind === "text" ? "text" : "" }, button);
  });
  const body = element("tbody");
  const [previous, next] = ["‹ previous", "next ›"].map((text) => element("button", { type: "button" }, text));
  previous.addEventListener("click", () => update({ page: state.page - 1 }));
  next.addEventListener("click", () => update({ page: state.page + 1 }));
  search.addEventListener("input", () => update({ page: 0, query: search.value.trim().toLowerCase() }));
  const table = element("table", { className: "sortable", "aria-label": label }, element("thead", {}, element("tr", {}, ...heads)), body);
  place.replaceChildren(
    element("div", { className: "table-tools" }, search, ...selects, count, previous, next),
    element("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `${label}, scrollable` }, table),
  );

  function sortBy(number) {
    const again = state.sorted === number;
    // Numbers are asked for from the top, texts from A.
    update({ page: 0, sorted: number, descending: again ? !state.descending : columns[number].kind !== "text" });
  }

  function chosen() {
    const keeps = filters.map((filter, i) => filter.options[state.choices[i]].keep);
    const numbers = [...rows.keys()].filter((i) => texts[i].includes(state.query) && keeps.every((keep) => keep(rows[i])));
    if (state.sorted === null) return numbers;
    const { value, kind } = columns[state.sorted];
    const values = rows.map((row) => value(row) ?? null);
    const compare = kind === "text" ? new Intl.Collator("en", { numeric: true }).compare : (a, b) => a - b;
    const sign = state.descending ? -1 : 1;
    return numbers.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // what isn't known comes last
      return sign * compare(x, y) || a - b;
    });
  }

  function cell(column, row, number) {
    const text = column.show ? column.show(row) : column.kind === "number" ? formatNumber(column.value(row)) : (column.value(row) ?? "");
    if (number === 0 && open && canOpen(row)) {
      const link = element("button", { type: "button", className: "link", title: "open in 3D" }, element("bdi", {}, text));
      link.addEventListener("click", () => open(row));
      return element("td", { className: "text" }, link);
    }
    const classes = [column.kind === "text" ? "text" : "", column.isLong ? "long" : "", column.isAlarm?.(row) ? "alarm-text" : ""];
    return element("td", { className: classes.filter(Boolean).join(" ") }, column.kind === "text" ? element("bdi", {}, text) : text);
  }

  function update(change) {
    Object.assign(state, change);
    const numbers = chosen();
    const pages = Math.max(1, Math.ceil(numbers.length / ROWS_A_PAGE));
    state.page = Math.min(Math.max(state.page, 0), pages - 1);
    const start = state.page * ROWS_A_PAGE;
    const shown = numbers.slice(start, start + ROWS_A_PAGE);
    body.replaceChildren(
      ...shown.map((i) => element("tr", { className: isRisk(rows[i]) ? "risk" : "" }, ...columns.map((c, k) => cell(c, rows[i], k)))),
    );
    const range = numbers.length ? `${formatNumber(start + 1)}–${formatNumber(start + shown.length)} of ` : "";
    count.value = `${range}${formatNumber(numbers.length)}${numbers.length < rows.length ? ` (${formatNumber(rows.length)} in all)` : ""}`;
    previous.disabled = state.page === 0;
    next.disabled = state.page === pages - 1;
    heads.forEach((head, i) => {
      if (i === state.sorted) head.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  update({});
}
