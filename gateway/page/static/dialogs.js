// Dialogs: modal, with the focus kept inside by the browser and given back at the end; confirmations; short notices.

import { byId, h } from "./dom.js";

let number = 0;

/** Open a dialog with a title and content. `onclose` is called when it is over, however it ended. Gives the element. */
export function openDialog({ title, content, size = "", onclose = () => {} }) {
  const before = document.activeElement;
  const around = before?.closest("section[tabindex], dialog"); // where the focus goes if what had it is gone by then
  const id = `dialog-${(number += 1)}`;
  const dialog = h(
    "dialog",
    { class: size || null, "aria-labelledby": id },
    h("header", {}, h("h2", { id }, title), h("button", { type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "Close")),
    h("div", { class: "content" }, content),
  );
  dialog.addEventListener("close", () => {
    dialog.remove();
    (before?.isConnected ? before : around)?.focus();
    onclose();
  });
  document.body.append(dialog);
  dialog.showModal();
  (dialog.querySelector("[autofocus]") ?? dialog.querySelector(".content input, .content select, .content button"))?.focus();
  return dialog;
}

export const isDialogOpen = () => document.querySelector("dialog[open]") !== null;

/** Ask before something is done. With `typed`, that text must be typed first. Gives whether to go on. */
export function confirmed({ title, content, action, isDangerous = false, typed = "" }) {
  return new Promise((resolve) => {
    let answer = false;
    const go = h("button", { type: "submit", class: isDangerous ? "danger" : "primary", disabled: typed !== "" }, action);
    const input = h("input", {
      id: "confirm-typed", autocomplete: "off", spellcheck: "false",
      oninput: () => { go.disabled = input.value.trim() !== typed; },
    });
    const cancel = h("button", { type: "button", onclick: () => dialog.close() }, "Cancel");
    if (typed === "") cancel.setAttribute("autofocus", "");
    const form = h(
      "form",
      { onsubmit: (event) => { event.preventDefault(); answer = true; dialog.close(); } },
      content,
      typed ? h("div", { class: "field" }, h("label", { for: "confirm-typed" }, "Type ", h("code", {}, typed), " to go on"), input) : null,
      h("div", { class: "actions" }, cancel, go),
    );
    const dialog = openDialog({ title, content: form, size: "small", onclose: () => resolve(answer) });
  });
}

/** A notice that goes by itself; it is read out too. */
export function toast(words) {
  const element = h("p", { class: "toast" }, words);
  byId("toasts").append(element);
  setTimeout(() => element.remove(), 6000);
}
