// The page that shows parts and nothing else: a list of them, and the first one opened.

async function main() {
  const data = await readPageData();
  const viewer = new Viewer(data);
  const buttons = data.parts.map(({ name }, number) => {
    const button = element("button", { type: "button" }, element("bdi", {}, name));
    button.addEventListener("click", () => viewer.open(number));
    return element("li", {}, button);
  });
  byId("parts").replaceChildren(...buttons);
  document.documentElement.dataset.ready = "true";
  if (data.parts.length) viewer.open(partOfAddress(data) ?? 0);
}
