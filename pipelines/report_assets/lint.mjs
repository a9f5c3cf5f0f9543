// Lints the page's scripts as what they become: one function, in the order of their names, that calls `main`.
import { ESLint } from "eslint";
import { readFileSync, readdirSync } from "node:fs";
import globals from "globals";

const texts = readdirSync("page").filter((name) => name.endsWith(".js")).sort().map((name) => readFileSync(`page/${name}`, "utf8"));
const eslint = new ESLint({
  overrideConfigFile: true,
  baseConfig: {
    languageOptions: { ecmaVersion: 2023, sourceType: "script", globals: { ...globals.browser, vendor: "readonly" } },
    rules: {
      "eqeqeq": "error", "no-undef": "error", "no-unused-vars": "error", "no-var": "error", "prefer-const": "error",
      "no-shadow": "error", "no-unreachable": "error", "no-implied-eval": "error", "no-eval": "error", "consistent-return": "off",
    },
  },
});
const results = await eslint.lintText(`"use strict";\n(() => {\n${texts.join("\n")}\nmain();\n})();\n`);
console.log(await (await eslint.loadFormatter("stylish")).format(results) || "clean");
process.exitCode = results.some(({ errorCount }) => errorCount) ? 1 : 0;
