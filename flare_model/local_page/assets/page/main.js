// The page to use the surrogate from: sends a file, shows what is said of it, and fetches the part to print.
// What comes from the server goes into the page as text; surfaces go where the 3D view finds those of other pages.

const STATE_EVERY = 1000; // ms between two questions how many wait

/** What a refused request says; what is wrong with the connection where there is no answer. */
async function ask(address, file) {
  let response;
  try {
    response = await fetch(address, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
  } catch {
    throw new Error("The server doesn't answer: was it ended? Start it again: python -m flare_model.serve");
  }
  if (!response.ok) {
    const { error } = await response.json().catch(() => ({ error: `the server answered with status ${response.status}` }));
    throw new Error(error);
  }
  return response;
}

/** Let the browser save bytes under a name. */
function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

class ServePage {
  constructor(data) {
    this.data = data;
    this.viewer = data.shows ? new Viewer(data) : null;
    this.queue = Promise.resolve();
    this.sending = 0;
    const drop = byId("drop");
    const input = byId("file");
    input.addEventListener("change", () => {
      this.takeAll([...input.files]);
      input.value = "";
    });
    // What is dropped beside the field would otherwise be opened by the browser, in place of this page.
    for (const kind of ["dragover", "drop"]) document.addEventListener(kind, (event) => event.preventDefault());
    for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, () => drop.classList.add("over"));
    for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
    document.addEventListener("drop", (event) => this.takeAll([...(event.dataTransfer?.files ?? [])]));
    setInterval(() => this.showState(), STATE_EVERY);
  }

  /** Files one after the other, as they were chosen. */
  takeAll(files) {
    for (const file of files) {
      this.sending += 1;
      this.queue = this.queue.then(() => this.take(file)).finally(() => (this.sending -= 1));
    }
  }

  async take(file) {
    const card = element("article", { className: "answer" }, element("h2", {}, element("bdi", {}, file.name)));
    byId("answers").prepend(card);
    this.say(`${file.name} is being computed …`);
    try {
      const suffix = file.name.slice(file.name.lastIndexOf(".")).toLowerCase();
      if (!this.data.suffixes.includes(suffix)) throw new Error(`${file.name}: send one of ${this.data.suffixes.join(", ")}`);
      if (file.size > this.data.most) throw new Error(`${file.name} is larger than ${(this.data.most / 1e6).toLocaleString("en-US")} MB; save it as a binary STL or with fewer triangles, or start the page with a larger --most_mb`);
      const asked = new URLSearchParams({ name: file.name, units: byId("units").value, points: byId("points").value });
      const found = await (await ask(`answer?${asked}`, file)).json();
      this.show(card, file, asked, found);
      this.say("");
    } catch (error) {
      card.append(element("p", { className: "problem alarm" }, error.message));
      this.say(`${file.name} can't be answered.`);
    }
  }

  show(card, file, asked, found) {
    for (const part of found.parts) card.append(this.partSection(part, found.parts.length > 1));
    if (found.closing) card.append(element("p", { className: "closing" }, found.closing));
    for (const text of found.errors) card.append(element("p", { className: "problem alarm" }, text));
    for (const text of found.warnings) card.append(element("p", { className: "note" }, `warning: ${text}`));
    for (const text of found.notes) card.append(element("p", { className: "note" }, `note: ${text}`));
    const json = element("button", { type: "button" }, "Fetch the JSON");
    json.addEventListener("click", () => save(new Blob([JSON.stringify(found.answers, null, 1)], { type: "application/json" }), "answers.json"));
    card.append(element("div", { className: "actions" }, json));
    const surface = this.data.surfaces.some((suffix) => file.name.toLowerCase().endsWith(suffix));
    if (this.data.compensates && surface) card.append(this.compensation(file, asked));
  }

  partSection(part, named) {
    const section = element("section", {});
    if (named) section.append(element("h3", {}, element("bdi", {}, part.name)));
    const facts = part.facts.flatMap(([name, text]) => [
      element("dt", {}, name),
      element("dd", name === "recoater" && part.verdict === "yes" ? { className: "alarm" } : {}, text),
    ]);
    section.append(element("dl", {}, ...facts));
    if (this.viewer && part.surface) {
      const number = this.data.parts.push({ name: part.name, facts: part.facts }) - 1;
      this.viewer.setOrder(this.data.parts.map((_, i) => i));
      document.body.append(element("script", { type: "text/plain", id: `surface-${number}`, text: part.surface }));
      const button = element("button", { type: "button" }, "Turn it in 3D");
      button.addEventListener("click", () => this.viewer.open(number));
      section.append(element("div", { className: "actions" }, button));
    }
    return section;
  }

  compensation(file, asked) {
    const made = byId("compensation").content.cloneNode(true).firstElementChild;
    const button = made.querySelector(".fetch");
    const said = made.querySelector(".said");
    button.addEventListener("click", async () => {
      button.disabled = true;
      said.textContent = "is being computed …";
      said.classList.remove("alarm");
      this.sending += 1;
      try {
        const words = new URLSearchParams(asked);
        words.set("scale", made.querySelector(".scale").value);
        words.set("anyway", made.querySelector(".anyway").checked);
        const response = await ask(`compensate?${words}`, file);
        const told = JSON.parse(decodeURIComponent(response.headers.get("X-Lpbf-Said")));
        save(await response.blob(), told.name);
        said.textContent = [...told.said, ...told.notes.map((text) => `note: ${text}`)].join("\n");
      } catch (error) {
        said.textContent = error.message;
        said.classList.add("alarm");
      } finally {
        this.sending -= 1;
        button.disabled = false;
      }
    });
    return made;
  }

  say(text) {
    byId("state").textContent = text;
  }

  /** While something is sent, how many parts are worked on or wait; of more than one this page says so. */
  async showState() {
    if (!this.sending) return;
    try {
      const { waiting } = await (await fetch("state")).json();
      if (waiting > 1 && this.sending) this.say(`One part is computed at a time; ${waiting - 1} more wait.`);
    } catch {
      // The request that waits says what is wrong.
    }
  }
}

async function main() {
  const data = await readPageData();
  new ServePage(data);
  document.documentElement.dataset.ready = "true";
}
