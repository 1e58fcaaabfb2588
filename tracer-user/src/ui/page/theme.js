// The theme before anything is drawn: system, light or dark; kept in this browser.
(() => {
  const NEXT = { system: "light", light: "dark", dark: "system" };
  const kept = () => {
    try { return localStorage.getItem("inferspan.theme"); } catch { return null; }
  };
  const show = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.lastElementChild.textContent = theme;
  };
  let theme = NEXT[kept()] ? kept() : "system";
  show(theme);
  addEventListener("DOMContentLoaded", () => {
    show(theme);
    document.getElementById("theme").addEventListener("click", () => {
      theme = NEXT[theme];
      try { localStorage.setItem("inferspan.theme", theme); } catch { /* A browser that keeps nothing shows it all the same. */ }
      show(theme);
      dispatchEvent(new Event("themechange"));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("themechange")));
  });
})();
