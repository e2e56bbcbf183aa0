// Keys for the review, and the line that follows its slider. Pages work without: a form and its button do the same.
"use strict";
// listens before anything is to be seen: no key that a reviewer presses is lost
let current = 0;
let sent = false;
const rating = () => document.querySelector("form[data-keys]");
const questions = () => [...rating().querySelectorAll("fieldset")];
const show = () => questions().forEach((one, at) => one.classList.toggle("current", at === current));
document.addEventListener("keydown", (event) => {
  if (!rating() || sent || event.target.matches("textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (/^[0-5]$/.test(event.key)) {
    const value = event.key === "0" ? "" : event.key;
    const choice = questions()[current].querySelector(`input[value="${value}"]`);
    choice.checked = true;
    choice.focus();
    current = Math.min(current + 1, questions().length - 1);
  } else if (event.key === "Backspace") {
    current = Math.max(current - 1, 0);
  } else if (event.key === "Enter" && event.target.matches("input[type=radio], body")) {
    rating().requestSubmit();
  } else return;
  event.preventDefault();
  show();
});
// keys that come before the next sample is here would change the ratings of this one
document.addEventListener("submit", () => { sent = true; });
window.addEventListener("pageshow", () => { sent = false; });
document.addEventListener("DOMContentLoaded", () => {
  if (rating()) {
    show();
    questions().forEach((one, at) => one.addEventListener("focusin", () => { current = at; show(); }));
  }
  for (const slider of document.querySelectorAll("input[type=range][data-mark]")) {
    const mark = document.getElementById(slider.dataset.mark);
    const out = document.getElementById(slider.dataset.out);
    const width = mark.ownerSVGElement.viewBox.baseVal.width;
    slider.addEventListener("input", () => {
      const at = width * (slider.value - slider.min) / (slider.max - slider.min || 1);
      mark.setAttribute("x1", at);
      mark.setAttribute("x2", at);
      out.value = Number(slider.value).toPrecision(4);
    });
    slider.addEventListener("change", () => slider.form.requestSubmit());
  }
  if (window === window.top) return;
  // Airflow's frame lets no link of ours leave it; an anchor of its own page may
  for (const link of document.querySelectorAll("a[target=_top]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const outer = window.parent.document.createElement("a");
      outer.href = link.href;
      outer.click();
    });
  }
});
