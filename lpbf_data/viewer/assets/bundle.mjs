// Bundles the libraries that `vendor.js` of this folder names, and their licences: `npm ci && npm run build`.
// The global variable that holds them is the argument. Pages that build on the viewer bundle theirs with this too.
import { build } from "esbuild";
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const [, , globalName] = process.argv;

const result = await build({
  entryPoints: ["vendor.js"],
  outfile: "vendor.min.js",
  bundle: true,
  minify: true,
  format: "iife",
  globalName,
  target: "es2022",
  legalComments: "none", // the licences stand in a file of their own, and on the page
  metafile: true,
});

const used = Object.entries(result.metafile.outputs["vendor.min.js"].inputs).filter(([, { bytesInOutput }]) => bytesInOutput);
const folders = new Set(used.map(([path]) => path.match(/^node_modules\/(?:@[^/]+\/)?[^/]+/)?.[0]).filter(Boolean));
const namesOf = new Map();
for (const folder of [...folders].sort()) {
  const { name, version } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = readdirSync(folder).find((entry) => /^licen[cs]e/i.test(entry));
  if (!file) throw new Error(`${name} has no licence file`);
  const text = readFileSync(`${folder}/${file}`, "utf8").trim();
  namesOf.set(text, [...(namesOf.get(text) ?? []), `${name} ${version}`]);
}
const parts = [...namesOf].map(([text, names]) => `${names.join(", ")}\n\n${text}\n`);
writeFileSync("vendor.LICENSES.txt", parts.join(`\n${"-".repeat(80)}\n\n`));

// What the bundle was made of: a test compares, and so finds a bundle that is older than its sources.
const digestOf = (name) => createHash("sha256").update(readFileSync(name)).digest("hex");
const sources = ["package-lock.json", "package.json", "vendor.js", "vendor.min.js"];
const own = [["bundle.mjs", digestOf(fileURLToPath(import.meta.url))]];
const digests = Object.fromEntries([...own, ...sources.map((name) => [name, digestOf(name)])]);
writeFileSync("vendor.sources.json", `${JSON.stringify(digests, null, 2)}\n`);
