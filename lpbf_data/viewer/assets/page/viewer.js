// The dialog that shows one part: which field, how deformed, where cut, and what lies under the cursor.

const ERROR_SUFFIX = " error";
const PANE_NAMES = ["truth", "prediction", "error"];

/**
 * data.parts: [{ name, facts: [[name, text], …] }], in the order of the embedded surfaces; data.fields: columns that can
 * be shown; data.palettes: colours.
 */
class Viewer {
  constructor(data) {
    this.data = data;
    this.dialog = byId("viewer");
    this.canvas = byId("viewer-canvas");
    this.order = data.parts.map((_, i) => i);
    this.opened = 0;
    byId("viewer-close").addEventListener("click", () => this.dialog.close());
    byId("viewer-previous").addEventListener("click", () => this.step(-1));
    byId("viewer-next").addEventListener("click", () => this.step(1));
    this.dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
    byId("viewer-field").addEventListener("change", () => this.showField());
    byId("viewer-compare").addEventListener("change", () => this.showField());
    byId("viewer-factor").addEventListener("input", () => this.showFactor());
    byId("viewer-cut").addEventListener("input", () => this.showCut());
    byId("viewer-lines").addEventListener("change", ({ target }) => this.view.setMesh(target.checked));
    for (const button of this.dialog.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => this.view.look(button.dataset.view));
    }
    this.canvas.addEventListener("pointermove", (event) => this.showReadout(event));
    this.canvas.addEventListener("pointerleave", () => this.forgetReadout());
    byId("viewer-controls").addEventListener("input", () => this.forgetReadout()); // what it said holds no longer
    this.dialog.addEventListener("keydown", (event) => this.pressKey(event));
  }

  /** Numbers of parts in the order of "previous" and "next". */
  setOrder(order) {
    this.order = order;
  }

  async open(number) {
    const turn = ++this.opened;
    this.number = number;
    const { name, facts } = this.data.parts[number];
    if (!this.dialog.open) this.dialog.showModal();
    byId("viewer-title").replaceChildren(element("bdi", {}, name));
    history.replaceState(null, "", `#part=${encodeURIComponent(name)}`);
    this.showFacts(facts);
    const place = this.order.indexOf(number);
    byId("viewer-previous").disabled = place <= 0;
    byId("viewer-next").disabled = place === this.order.length - 1;
    try {
      this.view ??= new PartView(this.canvas, this.data.palettes, () => this.drawAxes());
    } catch {
      const problem = byId("viewer-problem");
      problem.textContent = "This browser gives no WebGL, so there is no 3D view; the picture and the figures are there without it.";
      problem.hidden = false;
      return;
    }
    await whenWhole();
    const surface = decodeSurface(await readBlock(`surface-${number}`));
    if (turn !== this.opened) return; // another part was asked for meanwhile
    this.surface = surface;
    this.view.setSurface(surface);
    this.fillFields();
    this.showField();
    this.setRanges();
    this.canvas.dataset.shown = name;
  }

  step(by) {
    const place = this.order.indexOf(this.number) + by;
    if (place >= 0 && place < this.order.length) this.open(this.order[place]);
  }

  /** Choices of the field; the one that was chosen stays. */
  fillFields() {
    const select = byId("viewer-field");
    const before = select.value;
    const size = magnitude(this.surface.columns);
    const fields = this.data.fields.filter(({ column }) => this.surface.columns[column]);
    if (size) {
      this.surface.columns["|displacement|"] = size;
      const at = fields.findLastIndex(({ column }) => column.startsWith("displacement_"));
      fields.splice(at + 1, 0, { column: "|displacement|", label: "Size of the displacement", unit: "mm", signed: false });
    }
    this.fields = fields;
    select.replaceChildren(...fields.map(({ column, label }) => element("option", { value: column }, label)));
    const predicted = fields.find(({ column }) => this.surface.columns[column + ERROR_SUFFIX]);
    byId("viewer-compare-label").hidden = !predicted;
    byId("viewer-compare").checked = Boolean(predicted) && (this.compared ?? true);
    select.value = fields.some(({ column }) => column === before) ? before : (predicted ?? fields[0]).column;
  }

  /** Ranges of the sliders for this part. */
  setRanges() {
    const largest = magnitude(this.surface.columns)?.reduce((a, b) => Math.max(a, b), 0) ?? 0;
    // At the end of the slider the largest displacement is a quarter of the part's size.
    const most = largest ? Math.max(1, (0.5 * this.view.radius) / largest) : 0;
    Object.assign(byId("viewer-factor"), { max: most, value: 0, disabled: !largest });
    const [low, high] = [this.view.low[2], this.view.high[2]];
    Object.assign(byId("viewer-cut"), { min: low, max: high, value: high });
    this.showFactor();
    this.showCut();
  }

  showField() {
    const field = this.fields.find(({ column }) => column === byId("viewer-field").value);
    const truth = this.surface.columns[field.column];
    const error = this.surface.columns[field.column + ERROR_SUFFIX];
    byId("viewer-compare").disabled = !error;
    if (error) this.compared = byId("viewer-compare").checked;
    const shown = [truth];
    if (error && byId("viewer-compare").checked) {
      shown.push(truth.map((value, i) => value + error[i]));
      shown.push(field.signed ? error : error.map(Math.abs)); // without a sign there is no colour for "too low"
    }
    const range = this.rangeOf(shown, field.signed);
    const palette = field.signed ? "signed" : "plain";
    this.shownField = field;
    this.view.setPanes(shown.map((values) => ({ values, range, palette })));
    const names = shown.length > 1 ? PANE_NAMES.map((name) => (name === "error" && !field.signed ? "size of the error" : name)) : [];
    byId("viewer-panes").replaceChildren(...names.map((name) => element("span", {}, name)));
    this.showLegend(range, palette, field.unit);
    this.canvas.setAttribute("aria-label", `${field.label} on the surface of the part, ${formatQuantity(range[0], field.unit)} to ${formatQuantity(range[1], field.unit)}`);
  }

  /** One scale for every pane; around zero where zero means something. */
  rangeOf(shown, signed) {
    let [low, high] = [Infinity, -Infinity];
    for (const values of shown) {
      for (const value of values) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    if (!signed) return [low, high];
    const furthest = Math.max(Math.abs(low), Math.abs(high));
    return [-furthest, furthest];
  }

  showLegend([low, high], palette, unit) {
    const legend = byId("viewer-legend");
    legend.querySelector(".ramp").style.background = paletteGradient(this.data.palettes[palette]);
    const ticks = [low, (low + high) / 2, high].map((value) => element("span", {}, formatNumber(value)));
    ticks.at(-1).append(unit ? ` ${unit}` : "");
    legend.querySelector(".ticks").replaceChildren(...ticks);
  }

  showFactor() {
    const factor = Number(byId("viewer-factor").value);
    byId("viewer-factor-value").value = factor === 0 ? "0" : formatNumber(Number(factor.toPrecision(2)));
    this.view.setFactor(factor);
  }

  showCut() {
    const height = Number(byId("viewer-cut").value);
    byId("viewer-cut-value").value = `${height.toFixed(2)} mm`;
    this.view.setCut(height);
  }

  forgetReadout() {
    byId("viewer-readout").value = "";
  }

  showReadout(event) {
    const found = event.buttons ? null : this.view?.pick(event.offsetX, event.offsetY);
    if (!found) {
      this.forgetReadout();
      return;
    }
    const [x, y, z] = found.position.map((value) => value.toFixed(2).replace("-", "−"));
    const name = this.view.panes.length > 1 ? `${PANE_NAMES[found.pane]} ` : "";
    const value = found.value === null ? "inside, where no values are embedded" : formatQuantity(found.value, this.shownField.unit);
    byId("viewer-readout").value = `x ${x}, y ${y}, z ${z} mm: ${name}${value}`;
  }

  showFacts(facts) {
    byId("viewer-facts").replaceChildren(...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value ?? "–")]));
  }

  pressKey(event) {
    if (event.key === "PageUp" || event.key === "PageDown") {
      this.step(event.key === "PageUp" ? -1 : 1);
    } else if (event.target === this.canvas && this.view) {
      const actions = {
        ArrowLeft: () => this.view.turn(-TURN, 0),
        ArrowRight: () => this.view.turn(TURN, 0),
        ArrowUp: () => this.view.turn(0, TURN),
        ArrowDown: () => this.view.turn(0, -TURN),
        "+": () => this.view.zoom(0.87),
        "-": () => this.view.zoom(1.15),
        Home: () => this.view.look("corner"),
      };
      if (!actions[event.key]) return;
      actions[event.key]();
    } else {
      return;
    }
    event.preventDefault();
  }

  /** Where x, y and z point to, in the corner of the canvas. */
  drawAxes() {
    const canvas = byId("viewer-axes");
    const context = canvas.getContext("2d");
    const size = canvas.width / 2;
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = context.fillStyle = getComputedStyle(this.dialog).color;
    context.lineWidth = 3;
    context.font = "600 24px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const turned = this.view.camera.quaternion.clone().invert();
    for (const [name, axis] of Object.entries({ x: [1, 0, 0], y: [0, 1, 0], z: [0, 0, 1] })) {
      const { x, y } = new vendor.Vector3(...axis).applyQuaternion(turned);
      context.beginPath();
      context.moveTo(size, size);
      context.lineTo(size + 46 * x, size - 46 * y);
      context.stroke();
      context.fillText(name, size + 64 * x, size - 64 * y);
    }
  }
}

/** The number of the part that the address asks for (`#part=<name>`); undefined for none. */
// eslint-disable-next-line no-unused-vars -- pages that begin without parts open none
function partOfAddress({ parts }) {
  const asked = new URLSearchParams(location.hash.slice(1)).get("part");
  const number = asked === null ? -1 : parts.findIndex(({ name }) => name === asked);
  return number < 0 ? undefined : number;
}
