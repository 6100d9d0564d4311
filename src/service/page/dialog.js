// The dialog before each change: what runs, what would run, and the type of the upgrade.

import { at, note, text } from "/page/view.js";

function list(node, make, items) {
  node.replaceChildren(...items.flatMap(make));
}

function element(tag, content) {
  const made = document.createElement(tag);
  made.textContent = content;
  return made;
}

// Asks, and resolves to null for "back", else to { rolling, nodes }.
//
// `facts` are pairs of a name and a value. `obstacles` are sentences: with one there is nothing to confirm. `mode` is null, or
// { rolling, nodes, possible }: how the nodes reboot, as it is set now, and whether rolling is possible at all.
export function ask({ title, facts, explanation, obstacles = [], yes, mode = null }) {
  const dialog = at("ask");
  text("ask-title", title);
  list(at("ask-facts"), ([name, value]) => [element("dt", name), element("dd", value)], facts);
  note("ask-text", explanation);
  list(at("ask-obstacles"), (sentence) => [element("li", sentence)], obstacles);
  at("ask-obstacles").hidden = obstacles.length === 0;
  text("ask-yes", yes);
  at("ask-yes").disabled = obstacles.length > 0;
  at("ask-mode").hidden = mode === null;
  const rolling = at("mode-rolling");
  const nodes = at("mode-nodes");
  rolling.checked = mode?.rolling ?? false;
  at("mode-complete").checked = !rolling.checked;
  rolling.disabled = mode !== null && !mode.possible;
  nodes.value = mode?.nodes ?? "";
  const follow = () => {
    at("ask-nodes").hidden = !rolling.checked;
    nodes.disabled = !rolling.checked;
  };
  follow();
  return new Promise((resolve) => {
    const ends = new AbortController();
    const { signal } = ends;
    const finish = (answer) => {
      ends.abort();
      dialog.close();
      resolve(answer);
    };
    at("ask-mode").addEventListener("change", follow, { signal });
    at("ask-no").addEventListener("click", () => finish(null), { signal });
    dialog.addEventListener("cancel", () => finish(null), { signal });
    at("ask-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const count = rolling.checked && nodes.value ? Number(nodes.value) : null;
      finish({ rolling: mode !== null && rolling.checked, nodes: count });
    }, { signal });
    dialog.showModal();
    // The safe answer has the focus.
    at("ask-no").focus();
  });
}
