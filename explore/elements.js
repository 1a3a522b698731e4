// Elements of the page, in one line each.

/** An element with its properties, attributes ("aria-label") and children. */
export function create(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

/** A length or a vote, as the page writes them. */
export const decimals = (value, digits = 2) =>
  value.toFixed(digits).replace("-", "\u2212");
