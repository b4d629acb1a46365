// Small pieces of page: an element with class and text, and a button that wants to be pressed twice.
export function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// A second click within four seconds does it: what is deleted is gone.
export function twice(button, work, question = "Delete for good?") {
  if (button.dataset.asked) { work(); return; }
  const label = button.textContent;
  button.dataset.asked = "yes";
  button.textContent = question;
  setTimeout(() => { delete button.dataset.asked; button.textContent = label; }, 4000);
}
