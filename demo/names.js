// Gradio writes the names of some of its fields beside them without saying whose they are. Say it, now and whenever
// a part of the page is drawn later.
() => {
  const name = () => {
    for (const field of document.querySelectorAll("fieldset, textarea, [role=group]")) {
      const label = field.closest(".block")?.querySelector("[data-testid=block-info]")?.textContent.trim();
      if (label && field.getAttribute("aria-label") !== label) field.setAttribute("aria-label", label);
    }
  };
  name();
  new MutationObserver(name).observe(document.body, {childList: true, subtree: true});
}
