// Numbers and elements. Everything that comes from data goes into the page as text, never as markup.

/** A number as people read it: thousands apart, four significant digits. */
function formatNumber(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en-US").replace("-", "−");
  const size = Math.abs(value);
  const text = size !== 0 && (size < 1e-3 || size >= 1e6) ? value.toExponential(2) : Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 8 });
  return text.replaceAll("-", "−");
}

/** A number with its unit, if it has one. */
function formatQuantity(value, unit) {
  return unit ? `${formatNumber(value)} ${unit}` : formatNumber(value);
}

/** An element with properties and children; texts become text nodes. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** The element with an id. */
function byId(id) {
  return document.getElementById(id);
}
