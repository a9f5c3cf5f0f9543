// Lints the scripts of a page as what they become: one function that calls `main`. The arguments are their folders.
import { ESLint } from "eslint";
import { readFileSync, readdirSync } from "node:fs";
import globals from "globals";

const scriptsIn = (folder) => readdirSync(folder).filter((name) => name.endsWith(".js")).sort().map((name) => `${folder}/${name}`);
const texts = process.argv.slice(2).flatMap(scriptsIn).map((path) => readFileSync(path, "utf8"));
const eslint = new ESLint({
  overrideConfigFile: true,
  baseConfig: {
    languageOptions: { ecmaVersion: 2023, sourceType: "script", globals: { ...globals.browser, vendor: "readonly", plots: "readonly" } },
    rules: {
      "eqeqeq": "error", "no-undef": "error", "no-unused-vars": "error", "no-var": "error", "prefer-const": "error",
      "no-shadow": "error", "no-unreachable": "error", "no-implied-eval": "error", "no-eval": "error", "consistent-return": "off",
    },
  },
});
const results = await eslint.lintText(`"use strict";\n(() => {\n${texts.join("\n")}\nmain();\n})();\n`);
console.log(await (await eslint.loadFormatter("stylish")).format(results) || "clean");
process.exitCode = results.some(({ errorCount }) => errorCount) ? 1 : 0;
