"use strict";
// Shows the account in the page.

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const pages = {
    run: () => runPage(data),
    bench: () => benchPage(data),
    inspect: () => inspectPage(data),
    diff: () => diffPage(data),
    explain: () => explainPage(data),
  };
  const page = pages[data.kind]();
  const main = document.getElementById("page");
  main.append(page.header, navigation(page.sections), ...page.sections, footer(data));
  document.documentElement.setAttribute("data-ready", "true");
})();
