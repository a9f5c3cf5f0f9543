// What the page carries: deflated and in base64 inside of script elements that aren't scripts.

/** The bytes of an embedded block. */
async function readBlock(id) {
  const text = byId(id).textContent;
  const packed = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).arrayBuffer();
}

/** What the page carries beside surfaces; its palettes as bytes. */
async function readPageData() {
  const data = JSON.parse(new TextDecoder().decode(await readBlock("page-data")));
  for (const [name, text] of Object.entries(data.palettes)) {
    data.palettes[name] = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }
  return data;
}

/** Wait until the whole page has been read: surfaces lie at its end. */
function whenWhole() {
  if (document.readyState !== "loading") return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve, { once: true }));
}

const GRADIENT_STEPS = 64; // between so many colours, those of the palette lie on straight lines to within 2 of 255

/** A palette as a CSS gradient. */
function paletteGradient(palette) {
  const stops = Array.from({ length: GRADIENT_STEPS + 1 }, (_, i) => {
    const at = 3 * Math.round((i / GRADIENT_STEPS) * 255);
    return `rgb(${palette[at]} ${palette[at + 1]} ${palette[at + 2]})`;
  });
  return `linear-gradient(to right, ${stops.join(", ")})`;
}
