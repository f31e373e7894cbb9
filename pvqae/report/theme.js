// Light or dark: the system's until the button is used, then that choice as long as this tab is open.
{
  const root = document.documentElement, button = document.getElementById("theme");
  const stored = { get: () => { try { return sessionStorage.getItem("theme"); } catch { return null; } },
                   set: (name) => { try { sessionStorage.setItem("theme", name); } catch { /* not remembered */ } } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const present = () => root.dataset.theme || (system.matches ? "dark" : "light");
  const other = () => (present() === "dark" ? "light" : "dark");
  const label = () => { button.textContent = other() === "dark" ? "Dark" : "Light"; };
  if (stored.get()) root.dataset.theme = stored.get();
  button.addEventListener("click", () => { root.dataset.theme = other(); stored.set(root.dataset.theme); label(); });
  system.addEventListener("change", label);
  label();
  button.hidden = false;
}
