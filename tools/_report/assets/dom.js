"use strict";
// Elements made from data: text is only ever inserted as text.

/** An element; attributes by name (`on…`: a listener), children as elements or text. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

let lastId = 0;

/** A fresh id, for labels and what they name. */
function freshId(stem) {
  lastId += 1;
  return `${stem}-${lastId}`;
}

/** A section of the page with a heading, which the navigation lists. */
function section(id, title, ...content) {
  return el(
    "section",
    { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, title),
    ...content,
  );
}

/** A row of links to the sections that are there. */
function navigation(sections) {
  const links = sections.map((each) =>
    el("li", {}, el("a", { href: `#${each.id}` }, each.querySelector("h2").textContent)),
  );
  return el("nav", { "aria-label": "Sections" }, el("ul", {}, ...links), themeButton());
}

const THEMES = ["system", "light", "dark"];

/** A button that goes through the colours of the system, light and dark. */
function themeButton() {
  const root = document.documentElement;
  let index = 0;
  const button = el("button", { type: "button", class: "theme" }, "");
  const show = () => {
    const theme = THEMES[index];
    button.replaceChildren("◐", el("span", {}, ` Colours: ${theme}`));
    button.setAttribute("aria-label", `Colours: ${theme}`);
    if (theme === "system") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
  };
  button.addEventListener("click", () => {
    index = (index + 1) % THEMES.length;
    show();
  });
  show();
  return button;
}

/** A field that filters; `apply` gets its words, in lower case, when typing pauses. */
function filterField(label, apply) {
  const id = freshId("filter");
  let waiting = null;
  const input = el("input", {
    id,
    type: "search",
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => apply(input.value.trim().toLowerCase()), 120);
    },
  });
  return el("div", { class: "filter" }, el("label", { for: id }, label), input);
}

/** A choice of one of several, by radio buttons; `apply` gets the key. */
function choice(label, options, apply) {
  const name = freshId("choice");
  const buttons = options.map(([key, words], index) =>
    el(
      "label",
      {},
      el("input", {
        type: "radio",
        name,
        value: key,
        checked: index === 0,
        onchange: () => apply(key),
      }),
      el("span", {}, words),
    ),
  );
  return el("fieldset", { class: "choice" }, el("legend", {}, label), ...buttons);
}

/** A text that can be copied, with a button that does. */
function copyable(text) {
  const button = el("button", { type: "button", class: "copy" }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      // a page from a file may not be allowed to: the text is selected instead
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
  const code = el("code", {}, text);
  return el("div", { class: "copyable" }, el("pre", {}, code), button);
}
