// Light or dark: the user's choice, else the system's. Runs before the first paint.
(() => {
  const apply = (theme) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  const stored = () => {
    try {
      return localStorage.getItem("afterclick-theme");
    } catch {
      return null;
    }
  };
  apply(stored());
  window.afterclickTheme = () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark")
      ? document.documentElement.dataset.theme === "dark" || matchMedia("(prefers-color-scheme: dark)").matches
      : false;
    const theme = dark && document.documentElement.dataset.theme !== "light" ? "light" : "dark";
    try {
      localStorage.setItem("afterclick-theme", theme);
    } catch {
      /* private window: the choice is lost with the page */
    }
    apply(theme);
  };
})();
