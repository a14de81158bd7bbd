// Forms of the admin API: fields with their hints, values as the API wants them, and its errors at the field they name.

import { h } from "./dom.js";
import { Problem } from "./session.js";

let number = 0;

/**
 * A form of `fields` (`{name, label, hint, kind, options, required, value}`; kind: text, number, list, time) that calls
 * `submit(values)`. An empty field is null. What `submit` throws is shown at the field that it names, or below.
 */
export function makeForm({ fields, action, submit, isDangerous = false }) {
  const made = new Map(fields.map((field) => [field.name, makeField(field)]));
  const problem = h("p", { class: "error", role: "alert" });
  const button = h("button", { type: "submit", class: isDangerous ? "danger" : "primary" }, action);

  async function send(event) {
    event.preventDefault();
    problem.textContent = "";
    for (const field of made.values()) field.blame("");
    button.disabled = true;
    try {
      await submit(Object.fromEntries([...made].map(([name, field]) => [name, field.value()])));
    } catch (error) {
      const field = error instanceof Problem && error.param ? made.get(error.param) : undefined;
      if (field) field.blame(error.message);
      else problem.textContent = error instanceof Problem ? error.message : `It did not work: ${error.message}`;
    } finally {
      button.disabled = false;
    }
  }

  return h(
    "form",
    { onsubmit: send, novalidate: true },
    h("div", { class: "fields" }, ...[...made.values()].map((field) => field.element)),
    problem,
    h("div", { class: "actions" }, button),
  );
}

function makeField({ name, label, hint = "", kind = "text", options = null, required = false, value = null }) {
  const id = `field-${(number += 1)}`;
  const described = `${id}-hint ${id}-error`;
  const common = { id, name, required, "aria-describedby": described, autocomplete: "off" };
  const input = options
    ? h("select", common, ...options.map((option) => h("option", { value: option, selected: option === (value ?? "") }, option || "–")))
    : h("input", {
        ...common,
        type: kind === "time" ? "datetime-local" : "text",
        inputmode: kind === "number" ? "decimal" : null,
        spellcheck: "false",
        value: value === null ? "" : String(value),
      });
  const error = h("span", { class: "error", id: `${id}-error`, role: "alert" });
  return {
    element: h(
      "div",
      { class: "field" },
      h("label", { for: id }, label, required ? " *" : ""),
      input,
      h("span", { class: "hint", id: `${id}-hint` }, hint),
      error,
    ),
    blame(words) {
      error.textContent = words;
      if (words) {
        input.setAttribute("aria-invalid", "true");
        input.focus();
      } else {
        input.removeAttribute("aria-invalid");
      }
    },
    value() {
      const text = input.value.trim();
      if (required && text === "") throw new Problem(400, { message: `${label} is needed.`, param: name });
      if (text === "") return null;
      if (kind === "number") {
        const parsed = Number(text.replaceAll(/[\s,]/g, ""));
        if (Number.isNaN(parsed)) throw new Problem(400, { message: `${text} is not a number.`, param: name });
        return parsed;
      }
      if (kind === "list") return text.split(",").map((part) => part.trim()).filter(Boolean);
      if (kind === "time") return new Date(text).toISOString();
      return text;
    },
  };
}
