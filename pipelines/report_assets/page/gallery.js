// Pictures of parts: their order, and how they open.

const PARTS_AT_FIRST = 24;

/** Wire the pictures that stand in the page. */
function wireGallery(data, viewer) {
  const place = byId("parts");
  const parts = [...place.querySelectorAll("[data-part]")];
  const more = byId("more-parts");
  const order = byId("gallery-order");
  if (!parts.length) return parts;
  let all = parts.length <= PARTS_AT_FIRST;

  function arrange() {
    const sorted = [...parts].sort(compareParts(data, order.value));
    viewer.setOrder(sorted.map((part) => Number(part.dataset.part)));
    sorted.forEach((part, i) => (part.hidden = !all && i >= PARTS_AT_FIRST));
    place.append(...sorted);
    more.hidden = all;
    more.textContent = `Show all ${formatNumber(parts.length)} parts`;
  }

  for (const part of parts) part.addEventListener("click", () => viewer.open(Number(part.dataset.part)));
  order.addEventListener("change", arrange);
  more.addEventListener("click", () => {
    all = true;
    arrange();
  });
  for (const ramp of document.querySelectorAll("[data-palette]")) {
    ramp.style.background = paletteGradient(data.palettes[ramp.dataset.palette]);
  }
  arrange();
  return parts;
}

function compareParts(data, by) {
  const { cases, gallery } = data;
  const row = (part) => gallery[Number(part.dataset.part)];
  const id = (part) => cases.case_id[row(part)];
  const value = {
    error: (part) => -(data.worstError[row(part)] ?? -1),
    clearance: (part) => cases.recoater_clearance_min[row(part)],
    case_id: () => 0,
  }[by] ?? ((part) => -cases[by][row(part)]);
  return (a, b) => value(a) - value(b) || (id(a) < id(b) ? -1 : 1);
}

/** Draw the pictures that the page came without, one by one as they come into sight. */
async function drawMissingStills(data, parts) {
  const missing = parts.filter((part) => part.querySelector(".still"));
  if (!missing.length) return;
  await whenWhole();
  const canvas = element("canvas", { width: 320, height: 240 });
  canvas.style.cssText = "position: fixed; left: -1000px; width: 320px; height: 240px";
  document.body.append(canvas);
  let view;
  try {
    view = new PartView(canvas, data.palettes);
  } catch {
    return; // without WebGL the captions have to do
  }
  const field = data.fields.find(({ signed }) => signed);
  const observer = new IntersectionObserver(async (entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      const surface = decodeSurface(await readBlock(`surface-${target.dataset.part}`));
      const values = surface.columns[field.column];
      const furthest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      view.setSurface(surface);
      view.scene.remove(view.plate);
      view.setPanes([{ values, range: [-furthest, furthest], palette: "signed" }]);
      view.look("corner");
      const alt = target.getAttribute("aria-label");
      target.querySelector(".still").replaceWith(element("img", { src: canvas.toDataURL("image/webp", 0.8), alt }));
    }
  }, { rootMargin: "300px" });
  missing.forEach((part) => observer.observe(part));
}
